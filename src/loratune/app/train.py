"""One adapter with given hyper-parameters, early stopping on the validation NLL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import loratune
from loratune.analysis.diagnose import before_training, combined, of_trial
from loratune.analysis.subject import audited
from loratune.app.watching import listening, watching
from loratune.engine.evaluate import Evaluation
from loratune.engine.memory import Shortage
from loratune.errors import ResourceError
from loratune.files.paths import user_path
from loratune.files.write import write_atomically
from loratune.lora.peft_io import publish_adapter
from loratune.metrics import NLL, Rows
from loratune.model.source import portable_name
from loratune.reporting.card import Card
from loratune.reporting.facts import Gain
from loratune.runners.local import early_stopping
from loratune.runners.options import RunnerOptions
from loratune.runners.runner import (
    AdapterFile,
    Evaluated,
    FinalJob,
    Runner,
    ScoringJob,
    TrialDone,
    only,
)
from loratune.tuning.lessons import survived
from loratune.tuning.options import TrainOptions, keyword_options
from loratune.tuning.outcome import named_targets, training_record, versions
from loratune.tuning.workbench import Workbench, check_out, in_unit_of_rows, open_workbench
from loratune.values import (
    ALL_LINEAR,
    NLL_MARGIN,
    Evidence,
    HyperParameters,
    Stage,
    TrainingRecord,
    Trial,
    TrialResult,
)
from loratune.values.analysis import Diagnosis
from loratune.values.events import (
    Finished,
    Note,
    Phase,
    PhaseBegan,
    StageBegan,
    Started,
    Tell,
    TrialEnded,
    discard,
)
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


def train(
    *,
    model: str | Path,
    data: str | Path,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    template: str | None = None,
    max_length: int | None = None,
    train_rows: int | None = None,
    validation_rows: int | None = None,
    test_rows: int | None = None,
    seed: int = 0,
    task: str = "causal",
    objective: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_memory: str | None = None,
    recompute: str = "auto",
    rank: int = 16,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    target_modules: Sequence[str] = ALL_LINEAR,
    learning_rate: float = 0.0002,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    epochs: float = 1.0,
    beta: float | None = None,
    warmup_ratio: float = 0.05,
    use_dora: bool = False,
    use_rslora: bool = False,
    loraplus_lr_ratio: float = 1.0,
    patience: int = 3,
    out: str | Path = "runs/train",
    on_event: Tell | None = None,
    progress: bool | None = None,
) -> Trained:
    """Train one adapter with early stopping, and write `adapter/` and `result.json` to `out`: `loratune train`.

    Args:
        model: Base model: a folder, a .gguf file, or a hub name.
        data, validation, test: Rows: a file (.jsonl, .json, .csv, .tsv, each with .gz too, .parquet), a folder, or a
            hub name; validation and test rows are split off `data` where they are not given.
        prompt_column, completion_column, template: How a prompt is made, where the columns' names do not say it; a
            template has {column} fields, {column?} where one may be empty: "Message: {text}\\nIntent:".
        max_length: Longest row in tokens; by default what data and model need.
        train_rows, validation_rows, test_rows: Most rows of each.
        seed: Of splits, trials and decisions.
        task, objective: "causal" (completions are learnt), "classification" (labels or numbers, by a trained head), or
            "preference" (pairs of prompt, chosen and rejected) by "dpo", "orpo" or "simpo".
        dtype, device, device_memory: How the base is held ("auto", "float32", "bfloat16"), where ("auto", "cpu",
            "cuda", "cuda:N"), and the memory to plan with ("24GiB"; by default the device's).
        recompute: Layers whose activations are computed again on the way back, to save memory: "auto" (as few as it
            takes), "none", "all", or a number as text.
        rank, lora_alpha, lora_dropout: Of the adapter; alpha is by default twice the rank.
        target_modules: Adapted layers, e.g. ["q_proj", "v_proj"]; by default every linear layer but the head.
        learning_rate, batch_size, weight_decay: Peak rate, rows per step, AdamW's decay.
        beta: Of preferences; by default .1, of "simpo" 2.
        epochs, warmup_ratio: Passes over the training rows, share of the steps with a rising learning rate.
        use_dora, use_rslora, loraplus_lr_ratio: A trained magnitude for each output; scaled by alpha / √rank; B's
            learning rate as a multiple of A's (LoRA+).
        patience: Evaluations without improvement before it stops.
        out: Run directory.
        on_event: Called with each event (`loratune.values.events`) as it happens.
        progress: Bars by tqdm; None: in notebooks.

    Raises `InputError` for wrong input, before anything is written; `ResourceError` where memory or device do not
    suffice, or the run diverged.
    """
    options = locals()
    with listening(options.pop("on_event"), options.pop("progress")) as tell:
        return run_train(TrainOptions(**keyword_options(options)), tell)


def run_train(options: TrainOptions, tell: Tell = discard) -> Trained:
    """`train` with a subscriber of its events. Raises `ResourceError` where the trial diverges."""
    started = monotonic()
    chosen = options.hyper_parameters()
    check_out(user_path(options.out))
    tell(_started(options))
    tell(PhaseBegan(phase=Phase.LOADING))
    with (
        open_workbench(
            options,
            targets=chosen.target_modules,
            ranks=(chosen.r,),
            epochs=chosen.epochs,
            labels_at_end=True,
        ) as bench,
        TemporaryDirectory(prefix="loratune-") as folder,
    ):
        sentences: list[str] = []

        def note_shortage(shortage: Shortage) -> None:
            sentences.append(shortage.sentence)
            tell(Note(text=shortage.sentence))

        runner = bench.engines.runner(
            bench.spec, RunnerOptions(folder=Path(folder), tell=tell, on_shortage=note_shortage)
        )
        for note in bench.notes:
            tell(Note(text=note))
        before = before_training(bench.subject, runner, removed=bench.data.profile.duplicates_removed)
        for each in before:
            tell(Note(text=each.sentence))
        tell(PhaseBegan(phase=Phase.FINAL_RUN))
        tell(StageBegan(name=str(Stage.FINAL), trials=1))
        result, file = _train(runner, options, tell)
        if file is None:
            raise ResourceError(
                f"The run diverged: {result.message}; lower --learning-rate (it was {chosen.learning_rate:g})."
            )
        tell(PhaseBegan(phase=Phase.TESTING))
        looked_at = early_stopping(
            bench.data.train, bench.data.validation, chosen.epochs, options.patience
        ).rows
        diagnoses = _diagnosed(bench, runner, result, file, before, looked_at)
        for each in diagnoses:
            if each not in before:
                tell(Note(text=each.sentence))
        tested, gain = _tested(bench, runner, file)
        metrics = {"validation": dict(result.metrics), **tested}
        trained = Trained(
            hyper_parameters=chosen,
            metrics=metrics,
            steps=result.steps,
            seconds=monotonic() - started,
            directory=user_path(options.out),
            training=training_record(
                options, bench, seed=options.seed, epochs=chosen.epochs, patience=options.patience
            ),
            evidence=(*survived(sentences), *(each.to_evidence() for each in diagnoses)),
        )
        if not trained.helps:
            tell(
                Note(
                    text="This adapter is no better than the base model on the test rows: try another "
                    f"--learning-rate (it was {chosen.learning_rate:g}) or more --epochs, or let `loratune tune` "
                    "find them."
                )
            )
        tell(PhaseBegan(phase=Phase.WRITING))
        _save(trained, gain, file, bench)
        write_atomically(trained.directory / "result.json", dumps(trained.to_dict(), indent=1) + "\n")
        tell(Finished(directory=str(trained.directory), seconds=trained.seconds))
    return trained


def _started(options: TrainOptions) -> Started:
    return Started(
        command="train",
        model=options.model,
        data=options.data,
        directory=options.out,
        version=loratune.__version__,
    )


def _train(runner: Runner, options: TrainOptions, tell: Tell) -> tuple[TrialResult, AdapterFile | None]:
    """The result, and its adapter where there is one."""
    trial = Trial(hyper_parameters=options.hyper_parameters(), seed=options.seed, stage=Stage.FINAL)
    done = only(runner.run([FinalJob(trial=trial, patience=options.patience)]))
    assert isinstance(done, TrialDone)
    tell(TrialEnded.of(done.result))
    if done.adapter is None:
        return done.result, None
    return done.result, AdapterFile(folder=done.adapter, hyper_parameters=trial.hyper_parameters)


def _diagnosed(
    bench: Workbench,
    runner: Runner,
    result: TrialResult,
    file: AdapterFile,
    before: tuple[Diagnosis, ...],
    looked_at: int | None,
) -> tuple[Diagnosis, ...]:
    (base,) = _scored(runner, ScoringJob(adapters=(None,), split="validation", rows=looked_at))
    audit = partial(audited, runner, file)
    after = of_trial(bench.subject, result, before=base.nll, margin=NLL_MARGIN, audit=audit)
    return combined(before, after)


def _scored(runner: Runner, job: ScoringJob) -> tuple[Evaluation, ...]:
    done = only(runner.run([job]))
    assert isinstance(done, Evaluated)
    return done.evaluations


def _tested(bench: Workbench, runner: Runner, file: AdapterFile) -> tuple[dict[str, dict[str, float]], Gain]:
    """Metrics of the adapter and the base model on the test rows, and their difference in NLL."""
    table = bench.data.test
    job = ScoringJob(adapters=(file, None), split="test", labels=bool(bench.data.labels))
    ours, base = _scored(runner, job)
    measure = bench.subject.scoring.measure
    metrics = {
        "test": dict(measure(ours, table)[0]),
        "base_model_test": dict(measure(base, table)[0]),
    }
    rows = Rows(weights=table.weights)
    pair = ours.example_nll, base.example_nll
    return metrics, Gain.from_rows(*pair, over="base model", split="test", metric=NLL, rows=rows)


def _save(trained: Trained, gain: Gain, file: AdapterFile, bench: Workbench) -> None:
    """The adapter's folder, complete."""
    name = portable_name(bench.options.model)
    card = Card(
        base=name,
        hyper_parameters=named_targets(trained.hyper_parameters, file),
        training=trained.training,
        scores={
            "this adapter": trained.metrics["test"],
            "base model": trained.metrics["base_model_test"],
        },
        test_rows=len(bench.data.test),
        gains=(gain,),
        versions=versions(),
    )
    publish_adapter(
        file.folder,
        trained.directory / "adapter",
        base_name=name,
        tokenizer=bench.tokenizer,
        card=card.text,
        changed=in_unit_of_rows(bench),
    )


def train_command(options: TrainOptions, *, as_json: bool, json_lines: bool = False) -> None:
    """Run with a live view; print where the adapter is, or the document."""
    with watching(as_json=as_json, json_lines=json_lines) as bus:
        trained = run_train(options, bus)
    if as_json:
        print(dumps(trained.to_dict()))
    if as_json or json_lines:
        return
    ours, base = trained.metrics["test"], trained.metrics["base_model_test"]
    print(f"Adapter: {trained.directory / 'adapter'}")
    for name, value in ours.items():
        print(f"test {name}: {value:.4f} (base model {base[name]:.4f})")
