"""The final run: the recommended trial beside the default recipe, early stopping, and the test split, once.

Knows the engine and the study; the recommendation comes from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loratune.analysis.comparison import Final, FinalModel, Scored
from loratune.costs.readings import plan_looks
from loratune.data.batches import Rows
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.live import EarlyStopping
from loratune.engine.pack import PackEngine
from loratune.errors import ResourceError
from loratune.lora.layout import Adapter, find_targets
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.runners.telling import PackTeller
from loratune.values import HyperParameters, Stage, Trial, TrialResult
from loratune.values.events import Phase, PhaseBegan, StageBegan, Tell, TrialEnded, nobody

if TYPE_CHECKING:  # only named here: importing it imports Optuna
    from loratune.study.record import Study

_RETRIES = 3


def early_stopping(engine: PackEngine, epochs: float, patience: int) -> EarlyStopping:
    """Of final trials of so many epochs."""
    tokens, validation = int(engine.train.lengths.sum()), engine.validation
    looks = plan_looks(epochs * tokens, int(validation.lengths.sum()), len(validation))
    return EarlyStopping(evaluations=looks.count, rows=looks.rows, patience=patience)


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalRunner:
    """Trains final trials; a trial whose adapter and result are already kept is not trained again."""

    engine: PackEngine
    study: Study
    test: TokenTable
    patience: int
    tell: Tell = nobody

    @property
    def _folder(self) -> Path:
        return self.study.directory / "final"

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

    def _train(self, trials: list[Trial]) -> list[tuple[TrialResult, Adapter]]:
        kept = {r.asked.key: r for r in self.study.results() if r.asked.stage is Stage.FINAL}
        done: dict[str, tuple[TrialResult, Adapter]] = {}
        for trial in trials:
            if trial.key in kept and (self._folder / trial.key).exists():
                done[trial.key] = (kept[trial.key], self._load(trial))
        waiting = [trial for trial in reversed(trials) if trial.key not in done]

        def keep(result: TrialResult, adapter: Adapter) -> None:
            if result.finished:
                save_adapter(adapter, self._folder / result.asked.key, self.engine.base.model)
            self.study.record(result)
            done[result.asked.key] = (result, adapter)
            self.tell(TrialEnded.of(result))

        if waiting:
            self.tell(StageBegan(name=str(Stage.FINAL), trials=len(waiting)))
            teller = PackTeller(self.tell)
            self.engine.run(
                lambda: waiting.pop() if waiting else None,
                slots=len(waiting),
                on_result=keep,
                on_progress=teller,
                early_stopping=self._early_stopping(trials[0].hyper_parameters),
            )
            teller.flush()
        return [done[trial.key] for trial in trials]

    def _early_stopping(self, chosen: HyperParameters) -> EarlyStopping:
        return early_stopping(self.engine, chosen.epochs, self.patience)

    def _load(self, trial: Trial) -> Adapter:
        base = self.engine.base
        targets = find_targets(base.profile.targets, trial.hyper_parameters.target_modules)
        return load_adapter(self._folder / trial.key, trial.hyper_parameters, targets, device=base.device)

    def _scored(self, evaluation: Evaluation, table: TokenTable) -> Scored:
        metrics, scores = self.engine.scoring.measure(evaluation, table)
        return Scored(metrics=dict(metrics), example_nll=evaluation.example_nll, example_scores=dict(scores))

    def _compare(
        self,
        ours: tuple[TrialResult, Adapter],
        other: tuple[TrialResult, Adapter] | None,
        notes: tuple[str, ...],
    ) -> Final:
        self.tell(PhaseBegan(phase=Phase.TESTING))
        labelled = self.engine.label_tokens is not None
        pairs = [ours] if other is None else [ours, other]
        models = [*(adapter for _, adapter in pairs), None]
        tested = self.engine.evaluate(models, self.test, labels=labelled)
        validation_labels = labelled and self.engine.labels_at_end
        (base_validation,) = self.engine.evaluate([None], self.engine.validation, labels=validation_labels)
        looked_at = self.engine.sampled_rows(self._early_stopping(ours[0].trial.hyper_parameters).rows)
        found = [
            FinalModel(
                validation=_of_result(result),
                test=self._scored(each, self.test),
                adapter=adapter,
                result=result,
            )
            for (result, adapter), each in zip(pairs, tested, strict=False)
        ]
        return Final(
            recommended=found[0],
            default_recipe=found[1] if other is not None else None,
            base_model=FinalModel(
                validation=self._scored(base_validation, self.engine.validation),
                test=self._scored(tested[-1], self.test),
            ),
            before=_nll(base_validation, self.engine.validation, looked_at),
            notes=notes,
        )


def best_seed(results: Sequence[TrialResult], chosen: HyperParameters) -> int | None:
    """Of the whole runs with these hyper-parameters that the search made, the seed of the best; None: there is none."""
    whole = [
        result
        for result in results
        if result.finished and result.trial.hyper_parameters == chosen and result.trial.fraction >= 1
    ]
    return min(whole, key=lambda result: result.nll).trial.seed if whole else None


def _trial(hyper_parameters: HyperParameters, seed: int) -> Trial:
    return Trial(hyper_parameters=hyper_parameters, seed=seed, stage=Stage.FINAL)


def _nll(evaluation: Evaluation, table: TokenTable, rows: Rows) -> float:
    """On some rows of the table, nats per supervised token."""
    supervised = max(1, int(table.supervised_counts[rows].sum()))
    return float(evaluation.example_nll[rows].sum()) / supervised


def _of_result(result: TrialResult) -> Scored:
    assert result.example_nll is not None
    return Scored(
        metrics=dict(result.metrics),
        example_nll=result.example_nll,
        example_scores=dict(result.example_scores),
    )
