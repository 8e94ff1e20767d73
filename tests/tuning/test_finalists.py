"""Which of the kept adapters is taken, by planted texts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_fixture import engine, tiny_llama, trial
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.pack import PackEngine
from loratune.engine.scoring import Scoring
from loratune.metrics import find
from loratune.runners.finalists import KEPT, Finalists
from loratune.runners.runner import AdapterFile, Evaluated, Job, ScoringJob
from loratune.study.record import Study
from loratune.tuning.finalists import FinalistRound
from loratune.values import Decision, Stage, Trial, TrialResult
from loratune.values.events import discard
from subjects import subject_of
from tiny import byte_tokenizer

ROWS = 40


class Planted:
    """A runner whose adapters write this share of the answers right, the first rows."""

    late = False

    def __init__(self, table: TokenTable, shares: dict[str, float]) -> None:
        self.table, self.shares = table, shares
        self.jobs: list[ScoringJob] = []

    def run(self, jobs: Sequence[Job], more: Any = None) -> Iterator[Evaluated]:
        for job in jobs:
            assert isinstance(job, ScoringJob)
            assert job.max_new_tokens == 3
            self.jobs.append(job)
            yield Evaluated(job=job, evaluations=tuple(map(self._written, job.adapters)))

    def _written(self, file: AdapterFile | None) -> Evaluation:
        assert file is not None
        right = round(self.shares[file.folder.name] * ROWS)
        texts = [self.table.row(i)[0][4:] if i < right else np.array([1], np.int32) for i in range(ROWS)]
        return Evaluation(
            example_nll=np.ones(ROWS),
            exact_match=np.zeros(ROWS, np.bool_),
            counts=self.table.supervised_counts,
            supervised_tokens=1,
            generated=tuple(texts),
        )


@pytest.fixture(scope="module")
def writing() -> PackEngine:
    rows = [([1, 2, 3, 4, 40 + i, 50], [False] * 4 + [True] * 2) for i in range(ROWS)]
    scoring = Scoring(metric=find("generated_match"), tokenizer=byte_tokenizer(), max_new_tokens=3)
    return engine(tiny_llama(), TokenTable.from_rows(rows), scoring=scoring)


def result(nll: float, *, fraction: float = 1.0, seed: int = 0, **changes: Any) -> TrialResult:
    asked = trial(seed=seed, fraction=fraction, **changes)
    return TrialResult(asked=asked, trial=asked, nll=nll)


def kept(shares: Sequence[float]) -> tuple[list[tuple[TrialResult, AdapterFile]], dict[str, float]]:
    """Adapters in the order of their NLL, at ranks 1, 2, ..."""
    found = [result(0.1 * (1 + i), r=1 + i) for i in range(len(shares))]
    files = [
        (each, AdapterFile(folder=Path(each.asked.key), hyper_parameters=each.asked.hyper_parameters))
        for each in found
    ]
    return files, {each.asked.key: share for each, share in zip(found, shares, strict=True)}


def examined(
    writing: PackEngine, folder: Path, shares: Sequence[float], chosen: int = 0
) -> tuple[Decision, Planted, FinalistRound]:
    files, planted = kept(shares)
    runner = Planted(writing.validation, planted)
    study = Study.open(folder, storage=None, resume=False, fingerprint={})
    compared = FinalistRound(
        runner=runner, subject=subject_of(writing), study=study, margin=1.0, tell=discard
    )
    decision = Decision(hyper_parameters=files[chosen][0].trial.hyper_parameters)
    return compared.examine(decision, files), runner, compared


def test_what_is_shown_better_is_taken(writing: PackEngine, tmp_path: Path) -> None:
    decision, runner, _ = examined(writing, tmp_path, [0.1, 0.2, 0.9, 0.1])
    assert decision.hyper_parameters.r == 3
    (claim,) = decision.evidence
    assert claim.holds
    assert claim.value == pytest.approx(80)
    assert claim.interval is not None
    assert claim.interval[0] > 0
    assert len(runner.jobs) == 1, "all finalists in one job"
    assert len(runner.jobs[0].adapters) == 4


def test_what_may_be_chance_is_not(writing: PackEngine, tmp_path: Path) -> None:
    """Three rows of forty more: seven points, and the interval reaches below none."""
    decision, _, _ = examined(writing, tmp_path, [0.5, 0.575, 0.5])
    assert decision.hyper_parameters.r == 1
    (claim,) = decision.evidence
    assert claim.holds is None
    assert claim.value == pytest.approx(7.5), "what the choice loses"


def test_a_choice_that_writes_best_is_confirmed(writing: PackEngine, tmp_path: Path) -> None:
    decision, _, _ = examined(writing, tmp_path, [0.5, 0.2, 0.9], chosen=2)
    assert decision.hyper_parameters.r == 3
    assert decision.evidence[0].holds
    assert decision.stages[-1].answer == "no, the choice by NLL is kept"


def test_texts_that_score_alike_tell_nothing(writing: PackEngine, tmp_path: Path) -> None:
    decision, _, _ = examined(writing, tmp_path, [0.0, 0.0, 0.0])
    assert decision.hyper_parameters.r == 1
    assert decision.evidence[0].holds is None
    assert "neither is shown to be better" in decision.evidence[0].claim


def test_only_the_lowest_losses_are_compared(writing: PackEngine, tmp_path: Path) -> None:
    decision, runner, _ = examined(writing, tmp_path, [0.1, 0.1, 0.1, 0.1, 1.0], chosen=1)
    assert len(runner.jobs[0].adapters) == 4
    assert decision.hyper_parameters.r == 2


def test_a_setting_that_was_not_kept(writing: PackEngine, tmp_path: Path) -> None:
    files, planted = kept([0.1, 0.9])
    study = Study.open(tmp_path, storage=None, resume=False, fingerprint={})
    runner = Planted(writing.validation, planted)
    compared = FinalistRound(
        runner=runner, subject=subject_of(writing), study=study, margin=1.0, tell=discard
    )
    decision = Decision(hyper_parameters=replace(files[0][0].trial.hyper_parameters, r=64))
    found = compared.examine(decision, files)
    assert found.hyper_parameters == decision.hyper_parameters
    assert "the chosen setting was not kept" in found.evidence[0].claim
    assert not runner.jobs


def test_what_was_written_is_not_written_again(writing: PackEngine, tmp_path: Path) -> None:
    first, runner, compared = examined(writing, tmp_path, [0.1, 0.9])
    again = compared.examine(
        Decision(hyper_parameters=kept([0.1, 0.9])[0][0][0].trial.hyper_parameters), kept([0.1, 0.9])[0]
    )
    assert len(runner.jobs) == 1
    assert again.evidence == first.evidence


def test_which_adapters_are_kept(writing: PackEngine, tmp_path: Path) -> None:
    """Of each setting the best seed, the best settings, and the best of each rank; whole runs alone."""

    def offered(results: Sequence[TrialResult]) -> set[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        keeper = Finalists(folder, ())
        for each in results:
            keeper.offer(each, writing.initial(each.asked), writing.base.model)
        names = {path.name for path in (folder / "finalists").iterdir()}
        assert names == {each.asked.key for each, _ in keeper.files()}
        assert [each.nll for each, _ in keeper.files()] == sorted(each.nll for each, _ in keeper.files())
        reopened = Finalists(folder, results)
        assert {each.asked.key for each, _ in reopened.files()} == names
        return names

    ladder = [result(1.0 + i / 100, r=2, learning_rate=1e-4 * (1 + i)) for i in range(KEPT + 2)]
    worse_seed = result(1.5, r=2, learning_rate=1e-4, seed=1)
    other_rank = result(9.0, r=4)
    part = result(0.1, r=2, learning_rate=5e-3, fraction=0.25)
    results = [*ladder, worse_seed, other_rank, part]
    expected = {each.asked.key for each in (*ladder[:KEPT], other_rank)}
    assert offered(results) == expected
    assert offered(results[::-1]) == expected


def test_a_final_trial_is_none(writing: PackEngine, tmp_path: Path) -> None:
    final = Trial(hyper_parameters=trial().hyper_parameters, stage=Stage.FINAL)
    keeper = Finalists(tmp_path, ())
    keeper.offer(TrialResult(asked=final, trial=final, nll=0.1), writing.initial(final), writing.base.model)
    assert keeper.files() == []
