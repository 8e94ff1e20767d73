"""Memory that runs out anywhere in a pack: nothing is lost, nothing is done twice, the numbers stay."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import limited_memory
from engine_fixture import engine, labelled_table, tiny_llama, trial
from failing import failing, out_of_memory
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.live import EarlyStopping, LiveTrial
from loratune.engine.loop import PackProgress
from loratune.engine.machinery import Machinery, choose_paths
from loratune.engine.memory import Place, Shortage
from loratune.engine.pack import PackEngine
from loratune.engine.portions import Cuts, Portion, Portions
from loratune.engine.slot import Slot
from loratune.engine.step import TrainingStep
from loratune.errors import ResourceError
from loratune.lora.layout import Adapter
from loratune.lora.segments import LowRank
from loratune.objectives.causal import Causal
from loratune.values import Trial, TrialResult

LABELS = [[5, 6, 90], [7, 90], [8, 9, 90]]
TRAIN, VALIDATION = labelled_table(LABELS, 24), labelled_table(LABELS, 10, seed=1)
LONGEST = int(TRAIN.lengths.max())
TRIALS = [
    trial(0, batch_size=6),
    trial(1, r=8, lora_dropout=0.2, batch_size=4),
    trial(2, epochs=2.0, learning_rate=1e-2, weight_decay=0.1, batch_size=12),
    trial(3, target_modules=("q_proj", "down_proj"), batch_size=8),
    trial(4, r=2, fraction=0.5, batch_size=5),
]
SLOTS = 3
BASE = tiny_llama()
PATHS = choose_paths(BASE, longest=LONGEST)


@dataclass(kw_only=True)
class Outcome:
    """What became of a run, by seed."""

    results: dict[int, TrialResult] = field(default_factory=dict)
    weights: dict[int, torch.Tensor] = field(default_factory=dict)
    live: list[tuple[int, ...]] = field(default_factory=list)
    """The seeds that trained together, step by step."""
    shortages: list[Shortage] = field(default_factory=list)

    @property
    def places(self) -> list[Place]:
        return [shortage.place for shortage in self.shortages]


LOOKS = EarlyStopping(evaluations=6, rows=4, patience=2)


def machine(**changes: Any) -> PackEngine:
    facts: dict[str, Any] = {"validation_subset_size": 4, "evaluations_per_trial": 3}
    facts |= {"label_tokens": tuple(np.array(label, np.int32) for label in LABELS)}
    return engine(BASE, TRAIN, VALIDATION, paths=PATHS, **(facts | changes))


def run(*, trials: Sequence[Trial] = TRIALS, stopping: EarlyStopping | None = None) -> Outcome:
    """All trials through a pack of three slots: the others enter later."""
    outcome = Outcome()
    subject = machine(on_shortage=outcome.shortages.append)
    waiting = list(trials)

    def keep(result: TrialResult, adapter: Adapter) -> None:
        assert result.trial.seed not in outcome.results, "a trial ends once"
        outcome.results[result.trial.seed] = result
        outcome.weights[result.trial.seed] = torch.tensor(adapter.weights.tolist(), dtype=torch.float64)

    def watch(progress: PackProgress) -> None:
        outcome.live.append(tuple(slot.trial.seed for slot in progress.slots))

    subject.run(
        lambda: waiting.pop(0) if waiting else None,
        slots=SLOTS,
        on_result=keep,
        on_progress=watch,
        early_stopping=stopping,
    )
    return outcome


@contextmanager
def device(*, tokens: int, slot: int = 0, after: int = 0) -> Iterator[list[int]]:
    """Holds a micro-batch of so many tokens in training, fewer for each trial, after so many steps of the pack.

    Gives the sizes of the micro-batches that it has held.
    """
    train, call = TrainingStep._train, TrainingStep.__call__
    steps, sizes = count(1), list[int]()
    now = [0]

    def called(self: TrainingStep, slots: Sequence[Slot]) -> int:
        now[0] = next(steps)
        return call(self, slots)

    def seen(self: TrainingStep, portion: Portion, slots: Sequence[Slot]) -> torch.Tensor:
        size = int(portion.batch.starts[-1])
        if now[0] > after and size + slot * len(slots) > tokens:
            raise out_of_memory()
        sizes.append(size)
        return train(self, portion, slots)

    TrainingStep._train, TrainingStep.__call__ = seen, called  # type: ignore[method-assign,assignment]
    try:
        yield sizes
    finally:
        TrainingStep._train, TrainingStep.__call__ = train, call  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def undisturbed() -> Outcome:
    return run()


def assert_same(found: Outcome, expected: Outcome, tolerance: float = 1e-9) -> None:
    """Every trial's course and end, up to rounding."""
    assert found.results.keys() == expected.results.keys()
    for seed, theirs in expected.results.items():
        ours = found.results[seed]
        assert ours.state is theirs.state
        assert ours.steps == theirs.steps
        assert ours.trained_tokens == theirs.trained_tokens
        assert ours.metrics == pytest.approx(theirs.metrics, rel=tolerance)
        np.testing.assert_allclose(ours.step_nll, theirs.step_nll, rtol=tolerance)
        np.testing.assert_allclose(ours.example_nll, theirs.example_nll, rtol=tolerance)
        readings = [[(p.step, p.validation_nll, p.train_nll) for p in each.curve] for each in (ours, theirs)]
        np.testing.assert_allclose(*readings, rtol=tolerance)
        torch.testing.assert_close(
            found.weights[seed], expected.weights[seed], rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    ("owner", "name", "at", "place"),
    [
        pytest.param(Causal, "hidden", 3, Place.TRAINING, id="first forward of a step"),
        pytest.param(LowRank, "forward", 25, Place.TRAINING, id="forward of a layer"),
        pytest.param(LowRank, "backward", 3, Place.TRAINING, id="backward of the first step"),
        pytest.param(LowRank, "backward", 71, Place.TRAINING, id="backward, gradients half there"),
        pytest.param(Causal, "loss_and_gradient", 4, Place.TRAINING, id="head"),
        pytest.param(Portions, "_places", 5, Place.TRAINING, id="dropout's keys"),
        pytest.param(Causal, "score", 2, Place.EVALUATION, id="evaluation"),
        pytest.param(Causal, "likelihood", 1, Place.EVALUATION, id="labels"),
        pytest.param(PackEngine, "slot", 0, None, id="first slot"),
        pytest.param(PackEngine, "slot", (4, 6), Place.PACK, id="slot beside live ones"),
        pytest.param(torch.optim.AdamW, "step", 8, None, id="update of the second slot"),
        pytest.param(Slot, "clip", 7, None, id="clipping of the second slot"),
    ],
)  # fmt: skip
def test_an_error_once(
    owner: Any, name: str, at: int | tuple[int, ...], place: Place | None, undisturbed: Outcome
) -> None:
    """Wherever it comes, every trial ends once and as it would have ended; later steps are smaller."""
    with failing(owner, name, *(at if isinstance(at, tuple) else (at,))):
        found = run()
    assert found.places == ([] if place is None else [place])
    assert_same(found, undisturbed)


@pytest.mark.parametrize("at", range(5))
def test_an_error_while_rows_are_made_ready(
    at: int, undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the step at hand, of a reading, or, as on a GPU, of the next step while the device still works."""
    init = TrainingStep.__init__

    def looking_ahead(self: TrainingStep, *args: Any) -> None:
        init(self, *args)
        self._looks_ahead = True

    monkeypatch.setattr(TrainingStep, "__init__", looking_ahead)
    with failing(Cuts, "collate", at):
        found = run()
    assert len(found.shortages) <= 1
    assert_same(found, undisturbed)


def test_an_error_while_the_best_weights_are_copied() -> None:
    expected = run(stopping=LOOKS)
    with failing(LiveTrial, "_best_with", 1):
        found = run(stopping=LOOKS)
    assert found.places == [Place.PACK]
    assert_same(found, expected)


def test_trials_that_have_ended_are_put_aside_for_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three have ended; where memory holds the evaluation of one only, they are evaluated in turns."""
    trials = [trial(seed, batch_size=12) for seed in range(3)]
    expected = run(trials=trials, stopping=LOOKS)
    read = PackEngine.read

    def reads(self: PackEngine, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        if len(table) == len(VALIDATION) and len(models) > 1:
            raise out_of_memory()
        return read(self, models, table)

    monkeypatch.setattr(PackEngine, "read", reads)
    found = run(trials=trials, stopping=LOOKS)
    assert found.places == [Place.PACK, Place.PACK]
    assert found.live == expected.live
    assert_same(found, expected)


def test_an_error_after_all_gradients_are_there(undisturbed: Outcome) -> None:
    with failing(TrainingStep, "_prepare", 2, after=True):
        found = run()
    assert found.places == [Place.TRAINING]
    assert_same(found, undisturbed)


class Allocations(TorchDispatchMode):
    """Fails at one allocation of the main thread, wherever it is."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.count = 0
        self._at = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(returned.alias_info for returned in func._schema.returns) and func._schema.returns:
            self.count += 1
            if self.count == self._at:
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
                )
        return func(*args, **(kwargs or {}))


def test_an_error_at_any_allocation(undisturbed: Outcome) -> None:
    """Some of all that a run makes, evenly spread, one per run."""
    with Allocations() as all_of_them:
        run()
    places: list[Place] = []
    for at in np.linspace(1, all_of_them.count, 6).astype(int):
        with Allocations(int(at)):
            found = run()
        assert_same(found, undisturbed)
        assert len(found.shortages) <= 1
        places += found.places
    assert {Place.TRAINING, Place.EVALUATION} <= set(places)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space")
def test_a_process_that_may_not_grow() -> None:
    """Real errors of the CPU's allocator: half of what a step would take, to be had before the run."""
    done = subprocess.run(
        [sys.executable, "limited_memory.py", "250_000_000"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    limited, unlimited = json.loads(done.stdout), limited_memory.run()
    assert unlimited["shortages"] == []
    assert {place for place, _ in limited["shortages"]} == {"training"}
    assert limited["losses"].keys() == unlimited["losses"].keys()
    for seed, losses in unlimited["losses"].items():
        assert limited["losses"][seed] == pytest.approx(losses, rel=1e-5)


def test_micro_batches_are_halved_until_they_fit(undisturbed: Outcome) -> None:
    """A device that holds 40 tokens at a time: found by halving, kept from then on."""
    with device(tokens=40) as sizes:
        found = run()
    assert set(found.places) == {Place.TRAINING}
    assert [shortage.now for shortage in found.shortages] == sorted(
        {shortage.now for shortage in found.shortages}, reverse=True
    )
    assert max(sizes) <= 40, "after the first step nothing is too large"
    assert found.live == undisturbed.live
    assert_same(found, undisturbed)


class Recordings:
    """In the place of recorded graphs: memory that is held whenever they may be made."""

    largest, line = 0, None

    def __init__(self) -> None:
        self.held, self.calls = True, list[str]()

    def takes(self, tokens: int) -> bool:
        return False

    def expect(self, tokens: np.ndarray, positions: np.ndarray) -> None:
        """Nothing is planned where nothing is recorded."""

    def give_way(self) -> bool:
        self.calls.append("give way")
        found, self.held = self.held, False
        return found

    def go_on(self) -> None:
        self.calls += ["go on"] * (not self.held)
        self.held = True

    def forget(self) -> bool:
        return False


def test_recorded_graphs_give_way_to_a_step_and_come_back(
    undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No micro-batch is halved for it: one that fits without them is taken without them, and the next again with."""
    recordings = Recordings()
    monkeypatch.setattr(Machinery, "graphs", recordings)
    train, refused = TrainingStep._train, list[int]()

    def beside(self: TrainingStep, portion: Portion, slots: Sequence[Slot]) -> torch.Tensor:
        if recordings.held and (tokens := portion.batch.tokens.numel()) > 100:
            refused.append(tokens)
            raise out_of_memory()
        return train(self, portion, slots)

    monkeypatch.setattr(TrainingStep, "_train", beside)
    found = run()
    assert len(refused) > 2
    assert recordings.calls == ["give way", "go on"] * len(refused)
    assert found.places == []
    assert_same(found, undisturbed)


def test_a_pack_is_split_where_one_row_does_not_fit_beside_all(undisturbed: Outcome) -> None:
    """A device that holds one row beside two trials, not beside three: the others take turns."""
    with device(tokens=2 * 100 + LONGEST, slot=100):
        found = run()
    assert found.places[-1] is Place.PACK
    assert found.shortages[-1].now == 2
    assert found.shortages[-1].trials == tuple(TRIALS[:3])
    assert max(len(live) for live in found.live) == 2
    assert_same(found, undisturbed)


def test_trials_that_were_put_aside_go_on_where_they_were() -> None:
    """From the fourth step on one at a time, with moments, losses, readings and best weights behind them."""
    expected = run(stopping=LOOKS)
    with device(tokens=100 + LONGEST, slot=100, after=3):
        found = run(stopping=LOOKS)
    assert [len(live) for live in found.live[:4]] == [3, 3, 3, 1]
    assert found.places.count(Place.PACK) == 2
    assert_same(found, expected)


def test_a_trial_that_cannot_come_back_yet_is_not_lost(undisturbed: Outcome) -> None:
    """Put aside beside two; when one has ended, memory does not suffice beside the other: it waits for its end."""
    with device(tokens=2 * 100 + LONGEST, slot=100), failing(LiveTrial, "restore", 0):
        found = run()
    refused = found.shortages[-1]
    assert found.places[-2:] == [Place.PACK, Place.PACK]
    assert (refused.now, len(refused.trials)) == (1, 1)
    assert_same(found, undisturbed)


def test_a_trial_that_comes_back_for_a_reading_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third is put aside before its reading; when it is back, the fourth enters and does not fit beside it."""
    trials = [trial(seed, batch_size=12) for seed in range(4)]
    expected = run(trials=trials)
    read, step, errors = PackEngine.read, TrainingStep.__call__, [3, (3,)]

    def reads(self: PackEngine, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        if len(models) in errors:
            errors.remove(len(models))
            raise out_of_memory()
        return read(self, models, table)

    def steps(self: TrainingStep, slots: Sequence[Slot]) -> int:
        seeds = tuple(slot.trial.seed for slot in slots)
        if seeds in errors:
            errors.remove(seeds)
            raise out_of_memory()
        return step(self, slots)

    monkeypatch.setattr(PackEngine, "read", reads)
    monkeypatch.setattr(TrainingStep, "__call__", steps)
    found = run(trials=trials)
    assert not errors
    assert found.places == [Place.PACK, Place.PACK]
    assert found.live == [(0, 1, 2), (0, 1), (2,), (3,), (3,)]
    assert_same(found, expected)


def test_a_trial_that_does_not_fit_alone_is_refused() -> None:
    """One sentence and nothing else: results so far were handed over, the model is as it was."""
    ended: list[int] = []
    waiting = [trial(0, batch_size=24), trial(1)]
    with (
        device(tokens=LONGEST - 1, after=1),
        pytest.raises(ResourceError, match="does not hold the pack; plan"),
    ):
        machine().run(
            lambda: waiting.pop(0) if waiting else None,
            slots=1,
            on_result=lambda result, _: ended.append(result.trial.seed),
        )
    assert ended == [0]
    assert not any(module._forward_hooks for module in BASE.model.modules())


def test_updates_that_fail_twice_are_not_repeated() -> None:
    """Some slots have moved on by then: the run ends, for no step may be taken twice."""
    with failing(torch.optim.AdamW, "step", 4, 5), pytest.raises(ResourceError, match="while a step"):
        run()


def test_an_evaluation_of_one_row_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*_: Any) -> None:
        raise out_of_memory()

    monkeypatch.setattr(Causal, "score", score)
    with pytest.raises(ResourceError, match="does not hold the pack"):
        machine().evaluate([None], VALIDATION)


def test_other_errors_pass() -> None:
    """A mistake is not taken for a shortage."""
    seen: list[Shortage] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Causal, "hidden", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            machine(on_shortage=seen.append).evaluate([None], VALIDATION)
    assert not seen
