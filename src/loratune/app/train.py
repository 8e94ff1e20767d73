"""One adapter with given hyper-parameters, early stopping on the validation NLL."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from loratune.app.watching import begin_loading, listening, watching
from loratune.files.lock import FolderLock, check_new
from loratune.files.paths import user_path
from loratune.tuning.options import TrainOptions, keyword_options
from loratune.tuning.single import Single, Trained
from loratune.tuning.workbench import open_workbench
from loratune.values import ALL_LINEAR
from loratune.values.events import Finished, Note, Phase, PhaseBegan, Tell, discard


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
    started, directory = monotonic(), user_path(options.out)
    chosen = options.hyper_parameters()
    check_new(directory)
    begin_loading("train", options, tell, directory=options.out)
    with (
        FolderLock(directory) as lock,
        open_workbench(
            options,
            targets=chosen.target_modules,
            ranks=(chosen.r,),
            epochs=chosen.epochs,
            labels_at_end=True,
        ) as bench,
        TemporaryDirectory(prefix="loratune-") as folder,
    ):
        bench.limits.check_alone(chosen, "--rank or --max-length")
        lock.acquire()
        run = Single(options=options, bench=bench, folder=Path(folder), tell=tell)
        for note in bench.notes:
            tell(Note(text=note))
        before = run.look()
        tell(PhaseBegan(phase=Phase.FINAL_RUN))
        result, file = run.train()
        tell(PhaseBegan(phase=Phase.TESTING))
        diagnoses = run.diagnose(result, file, before)
        tested, gain = run.test(file)
        seconds = monotonic() - started
        trained = run.trained(result, tested, diagnoses, directory=directory, seconds=seconds)
        tell(PhaseBegan(phase=Phase.WRITING))
        run.write(trained, gain, file)
        tell(Finished(directory=str(directory), seconds=seconds))
    return trained


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
