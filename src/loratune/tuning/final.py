"""The final run: the recommended trial beside the default recipe, early stopping, and the test split, once.

Knows a runner and the study; the recommendation comes from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loratune.analysis.final import Final, FinalModel, SplitScores
from loratune.analysis.subject import Subject
from loratune.data.batches import Rows
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.errors import ResourceError
from loratune.runners.local import early_stopping, read_adapter
from loratune.runners.runner import (
    AdapterFile,
    Evaluated,
    FinalJob,
    Runner,
    ScoringJob,
    Split,
    TrialDone,
    only,
)
from loratune.values import HyperParameters, Stage, Trial, TrialResult
from loratune.values.events import Phase, PhaseBegan, StageBegan, Tell, TrialEnded, discard

if TYPE_CHECKING:  # only named here: importing it imports Optuna
    from loratune.study.record import Study

FOLDER = "final"
"""Folder in a run directory that holds the adapters of the final run until it is complete."""
_RETRIES = 3
_Trained = tuple[TrialResult, AdapterFile]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalRunner:
    """Trains final trials; a trial whose adapter and result are already kept is not trained again."""

    runner: Runner
    """Keeps final adapters in `FOLDER` of the study's directory."""
    subject: Subject
    """Whose rows they are, those for the test included."""
    study: Study
    patience: int
    tell: Tell = discard

    def run(
        self,
        chosen: HyperParameters,
        default: HyperParameters | None,
        seed: int,
        default_seed: int | None = None,
    ) -> Final:
        """Train, then evaluate everything on the test rows once. Raises `ResourceError` if all of it diverges.

        `default_seed` None: the default recipe is trained with `seed` too.

        A run that its guard ended is repeated at half the learning rate, also where it has earlier weights to
        show; of all that were trained the best is taken.
        """
        notes: list[str] = []
        wanted = [chosen] if default is None or default == chosen else [chosen, default]
        seeds = (seed, seed if default_seed is None else default_seed)
        if seeds[0] != seeds[1]:
            notes.append(
                f"The final run has seed {seed}, that of the search's best whole run with these hyper-parameters; "
                f"the default recipe has seed {default_seed}."
            )
        trained = self._train([_trial(each, own) for each, own in zip(wanted, seeds, strict=False)])
        attempts = trained[:1]
        for _ in range(_RETRIES):
            last = attempts[-1][0]
            if last.finished and not last.failure:
                break
            chosen = replace(chosen, learning_rate=chosen.learning_rate / 2)
            notes.append(
                f"The final run diverged ({last.message}); it was repeated at half the learning rate, "
                f"{chosen.learning_rate:.3g}."
            )
            attempts += self._train([_trial(chosen, seed)])
        ours = min(attempts, key=lambda attempt: attempt[0].nll)
        if not ours[0].finished:
            raise ResourceError(
                f"The final run diverged at every learning rate tried, the last {chosen.learning_rate:.3g}; "
                "look at the data (loratune recommend) or give lower --learning-rates."
            )
        other = trained[1] if len(wanted) > 1 else (ours if default == chosen else None)
        if other is not None and not other[0].finished:
            notes.append(f"The default recipe diverged: {other[0].message}.")
            other = None
        return self._compare(ours, other, tuple(notes))

    def _train(self, trials: list[Trial]) -> list[_Trained]:
        kept = {r.asked.key: r for r in self.study.results() if r.asked.stage is Stage.FINAL}
        done: dict[str, TrialResult] = {}
        for trial in trials:
            if trial.key in kept and self._file(trial).folder.exists():
                done[trial.key] = kept[trial.key]
        waiting = [FinalJob(trial=trial, patience=self.patience) for trial in trials if trial.key not in done]
        if waiting:
            self.tell(StageBegan(name=str(Stage.FINAL), trials=len(waiting)))
        for each in self.runner.run(waiting):
            assert isinstance(each, TrialDone)
            self.study.record(each.result)
            done[each.result.asked.key] = each.result
            self.tell(TrialEnded.of(each.result))
        return [(done[trial.key], self._file(trial)) for trial in trials]

    def _file(self, trial: Trial) -> AdapterFile:
        folder = self.study.directory / FOLDER / trial.key
        return AdapterFile(folder=folder, hyper_parameters=trial.hyper_parameters)

    def _score(self, models: Sequence[AdapterFile | None], split: Split, *, labels: bool) -> list[Evaluation]:
        job = ScoringJob(
            adapters=tuple(models),
            split=split,
            labels=labels,
            max_new_tokens=self.subject.scoring.max_new_tokens,
        )
        found = only(self.runner.run([job]))
        assert isinstance(found, Evaluated)
        return list(found.evaluations)

    def _scored(self, evaluation: Evaluation, table: TokenTable) -> SplitScores:
        metrics, scores = self.subject.scoring.measure(evaluation, table)
        return SplitScores(
            metrics=dict(metrics), example_nll=evaluation.example_nll, example_scores=dict(scores)
        )

    def _compare(self, ours: _Trained, other: _Trained | None, notes: tuple[str, ...]) -> Final:
        self.tell(PhaseBegan(phase=Phase.TESTING))
        subject, test = self.subject, self.subject.test
        assert test is not None, "a final run has test rows"
        pairs = [ours] if other is None else [ours, other]
        files = [file for _, file in pairs]
        tested = self._score([*files, None], "test", labels=subject.labelled)
        asked = subject.labelled and subject.scoring.asks_labels
        again = files if subject.scoring.generates else []  # what a trial writes is not measured at its end
        (*validated, base_validation) = self._score([*again, None], "validation", labels=asked)
        own = [self._scored(each, subject.validation) for each in validated]
        epochs = ours[0].trial.hyper_parameters.epochs
        stopping = early_stopping(subject.train, subject.validation, epochs, self.patience)
        found = [
            FinalModel(
                validation=validation,
                test=self._scored(each, test),
                adapter=read_adapter(file, subject.profile),
                file=file,
                result=result,
            )
            for (result, file), each, validation in zip(
                pairs, tested, own or [_of_result(result) for result, _ in pairs], strict=False
            )
        ]
        return Final(
            recommended=found[0],
            default_recipe=found[1] if other is not None else None,
            base_model=FinalModel(
                validation=self._scored(base_validation, subject.validation),
                test=self._scored(tested[-1], test),
            ),
            before=_nll(base_validation, subject.validation, subject.sampled_rows(stopping.rows)),
            notes=notes,
        )


def best_seed(results: Sequence[TrialResult], chosen: HyperParameters) -> int | None:
    """The best seed among the search's whole runs with these hyper-parameters; None: there is none."""
    whole = [
        result
        for result in results
        if result.finished and result.trial.hyper_parameters == chosen and result.trial.fraction >= 1
    ]
    return min(whole, key=lambda result: result.nll).trial.seed if whole else None


def _trial(hyper_parameters: HyperParameters, seed: int) -> Trial:
    return Trial(hyper_parameters=hyper_parameters, seed=seed, stage=Stage.FINAL)


def _nll(evaluation: Evaluation, table: TokenTable, rows: Rows) -> float:
    """NLL on some rows of the table, nats per supervised token, of pairs in the mean over them."""
    examples = rows[:: table.group] // table.group
    return float(evaluation.example_nll[examples].sum()) / max(1.0, float(table.weights[examples].sum()))


def _of_result(result: TrialResult) -> SplitScores:
    assert result.example_nll is not None
    return SplitScores(
        metrics=dict(result.metrics),
        example_nll=result.example_nll,
        example_scores=dict(result.example_scores),
    )
