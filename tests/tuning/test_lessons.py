"""Out of memory in whole runs: the same answer, told, kept, and heeded when the study goes on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import loratune
from engine_fixture import trial
from loratune.app.train import run_train
from loratune.app.tune import run_tune
from loratune.costs import measuring
from loratune.costs.calibration import CALIBRATION, Calibration
from loratune.costs.correction import UNCORRECTED, Correction
from loratune.costs.execution import ON_CUDA
from loratune.costs.limits import Limits
from loratune.costs.planner import Planner
from loratune.engine.memory import Place, Shortage
from loratune.engine.pack import PackEngine
from loratune.engine.slot import Slot
from loratune.engine.step import TrainingStep
from loratune.lora.layout import Adapter
from loratune.objectives.causal import Causal
from loratune.reporting.result import TuneResult
from loratune.runners.local import LocalRunner
from loratune.study.record import Study
from loratune.tuning.lessons import LearningPlanner, failed, learnt
from loratune.tuning.options import TrainOptions, TuneOptions, keyword_options
from loratune.values import ModelProfile, Stage, Trial
from loratune.values.events import Event, Note
from tiny import animal_rows, save_tiny_model, write_jsonl

GIB = 2**30
WISHES: dict[str, Any] = {"ranks": [2, 4], "budget": "6x", "epochs": 1.0, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.05)
    yield
    patch.undo()


@dataclass
class Notes:
    """What the user is told."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.lines.append(event.text)

    @property
    def shortages(self) -> list[str]:
        return [line for line in self.lines if line.startswith("Memory ran out")]


@dataclass(frozen=True)
class Setting:
    model: Path
    data: Path

    def tune(self, out: Path, **options: Any) -> tuple[TuneResult, list[str]]:
        watch = Notes()
        values = {"model": self.model, "data": self.data, "out": out} | WISHES | options
        result, _ = run_tune(TuneOptions(**keyword_options(values)), watch)
        return result, watch.shortages


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("setting")
    return Setting(save_tiny_model(folder / "model"), write_jsonl(folder / "train.jsonl", animal_rows(80)))


@contextmanager
def small_device() -> Iterator[set[str]]:
    """Memory runs out once in each part of a run that the search has begun; gives the parts still to come."""
    left = {"search", "final", "entry", "evaluation", "labels"}
    train, make, search = TrainingStep._train, PackEngine.slot, LocalRunner.search
    score, likelihood = Causal.score, Causal.likelihood
    begun: list[bool] = []

    def fail(part: str) -> None:
        if begun and part in left:
            left.remove(part)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def trained(self: TrainingStep, *inputs: Any) -> torch.Tensor:
        slots: list[Slot] = inputs[1]
        if slots[0].step:
            fail("final" if slots[0].trial.stage is Stage.FINAL else "search")
        return train(self, *inputs)

    def made(self: PackEngine, wanted: Trial, *initial: Adapter) -> Slot:
        if "search" not in left:
            fail("entry")
        return make(self, wanted, *initial)

    def scored(self: Causal, *inputs: Any) -> Any:
        fail("evaluation")
        return score(self, *inputs)

    def likely(self: Causal, *inputs: Any) -> Any:
        fail("labels")
        return likelihood(self, *inputs)

    def searched(self: LocalRunner, *inputs: Any) -> Any:
        begun.append(True)
        return search(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "_train", trained)
        patch.setattr(PackEngine, "slot", made)
        patch.setattr(Causal, "score", scored)
        patch.setattr(Causal, "likelihood", likely)
        patch.setattr(LocalRunner, "search", searched)
        yield left


def test_a_search_that_runs_out_of_memory_everywhere_gives_the_same_answer(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, silence = setting.tune(tmp_path / "undisturbed")
    assert silence == []
    with small_device() as left:
        found, told = setting.tune(tmp_path / "disturbed")
    assert not left, "memory has run out everywhere"
    assert found.recommended == expected.recommended
    assert found.metrics["test"] == pytest.approx(expected.metrics["test"], rel=1e-3)
    studies = [Study.load(tmp_path / name) for name in ("undisturbed", "disturbed")]
    theirs, ours = ({result.asked.key: result for result in study.results()} for study in studies)
    assert ours.keys() == theirs.keys()
    for key, result in theirs.items():
        assert ours[key].steps == result.steps
        np.testing.assert_allclose(ours[key].step_nll, result.step_nll, rtol=1e-3)

    document = json.loads((tmp_path / "disturbed" / "result.json").read_text())
    claims = [each["claim"] for each in document["evidence"] if "memory ran out" in each["claim"]]
    assert len(claims) == 1
    assert f"memory ran out {len(told)} times" in claims[0]
    assert told[-1] in claims[0]
    assert not any("memory ran out" in each.claim for each in expected.evidence)

    before, after = (Calibration.from_dict(study.get_fact(CALIBRATION)) for study in studies)
    assert 0 < after.micro_batch_tokens < before.micro_batch_tokens
    assert after.evaluation_tokens > 0
    assert before.evaluation_tokens == 0
    assert "Predicted were" in told[0]
    goes_on_with_it(setting, tmp_path / "disturbed", after, monkeypatch)


def goes_on_with_it(setting: Setting, out: Path, kept: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run begins with the smaller micro-batches."""
    sizes: list[tuple[int, int]] = []
    results = PackEngine.results

    def noted(self: PackEngine, *inputs: Any, **options: Any) -> Any:
        sizes.append((self.micro_batch_tokens, self._evaluator.cuts.max_tokens))
        return results(self, *inputs, **options)

    monkeypatch.setattr(PackEngine, "results", noted)
    (out / "result.json").unlink()
    _, told = setting.tune(out, resume=True)
    assert told == []
    assert set(sizes) == {(kept.micro_batch_tokens, kept.evaluation_tokens)}


def test_train_tells_and_records_it(setting: Setting, tmp_path: Path) -> None:
    options = {"model": setting.model, "data": setting.data, "out": tmp_path / "run", "device": "cpu"}
    train, calls = TrainingStep._train, iter(range(10**6))

    def once(self: TrainingStep, *inputs: Any) -> torch.Tensor:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(self, *inputs)

    watch = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "_train", once)
        found = run_train(TrainOptions(**keyword_options(options)), watch)
    assert len(watch.shortages) == 1
    assert sum("memory ran out once" in each.claim for each in found.evidence) == 1
    assert found.metrics["test"] == pytest.approx(
        loratune.train(**(options | {"out": tmp_path / "again"})).metrics["test"], rel=1e-3
    )


CALIBRATION_THERE = Calibration(pack=1.0, alone=1.0, forward=1.0, slots=8, micro_batch_tokens=16384)
LIMITS = Limits(
    model=ModelProfile(
        name="toy",
        family="llama",
        hidden_size=2048,
        layers=16,
        attention_heads=32,
        vocabulary=128_000,
        parameters=10**9,
        embedding_parameters=0,
        targets=tuple((f"layers.{i}.q_proj", 2048, 2048) for i in range(16)),
        intermediate_size=8192,
    ),
    max_length=512,
    micro_batch_tokens=16384,
    device_bytes=80 * GIB,
    execution=ON_CUDA,
)


def shortage(place: Place = Place.TRAINING, needed: float = 1.0, now: int = 8192) -> Shortage:
    """`needed`: as a share of what was predicted without the process's own part."""
    raw = Shortage(place=place, trials=(trial(0),) * 4, tokens=16384, needed=0, now=now)
    estimate = failed(LIMITS, raw)
    assert estimate is not None or place is Place.EVALUATION
    total = 0 if estimate is None else estimate.total - LIMITS.execution.runtime
    return replace(raw, needed=round(needed * total))


def test_a_model_that_predicted_too_little_is_corrected() -> None:
    """Afterwards the pack that failed is predicted at 1 % above what it needed."""
    event = shortage(needed=1.3)
    after = learnt(CALIBRATION_THERE, LIMITS, event)
    assert after.micro_batch_tokens == 8192
    assert after.slots == 8
    predicted = failed(replace(LIMITS, correction=after.correction), event)
    assert predicted is not None
    assert predicted.total == pytest.approx(1.01 * (event.needed + ON_CUDA.runtime), rel=1e-3)


def test_memory_that_others_hold_is_not_the_models_fault() -> None:
    after = learnt(CALIBRATION_THERE, LIMITS, shortage(needed=0.5))
    assert after.correction == UNCORRECTED
    assert after.micro_batch_tokens == 8192


def test_what_was_learnt_is_never_unlearnt() -> None:
    strict = replace(CALIBRATION_THERE, correction=Correction(scale=3.0, fixed=GIB))
    assert learnt(strict, LIMITS, shortage(needed=1.3)).correction == strict.correction


def test_the_next_plan_heeds_what_was_learnt(tmp_path: Path) -> None:
    """Never more trials side by side than the last error left, nor than had been planned."""
    planner = Planner(limits=LIMITS, times=CALIBRATION_THERE.times, rows=64, tokens=6400, slots=6)
    study, told = Study.open(tmp_path, fingerprint={}), list[Event]()
    learner = LearningPlanner(study=study, planner=planner, calibration=CALIBRATION_THERE, tell=told.append)
    trials = [trial(seed) for seed in range(8)]
    widths = [learner.plan(trials).widest]
    for event in (shortage(), shortage(Place.PACK, now=3), shortage(Place.PACK, now=5)):
        learner.learn(event)
        widths.append(learner.plan(trials).widest)
    assert widths == [6, 6, 3, 3]
    assert Calibration.from_dict(study.get_fact(CALIBRATION)) == learner.calibration
    assert told == [Note(text=sentence) for sentence in learner.sentences]


def test_fewer_slots_and_smaller_evaluations_are_kept_apart() -> None:
    fewer = learnt(CALIBRATION_THERE, LIMITS, shortage(Place.PACK, now=2))
    assert (fewer.slots, fewer.micro_batch_tokens) == (2, 16384)
    assert learnt(fewer, LIMITS, shortage(Place.PACK, now=5)).slots == 2
    smaller = learnt(fewer, LIMITS, shortage(Place.EVALUATION, now=1000))
    assert smaller == replace(fewer, evaluation_tokens=1000)
