"""One adapter with given hyper-parameters: trained, examined, scored on the test rows, and written."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

from loratune.analysis.diagnose import before_training, combined, of_trial
from loratune.analysis.subject import audited
from loratune.engine.evaluate import Evaluation
from loratune.engine.memory import Shortage
from loratune.errors import ResourceError
from loratune.files.write import write_atomically
from loratune.lora.peft_io import publish_adapter
from loratune.metrics import NLL, Rows
from loratune.model.source import portable_name
from loratune.reporting.card import Card
from loratune.reporting.facts import Gain
from loratune.runners.local import early_stopping
from loratune.runners.options import RunnerOptions
from loratune.runners.runner import AdapterFile, Evaluated, FinalJob, Runner, ScoringJob, TrialDone, only
from loratune.tuning.lessons import survived
from loratune.tuning.options import TrainOptions
from loratune.tuning.outcome import named_targets, training_record, versions
from loratune.tuning.workbench import Workbench, in_unit_of_rows
from loratune.values import NLL_MARGIN, Evidence, HyperParameters, Stage, TrainingRecord, Trial, TrialResult
from loratune.values.analysis import Diagnosis
from loratune.values.events import Note, StageBegan, Tell, TrialEnded
from loratune.values.plain import finite, to_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What `train` made."""

    hyper_parameters: HyperParameters
    metrics: dict[str, dict[str, float]]
    """`validation`, `test` and `base_model_test`, by metric name."""
    steps: int
    """Optimiser steps taken; the best weights may be of an earlier one."""
    seconds: float
    directory: Path
    training: TrainingRecord
    evidence: tuple[Evidence, ...] = ()
    """What the rows, the steps and the readings say of the run; empty where nothing is wrong."""

    @property
    def helps(self) -> bool:
        """Whether the adapter's NLL on the test rows is below the base model's."""
        return self.metrics["test"]["nll"] < self.metrics["base_model_test"]["nll"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = finite(
            {
                "schema": 1,
                "hyper_parameters": self.hyper_parameters.to_dict(),
                "metrics": self.metrics,
                "steps": self.steps,
                "seconds": self.seconds,
                "training": to_plain(self.training),
                "evidence": to_plain(self.evidence),
            }
        )
        return values


@dataclass(kw_only=True, eq=False)
class Single:
    """One training with everything it needs at hand; its steps are called in this order."""

    options: TrainOptions
    bench: Workbench
    folder: Path
    """Where the adapter is until it is written to the run directory."""
    tell: Tell
    runner: Runner = field(init=False)
    shortages: list[str] = field(default_factory=list, init=False)
    """A sentence for every out-of-memory error that was recovered from."""

    def __post_init__(self) -> None:
        self.runner = self.bench.engines.runner(
            self.bench.spec,
            RunnerOptions(folder=self.folder, tell=self.tell, on_shortage=self._note_shortage),
        )

    def _note_shortage(self, shortage: Shortage) -> None:
        self.shortages.append(shortage.sentence)
        self.tell(Note(text=shortage.sentence))

    def look(self) -> tuple[Diagnosis, ...]:
        """What is wrong with the rows, reported before anything is trained on them."""
        removed = self.bench.data.profile.duplicates_removed
        found = before_training(self.bench.subject, self.runner, removed=removed)
        self._report(found)
        return found

    def train(self) -> tuple[TrialResult, AdapterFile]:
        """The result and its adapter. Raises `ResourceError` where the trial diverges."""
        trial = Trial(
            hyper_parameters=self.options.hyper_parameters(), seed=self.options.seed, stage=Stage.FINAL
        )
        self.tell(StageBegan(name=str(Stage.FINAL), trials=1))
        done = only(self.runner.run([FinalJob(trial=trial, patience=self.options.patience)]))
        assert isinstance(done, TrialDone)
        self.tell(TrialEnded.of(done.result))
        if done.adapter is None:
            raise ResourceError(
                f"The run diverged: {done.result.message}; lower --learning-rate (it was "
                f"{trial.hyper_parameters.learning_rate:g})."
            )
        return done.result, AdapterFile(folder=done.adapter, hyper_parameters=trial.hyper_parameters)

    def diagnose(
        self, result: TrialResult, file: AdapterFile, before: tuple[Diagnosis, ...]
    ) -> tuple[Diagnosis, ...]:
        """All that is wrong; what `before` has not said is reported."""
        data, epochs = self.bench.data, file.hyper_parameters.epochs
        rows = early_stopping(data.train, data.validation, epochs, self.options.patience).rows
        (base,) = self._scored(ScoringJob(adapters=(None,), split="validation", rows=rows))
        audit = partial(audited, self.runner, file)
        after = of_trial(self.bench.subject, result, before=base.nll, margin=NLL_MARGIN, audit=audit)
        found = combined(before, after)
        self._report(tuple(each for each in found if each not in before))
        return found

    def test(self, file: AdapterFile) -> tuple[dict[str, dict[str, float]], Gain]:
        """Metrics of the adapter and the base model on the test rows, and their difference in NLL."""
        table = self.bench.data.test
        job = ScoringJob(adapters=(file, None), split="test", labels=bool(self.bench.data.labels))
        ours, base = self._scored(job)
        measure = self.bench.subject.scoring.measure
        metrics = {
            "test": dict(measure(ours, table)[0]),
            "base_model_test": dict(measure(base, table)[0]),
        }
        rows = Rows(weights=table.weights)
        pair = ours.example_nll, base.example_nll
        return metrics, Gain.from_rows(*pair, over="base model", split="test", metric=NLL, rows=rows)

    def trained(
        self,
        result: TrialResult,
        tested: dict[str, dict[str, float]],
        diagnoses: tuple[Diagnosis, ...],
        *,
        directory: Path,
        seconds: float,
    ) -> Trained:
        """What it came to; a note where that is no better than the base model."""
        options, chosen = self.options, self.options.hyper_parameters()
        trained = Trained(
            hyper_parameters=chosen,
            metrics={"validation": dict(result.metrics), **tested},
            steps=result.steps,
            seconds=seconds,
            directory=directory,
            training=training_record(
                options, self.bench, seed=options.seed, epochs=chosen.epochs, patience=options.patience
            ),
            evidence=(*survived(self.shortages), *(each.to_evidence() for each in diagnoses)),
        )
        if not trained.helps:
            self.tell(
                Note(
                    text="This adapter is no better than the base model on the test rows: try another "
                    f"--learning-rate (it was {chosen.learning_rate:g}) or more --epochs, or let `loratune tune` "
                    "find them."
                )
            )
        return trained

    def write(self, trained: Trained, gain: Gain, file: AdapterFile) -> None:
        """The adapter's folder, complete, and `result.json` last."""
        name = portable_name(self.options.model)
        card = Card(
            base=name,
            hyper_parameters=named_targets(trained.hyper_parameters, file),
            training=trained.training,
            scores={
                "this adapter": trained.metrics["test"],
                "base model": trained.metrics["base_model_test"],
            },
            test_rows=len(self.bench.data.test),
            gains=(gain,),
            versions=versions(),
        )
        publish_adapter(
            file.folder,
            trained.directory / "adapter",
            base_name=name,
            tokenizer=self.bench.tokenizer,
            card=card.text,
            changed=in_unit_of_rows(self.bench),
        )
        write_atomically(trained.directory / "result.json", dumps(trained.to_dict(), indent=1) + "\n")

    def _report(self, found: tuple[Diagnosis, ...]) -> None:
        for each in found:
            self.tell(Note(text=each.sentence))

    def _scored(self, job: ScoringJob) -> tuple[Evaluation, ...]:
        done = only(self.runner.run([job]))
        assert isinstance(done, Evaluated)
        return done.evaluations
