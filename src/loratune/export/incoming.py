"""The other way: what a TRL, Axolotl or LLaMA-Factory file says of model, data and lengths, as options of `tune`.

What is searched here (learning rate, rank, batch size, alpha, dropout, decay) is not taken over. Pure functions of the
parsed files, but for `options_from`, which reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import exists
from pathlib import Path
from typing import Any

from loratune.data.row import kind_of
from loratune.errors import InputError
from loratune.files.read_json import parse_json
from loratune.files.read_yaml import parse_yaml

_LOADERS = ("json", "csv", "parquet", "text")
"""Names that `datasets` has for formats of files, where a path or hub name may stand too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """Options found in a file."""

    trainer: str
    options: Mapping[str, Any]

    @property
    def sentence(self) -> str:
        """What was taken over."""
        listed = ", ".join(
            f"{name.replace('_', '-')} {_shown(value)}" for name, value in self.options.items()
        )
        return f"From the {self.trainer} file: {listed}."


def options_from(path: Path) -> Incoming:
    """Options of a YAML file of one of the three. Raises `InputError` where it is none, or names several datasets."""
    values = _read(path)
    where = path.parent
    if "base_model" in values:
        return Incoming(trainer="Axolotl", options=_kept(axolotl(values), where))
    if "model_name_or_path" not in values:
        raise InputError(
            f"--from-config must be a TRL, Axolotl or LLaMA-Factory file, but {str(path)!r} has neither "
            "model_name_or_path nor base_model; give such a file, or --model and --data."
        )
    if {"stage", "finetuning_type", "dataset_dir", "template"} & set(values):
        folder = where / str(values.get("dataset_dir", "data"))
        return Incoming(
            trainer="LLaMA-Factory", options=_kept(llamafactory(values, _information(folder)), folder)
        )
    return Incoming(trainer="TRL", options=_kept(trl(values), where))


def trl(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options from the keys of `trl sft --config`."""
    data, validation = _hub(values.get("dataset_name"), values.get("dataset_config")), None
    if mixture := values.get("datasets"):
        data, validation = _files(_only(mixture, "datasets"))
    warmup = _number(values.get("warmup_steps"))
    return {
        "model": values.get("model_name_or_path"),
        "data": data,
        "validation": validation,
        "max_length": values.get("max_length"),
        "target_modules": _names(values.get("lora_target_modules")),
        "epochs": _number(values.get("num_train_epochs")),
        "warmup_ratio": warmup if warmup is not None and 0 < warmup < 1 else None,
        "seed": values.get("seed"),
    }


def axolotl(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options from the keys of `axolotl train`."""
    dataset = _only(values.get("datasets"), "datasets")
    data, validation = _files(dataset)
    if tests := values.get("test_datasets"):
        validation, _ = _files(_only(tests, "test_datasets"))
    shape = dataset.get("type")
    columns = shape if isinstance(shape, Mapping) else {}
    every = ("all-linear",) if values.get("lora_target_linear") else None
    return {
        "model": values.get("base_model"),
        "data": data,
        "validation": validation,
        "completion_column": columns.get("field_output"),
        "template": _template(columns),
        "max_length": values.get("sequence_len"),
        "target_modules": _names(values.get("lora_target_modules")) or every,
        "epochs": _number(values.get("num_epochs")),
        "warmup_ratio": _number(values.get("warmup_ratio")),
        "seed": values.get("seed"),
    }


def llamafactory(values: Mapping[str, Any], information: Mapping[str, Any]) -> dict[str, Any]:
    """Options from the keys of `llamafactory-cli train` and its dataset_info.json."""
    data, entry = _named(values.get("dataset"), information)
    validation, _ = _named(values.get("eval_dataset"), information)
    columns = _mapping(entry.get("columns"), "columns")
    paired = entry.get("formatting", "alpaca") == "alpaca" and not columns.get("query")
    return {
        "model": values.get("model_name_or_path"),
        "data": data,
        "validation": validation,
        "prompt_column": columns.get("prompt") if paired else None,
        "completion_column": columns.get("response") if paired else None,
        "max_length": values.get("cutoff_len"),
        "train_rows": values.get("max_samples"),
        "target_modules": _names(values.get("lora_target")),
        "epochs": _number(values.get("num_train_epochs")),
        "warmup_ratio": _number(values.get("warmup_ratio")),
        "seed": values.get("seed"),
    }


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error.strerror if isinstance(error, OSError) else error).split())
        raise InputError(
            f"--from-config must be a readable YAML file, but {str(path)!r} is not ({reason}); give the file that "
            "trl sft, axolotl train or llamafactory-cli train is called with."
        ) from None
    if not isinstance(values, dict):
        raise InputError(
            f"--from-config must hold keys and values, but {str(path)!r} holds {kind_of(values)}; give the "
            "file that trl sft, axolotl train or llamafactory-cli train is called with."
        )
    return values


def _information(folder: Path) -> Mapping[str, Any]:
    """LLaMA-Factory's names of datasets; none where the file is elsewhere."""
    path = folder / "dataset_info.json"
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise InputError(
            f"{str(path)!r} must be JSON, but is not ({error}); mend it, or name the rows with --data train.jsonl."
        ) from None
    return values if isinstance(values, dict) else {}


def _kept(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the file says; paths that lie beside it and not here are taken from there."""
    kept = {name: value for name, value in options.items() if value is not None}
    for name in ("model", "data", "validation"):
        given = kept.get(name)
        if isinstance(given, str) and not exists(given) and exists(folder / given):
            kept[name] = str(folder / given)
    return kept


def _only(entries: Any, key: str) -> Mapping[str, Any]:
    """The one dataset of a list."""
    found = entries if isinstance(entries, list) else [] if entries is None else [entries]
    if len(found) != 1:
        raise InputError(
            f"{key} must name one dataset for a search, got {len(found)}; join their rows in one file and give it with "
            "--data."
        )
    return _mapping(found[0], key)


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    """Keys and values, none of them where nothing is written."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(
            f"{key} of --from-config must hold keys and values, got {kind_of(value)}; mend it, or give --data "
            "train.jsonl in place of --from-config."
        )
    return value


def _files(entry: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Training and validation data of an entry as `datasets.load_dataset` takes it."""
    path, files = entry.get("path"), entry.get("data_files")
    if isinstance(files, Mapping):
        held_out = files.get("validation") or files.get("test")
        return _one(files.get("train")), _one(held_out)
    if files is not None:
        return _one(files), None
    if path in _LOADERS:
        raise InputError(f"datasets must name its files, got path {path!r} alone; give them with --data.")
    return _hub(path, entry.get("name")), None


def _one(files: Any) -> str | None:
    if isinstance(files, list) and len(files) > 1:
        raise InputError(
            f"data_files must be one file for a search, got {len(files)}; join them and give --data."
        )
    found = files[0] if isinstance(files, list) and files else files
    return None if found is None else str(found)


def _hub(name: Any, configuration: Any) -> str | None:
    """A dataset with its configuration, as `--data` writes it."""
    if name is None:
        return None
    return f"{name}:{configuration}" if configuration else str(name)


def _named(name: Any, information: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Data of one of LLaMA-Factory's names, and what is said of it."""
    if name is None:
        return None, {}
    names = [
        each.strip() for each in (name if isinstance(name, list) else [name]) for each in str(each).split(",")
    ]
    if len(names) != 1:
        raise InputError(
            f"dataset must name one dataset for a search, got {len(names)}; join their rows in one file and give it "
            "with --data."
        )
    entry = information.get(names[0])
    if not isinstance(entry, Mapping):
        raise InputError(
            f"dataset {names[0]!r:.80} must be listed in dataset_info.json beside its rows, which has "
            f"{', '.join(map(str, information)) or 'no such file or names'}; give the rows with --data."
        )
    source = entry.get("file_name") or _hub(entry.get("hf_hub_url"), entry.get("subset"))
    return None if source is None else str(source), entry


def _template(columns: Mapping[str, Any]) -> str | None:
    """Axolotl's `format` with its own names of fields as the columns that they stand for."""
    text = columns.get("format")
    if not isinstance(text, str):
        return None
    for field in ("instruction", "input"):
        text = text.replace(f"{{{field}}}", f"{{{columns.get(f'field_{field}', field)}}}")
    return text


def _names(value: Any) -> tuple[str, ...] | None:
    """Target modules as a list or as `a,b`; `all` is every linear layer."""
    if value is None:
        return None
    names = tuple(value) if isinstance(value, list) else tuple(each.strip() for each in str(value).split(","))
    return ("all-linear",) if names in (("all",), ("all-linear",)) else names


def _number(value: Any) -> float | None:
    """YAML reads 1e-3 as text."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"--from-config must hold a number where it has {value!r:.80}; write one there, for example 3."
        ) from None


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else repr(value)
