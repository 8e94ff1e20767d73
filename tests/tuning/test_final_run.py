"""The final run on a tiny model: what early stopping looks at, what is reported, and what a second call finds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine_fixture import engine, tiny_llama, trial
from loratune.analysis.final import Final
from loratune.costs.readings import plan_evaluations
from loratune.engine.pack import PackEngine
from loratune.engine.selfcheck import random_table
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.study.record import Study
from loratune.tuning.final import FOLDER, FinalRunner, best_seed
from loratune.values import Trial, TrialResult
from loratune.values.events import Event, PhaseBegan, Progress, StageBegan, TrialEnded
from subjects import subject_of

TRAIN, VALIDATION, TEST = (random_table(97, rows=rows, seed=seed) for seed, rows in enumerate((480, 100, 20)))
CHOSEN = trial(batch_size=48, epochs=2.5).hyper_parameters
DEFAULT = trial(r=8, batch_size=48, epochs=2.5, learning_rate=1e-3).hyper_parameters


class Run:
    """A final run in a folder, and what it told."""

    def __init__(
        self, subject: PackEngine, folder: Path, *, seed: int = 0, default_seed: int | None = None
    ) -> None:
        self.events: list[Event] = []
        study = Study.find(folder) or Study.open(folder, fingerprint={})
        runner = FinalRunner(
            runner=LocalRunner(
                engine=subject,
                test=TEST,
                options=RunnerOptions(folder=folder / FOLDER, tell=self.events.append),
            ),
            subject=subject_of(subject, TEST),
            study=study,
            patience=3,
            tell=self.events.append,
        )
        self.final: Final = runner.run(CHOSEN, DEFAULT, seed, default_seed)

    @property
    def stages(self) -> list[int | str]:
        """Trials of each training, and the phase after it."""
        told = [event for event in self.events if isinstance(event, StageBegan | PhaseBegan)]
        return [event.trials if isinstance(event, StageBegan) else str(event.phase) for event in told]

    @property
    def steps(self) -> list[Progress]:
        return [event for event in self.events if isinstance(event, Progress)]

    @property
    def results(self) -> list[TrialEnded]:
        return [event for event in self.events if isinstance(event, TrialEnded)]


def test_the_final_run_reports_on_all_rows_what_it_chose_on_some(tmp_path: Path) -> None:
    subject = engine(tiny_llama(torch.float32), TRAIN, VALIDATION, max_tokens_per_micro_batch=4096)
    first = Run(subject, tmp_path)
    looks = plan_evaluations(2.5 * TRAIN.lengths.sum(), VALIDATION.lengths.sum(), len(VALIDATION))
    assert looks.rows < len(VALIDATION)
    final = first.final
    assert first.stages == [2, "testing"]
    assert len(first.results) == 2
    assert sum(each.tokens for each in first.steps) == sum(each.trained_tokens for each in first.results)
    assert final.default_recipe is not None
    sample = subject.sample(looks.rows)
    for model in (final.recommended, final.default_recipe):
        assert model.result is not None
        assert model.adapter is not None
        assert model.validation is not None
        on_all, on_some = (subject.evaluate([model.adapter], table)[0] for table in (VALIDATION, sample))
        readings = [point.validation_nll for point in model.result.curve]
        assert len(readings) <= looks.count
        assert on_some.nll == pytest.approx(min(readings), rel=1e-5)
        assert model.validation.metrics["nll"] == pytest.approx(on_all.nll, rel=1e-5)
        np.testing.assert_allclose(model.validation.example_nll, on_all.example_nll, rtol=1e-4)
    (base,) = subject.evaluate([None], sample)
    assert final.before == pytest.approx(base.nll, rel=1e-6), "where the curve of the readings begins"
    again = Run(subject, tmp_path)
    assert again.stages == ["testing"]
    assert not again.steps
    assert not again.results
    assert again.final.before == final.before
    assert again.final.recommended.test.metrics == pytest.approx(final.recommended.test.metrics, rel=1e-6)


def test_the_final_run_is_the_best_whole_run_again(tmp_path: Path) -> None:
    """Of the runs with just these hyper-parameters, on all rows, that finished."""
    subject = engine(tiny_llama(torch.float32), TRAIN, VALIDATION, max_tokens_per_micro_batch=4096)
    found: list[TrialResult] = []
    runs = ((CHOSEN, 3, 1.0), (CHOSEN, 4, 1.0), (CHOSEN, 5, 0.5), (DEFAULT, 6, 1.0))
    waiting = [Trial(hyper_parameters=setting, seed=seed, fraction=share) for setting, seed, share in runs]
    subject.run(
        lambda: waiting.pop() if waiting else None,
        slots=4,
        on_result=lambda result, adapter: found.append(result),
    )
    losses = {result.trial.seed: result.nll for result in found if result.trial.seed in (3, 4)}
    seed = best_seed(found, CHOSEN)
    assert seed == min(losses, key=lambda each: losses[each])
    assert best_seed([result for result in found if result.trial.seed > 4], CHOSEN) is None
    assert seed is not None
    final = Run(subject, tmp_path, seed=seed, default_seed=0).final
    assert final.recommended.result is not None
    assert final.default_recipe is not None
    assert final.default_recipe.result is not None
    assert final.recommended.result.nll == pytest.approx(losses[seed], rel=1e-3)
    assert final.default_recipe.result.trial.seed == 0
    assert any(f"seed {seed}" in note for note in final.notes)
