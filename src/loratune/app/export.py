"""A finished run carried into another trainer: its rows and hyper-parameters as files that repeat it there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from shlex import quote
from typing import Any

from safetensors import SafetensorError, safe_open

from loratune.app.record import TrainedRun, load_run
from loratune.app.workbench import context_length, model_cache
from loratune.data.batches import total_steps
from loratune.data.encode import Encoder
from loratune.data.options import DataOptions
from loratune.data.prepare import PreparedData, prepare
from loratune.data.table import TokenTable
from loratune.engine.slot import warmup_steps
from loratune.errors import DataError, InputError, ModelError, OutputError
from loratune.export.recipe import Recipe
from loratune.export.registry import find_target
from loratune.export.rows import Codec, Format, rows_of
from loratune.export.target import Exported, Target
from loratune.model.source import portable_name, read_json
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "folder": str(self.folder),
            "files": list(self.files),
            "command": self.command,
            "losses": list(self.losses),
        }


def export(
    directory: str | Path, *, to: str, out: str | Path | None = None, model: str | None = None
) -> Export:
    """Write the files that repeat a run of `tune` or `train` in another trainer.

    `to`: peft, transformers, trl, axolotl, llamafactory, unsloth or mlx. `out`: a new or empty folder; default
    `export/` in the run directory. `model`: the base model that the files name, where the run's was a .gguf file or
    has moved. Raises `InputError` for what the trainer cannot express; then nothing is written.
    """
    target, run = find_target(to), load_run(Path(directory))
    folder = run.directory / "export" / target.name if out is None else Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"--out must be a new or empty folder, but {folder} is not; choose another --out.")
    recipe = _recipe(run, target, model)
    target.export(recipe, target.formats[-1].name if target.formats else "")  # refuses before rows are read
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        written, losses = _write(run, target, recipe, fresh, model)
        if folder.exists():
            folder.rmdir()  # empty, as was checked
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Export(
        folder=folder,
        files=tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())),
        command=f"cd {quote(str(folder))} && {written.command}" if written.command else "",
        losses=(*written.losses, *losses),
    )


def _recipe(run: TrainedRun, target: Target, model: str | None) -> Recipe:
    chosen, record = run.hyper_parameters, run.training
    config = read_json(run.adapter / _CONFIG)
    steps = total_steps(record.rows, chosen.batch_size, chosen.epochs)
    names = config.get("target_modules") or ()
    named = type(chosen).from_dict(
        {**chosen.to_dict(), "target_modules": sorted([names] if isinstance(names, str) else names)}
    )
    nll = "" if run.validation_nll is None else f", validation NLL {run.validation_nll:.4f}"
    return Recipe(
        model=_base_name(model or record.model, target),
        hyper_parameters=named,
        modules=_modules(run.adapter / _WEIGHTS),
        steps=steps,
        warmup_steps=warmup_steps(chosen, steps),
        rows=record.rows,
        max_length=record.max_length,
        evaluations=record.evaluations,
        patience=record.patience,
        seed=record.seed,
        dtype=record.dtype,
        end_of_turn=record.end_of_turn,
        origin=f"Hyper-parameters found by loratune ({run.directory.name}{nll}).",
    )


def _base_name(name: str, target: Target) -> str:
    """As the files name it: they are run in a folder of their own, so that a path is written in full."""
    if name.lower().endswith(".gguf") and target.formats:
        raise ModelError(
            f"a .gguf base model cannot be trained by {target.name}, got {name}; give the hub name or the folder of "
            "its safetensors with --model."
        )
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else portable_name(name)


def _modules(weights: Path) -> tuple[str, ...]:
    """Full names of the adapted modules, from the names of the adapter's tensors."""
    try:
        with safe_open(weights, framework="numpy") as file:
            names = [name for name in file.keys() if name.endswith(_LETTER)]  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        raise ModelError(f"{weights} must be readable, but is not; run tune or train again.") from None
    prefix = "base_model.model."
    return tuple(sorted(name.removeprefix(prefix).removesuffix(_LETTER) for name in names))


def _write(
    run: TrainedRun, target: Target, recipe: Recipe, folder: Path, model: str | None
) -> tuple[Exported, tuple[str, ...]]:
    """Files and rows; also what the rows lose."""
    if not target.formats:
        exported, losses = target.export(recipe, ""), ()
    else:
        data, codec = _rows(run, model)
        tables = {"train": data.train, "validation": data.validation}
        taken = next((each for each in target.formats if _exact(each, tables, codec)), target.formats[-1])
        exported = target.export(recipe, taken.name)
        losses = _write_rows(taken, tables, codec, exported.data, folder, target)
    for name, text in exported.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return exported, losses


def _rows(run: TrainedRun, model: str | None) -> tuple[PreparedData, Codec]:
    """The run's own rows, read again. Raises `DataError` where they are others now."""
    record = run.training
    name = record.model if Path(record.model).expanduser().exists() or model is None else model
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


def _exact(shape: Format, tables: Mapping[str, TokenTable], codec: Codec) -> bool:
    """Whether the trainer gets every row's own tokens from this shape."""
    return all(
        written.exact for table in tables.values() for rows in rows_of(table) for written in shape.write(rows, codec)
    )


def _write_rows(
    shape: Format,
    tables: Mapping[str, TokenTable],
    codec: Codec,
    files: Mapping[str, str],
    folder: Path,
    target: Target,
) -> tuple[str, ...]:
    """JSON lines by split. Raises `InputError` for a row that the shape cannot hold."""
    losses = []
    for split, table in tables.items():
        other = 0
        path = folder / files[split]
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8") as lines:
            for rows in rows_of(table):
                for written in shape.write(rows, codec):
                    if written.values is None:
                        raise InputError(
                            f"{target.name} cannot learn several turns of one conversation as they were trained; "
                            "export --to trl, axolotl, llamafactory or transformers."
                        )
                    other += not written.exact
                    lines.write(dumps(written.values, ensure_ascii=False) + "\n")
        if other:
            losses.append(
                f"{other} of {len(table)} {split} rows become other tokens there, as {target.name} tokenises them "
                "its own way."
            )
    return tuple(losses)


def export_command(directory: Path, *, to: str, out: Path | None, model: str | None, as_json: bool) -> None:
    """Write the files; print where they are, what runs them and what they lose."""
    done = export(directory, to=to, out=out, model=model)
    if as_json:
        print(dumps(done.to_dict()))
        return
    print(f"Written to {done.folder}: {', '.join(done.files)}")
    if done.command:
        print(f"Run it: {done.command}")
    for sentence in done.losses:
        print(f"Note: {sentence}")
