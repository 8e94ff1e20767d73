"""A finished run carried into another trainer: its rows and hyper-parameters as files that repeat it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from shlex import quote

from loratune.data.batches import total_steps
from loratune.data.encode import Encoder
from loratune.data.prepare import PreparedData, prepare
from loratune.data.sources import DataOptions
from loratune.engine.slot import warmup_steps
from loratune.errors import DataError, InputError, ModelError
from loratune.export import find_target
from loratune.export.preference import serving
from loratune.export.recipe import Recipe
from loratune.export.rows import Codec
from loratune.export.shaped import ShapedRows, shaped
from loratune.export.target import Exported, Target
from loratune.files.lock import check_new
from loratune.files.paths import check_own, user_path
from loratune.files.write import new_folder
from loratune.lora.peft_io import described
from loratune.model.source import portable_name
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.runners.spec import context_length, model_cache
from loratune.tuning.outcome import TrainedRun, load_run
from loratune.values.plain import to_plain

_LETTER = ".lora_A.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    command: str
    """What runs it; empty where nothing is run."""
    losses: tuple[str, ...]
    """What is not repeated there, a sentence each."""


def export(
    directory: str | Path, *, to: str, out: str | Path | None = None, model: str | None = None
) -> Export:
    """Write the files that repeat a run of `tune` or `train` in another trainer.

    `to`: peft, transformers, trl, axolotl, llamafactory, unsloth or mlx. `out`: a new or empty folder; default
    `export/` in the run directory. `model`: the base model that the files name, where the run's was a .gguf file or
    has moved. Raises `InputError` for what the trainer cannot express; then nothing is written.
    """
    target, run = find_target(to), load_run(user_path(directory))
    if run.classifies and target.formats:
        raise InputError(
            f"--to {to} trains on text, and {run.directory} holds a classifier; export --to peft, which writes its "
            "configuration."
        )
    if out is None:
        check_own(run.directory)
    folder = run.directory / "export" / target.name if out is None else user_path(out)
    check_new(folder)
    recipe = _recipe(run, target, model)
    target = serving(target, recipe)
    exported, rows = _planned(run, target, recipe, model)
    with new_folder(folder, replace=True) as fresh:  # instead of what a killed run left there
        for name, text in exported.files.items():
            (fresh / name).write_text(text, encoding="utf-8")
        losses = rows.write(fresh, exported.data) if rows is not None else ()
        check_new(folder)  # writing the rows may have taken long
    return Export(
        folder=folder,
        files=tuple(
            sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        ),
        command=f"cd {quote(str(folder))} && {exported.command}" if exported.command else "",
        losses=(*exported.losses, *losses),
    )


def _recipe(run: TrainedRun, target: Target, model: str | None) -> Recipe:
    chosen, record = run.hyper_parameters, run.training
    config, tensors = described(run.adapter)
    steps = total_steps(record.rows, chosen.batch_size, chosen.epochs)
    names = config.get("target_modules") or ()
    named = type(chosen).from_dict(
        {**chosen.to_dict(), "target_modules": sorted([names] if isinstance(names, str) else names)}
    )
    nll = "" if run.validation_nll is None else f", validation NLL {run.validation_nll:.4f}"
    return Recipe(
        model=_base_name(model or record.model, target),
        hyper_parameters=named,
        modules=_modules(tensors),
        steps=steps,
        warmup_steps=warmup_steps(chosen, steps),
        rows=record.rows,
        max_length=record.max_length,
        evaluations=record.evaluations,
        patience=record.patience,
        seed=record.seed,
        dtype=record.dtype,
        weight_format=record.weight_format,
        modules_to_save=record.modules_to_save,
        objective=record.objective,
        end_of_turn=record.end_of_turn,
        origin=f"Hyper-parameters found by loratune ({run.directory.name}{nll}).",
    )


def _base_name(name: str, target: Target) -> str:
    """The base model as the files name it: they are run in a folder of their own, so a path is written in full."""
    if name.lower().endswith(".gguf") and target.formats:
        raise ModelError(
            f"a .gguf base model cannot be trained by {target.name}, got {name}; give the hub name or the folder of "
            "its safetensors with --model."
        )
    path = user_path(name)
    return str(path.resolve()) if path.exists() else portable_name(name)


def _modules(tensors: Sequence[str]) -> tuple[str, ...]:
    """Full names of the adapted modules, from the names of the adapter's tensors."""
    names = [name for name in tensors if name.endswith(_LETTER)]
    return tuple(sorted(name.removeprefix("base_model.model.").removesuffix(_LETTER) for name in names))


def _planned(
    run: TrainedRun, target: Target, recipe: Recipe, model: str | None
) -> tuple[Exported, ShapedRows | None]:
    """Files and rows of an export that is possible; nothing is written yet."""
    if not target.formats:
        return target.export(recipe, ""), None
    target.export(recipe, target.formats[-1].name)  # refuses before rows are read
    data, codec = _data(run, model)
    rows = shaped(target, {"train": data.train, "validation": data.validation}, codec)
    return target.export(recipe, rows.shape.name), rows


def _data(run: TrainedRun, model: str | None) -> tuple[PreparedData, Codec]:
    """The run's own rows, read again. Raises `DataError` where they are others now."""
    record = run.training
    name = record.model if user_path(record.model).exists() or model is None else model
    tokenizer = load_tokenizer(name, cache=model_cache())
    end = end_of_turn_id(tokenizer)
    data = prepare(
        DataOptions(**record.data_options), tokenizer, end_of_turn=end, model_limit=context_length(name)
    )
    if data.fingerprint != record.data_fingerprint:
        raise DataError(
            f"{record.data} must hold the rows of the run (fingerprint {record.data_fingerprint}), got others "
            f"({data.fingerprint}); put the old file back or run tune again."
        )
    beginning = Encoder(tokenizer=tokenizer, end_of_turn=end, max_length=record.max_length).beginning
    return data, Codec(tokenizer=tokenizer, beginning=tuple(beginning), end=record.end_of_turn)


def export_command(directory: Path, *, to: str, out: Path | None, model: str | None, as_json: bool) -> None:
    """Write the files; print where they are, what runs them and what they lose."""
    done = export(directory, to=to, out=out, model=model)
    if as_json:
        print(dumps(to_plain(done)))
        return
    print(f"Written to {done.folder}: {', '.join(done.files)}")
    if done.command:
        print(f"Run it: {done.command}")
    for sentence in done.losses:
        print(f"Note: {sentence}")
