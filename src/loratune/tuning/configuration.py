"""Options in files: the `loratune.toml` that repeats a run, and TOML or YAML that the user wrote.

A file holds options of one command as top-level keys, under the names that they have in Python.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from json import dumps
from pathlib import Path
from textwrap import wrap
from typing import Any

from loratune.errors import InputError, nearest, printable
from loratune.metrics.names import is_address, usual_metric
from loratune.study.ledgers import keys_of, team_of
from loratune.tuning.options import CommonOptions, TuneOptions
from loratune.values.tasks import TASKS

FILE = "loratune.toml"
"""File in a run directory."""
_YAML = (".yaml", ".yml")
ENDINGS = (".toml", *_YAML)
"""Endings of option files."""
_WIDTH = 100
"""Width of a comment."""


def hides_storage(options: TuneOptions) -> bool:
    """Whether the storage URL must be given again, as it has a password or a query and is not written down."""
    from loratune.study.secrets import has_secrets  # imports SQLAlchemy, which --help need not wait for

    return options.storage is not None and has_secrets(options.storage)


def to_toml(options: TuneOptions) -> str:
    """`loratune.toml`: the options as top-level keys.

    Unset options are left out, and so are a storage URL with secrets in it and a team's ledger.
    """
    values = asdict(options) | {"ledger": keys_of(options.ledger), "metric": options.optimised}
    if hides_storage(options):
        del values["storage"]
    lines = [f"{name} = {toml_value(value)}" for name, value in values.items() if value is not None]
    return (
        "\n".join(["# Repeats this run: loratune tune --config loratune.toml --out elsewhere", *lines]) + "\n"
    )


def toml_value(value: Any) -> str:
    """The value in JSON, but for what TOML writes otherwise (infinity, NaN, characters beyond 16 bits); also YAML."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    text = dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)


@dataclass(frozen=True, slots=True)
class Setting:
    """An option in a file to start from."""

    name: str
    value: Any
    stands: bool = True
    """Whether it counts; else it is shown as a comment, ready to be changed."""


def commented(parts: Iterable[tuple[Sequence[str], Sequence[Setting]]], path: Path) -> str:
    """Paragraphs of remarks and settings as TOML or, by the path's name, YAML; remarks as comments, wrapped."""
    between = ": " if is_yaml(path) else " = "
    paragraphs = []
    for remarks, settings in parts:
        lines = [
            f"# {line}"
            for remark in remarks
            for line in wrap(printable(remark), _WIDTH, break_long_words=False, break_on_hyphens=False)
        ]
        lines += [
            f"{'' if each.stands else '# '}{each.name}{between}{toml_value(each.value)}" for each in settings
        ]
        paragraphs.append("\n".join(lines) + "\n")
    return "\n".join(paragraphs)


def is_yaml(path: Path) -> bool:
    """Whether a file of options is YAML, by its name."""
    return path.suffix.lower() in _YAML


def read_options(path: Path, kind: type[CommonOptions] = TuneOptions) -> dict[str, Any]:
    """Options of one command from a TOML or (by its name) YAML file; lists as tuples, keys without a value left out.

    Raises `InputError` for a file that cannot be read, and for unknown keys with the option that they resemble.
    """
    values = _read(path)
    known = {each.name for each in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise InputError(
            f"{str(path)!r} must hold options of {_command(kind)}, got {nearest(unknown, known)}; "
            f"known are {', '.join(sorted(known))}."
        )
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }


def _command(kind: type[CommonOptions]) -> str:
    return kind.__name__.removesuffix("Options").lower()


def _read(path: Path) -> dict[str, Any]:
    yaml = is_yaml(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = _yaml(text) if yaml else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(
            f"--config must be a readable {'YAML' if yaml else 'TOML'} file, but {str(path)!r} is not ({reason}); "
            "give the loratune.toml of a run directory, or what `loratune init` writes."
        ) from None
    return values


def _yaml(text: str) -> dict[str, Any]:
    from loratune.files.read_yaml import parse_yaml  # PyYAML, which few commands need

    values = parse_yaml(text)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError("its top level is no mapping of options to values")
    return {str(name): value for name, value in values.items()}


def kept_options(directory: Path) -> dict[str, Any]:
    """What a run directory has of the options of its run; nothing where it has no file of them."""
    file = directory / FILE
    return read_options(file) if file.exists() else {}


def resumed_options(directory: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a resumed run: those that its directory keeps, below what is given.

    Raises `InputError` where a metric that is code is only named by the directory. What contradicts the run is refused
    by its study (`Study.check`).
    """
    kept = kept_options(directory)
    check_named(kept, given, directory / FILE)
    return named_metric(kept | dict(given), given)


def named_metric(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options without a default metric of pairs that only a file names: earlier versions wrote `nll` there."""
    task, usual = options.get("task"), usual_metric(pairs=False)
    of_pairs = isinstance(task, str) and task in TASKS and TASKS[task].has_pairs
    drops = of_pairs and options.get("metric") == usual and given.get("metric") != usual
    return {name: value for name, value in options.items() if not (drops and name == "metric")}


def check_named(found: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Raise `InputError` where a file names code, a metric, or a server that is not named by the user."""
    if "ledger" not in given and team_of([str(each) for each in found.get("ledger") or ()]):
        raise InputError(
            f"{printable(str(path))} names a team's ledger, which is only called where you name it too; add it by "
            "--ledger URL."
        )
    cluster = found.get("ray")
    if cluster is not None and "ray" not in given:
        raise InputError(
            f"{printable(str(path))} names a Ray cluster, {printable(str(cluster))}, which is only joined where you "
            f"name it too; add --ray {printable(str(cluster))}."
        )
    if is_address(str(found.get("metric", ""))) and "metric" not in given:
        raise InputError(
            f"{printable(str(path))} names code, the metric {found['metric']}, which only runs if you name it "
            f"too; add --metric {found['metric']}."
        )


def storage_of(directory: Path) -> str | None:
    """The storage that a run directory's `loratune.toml` names; None where its study is in the directory itself.

    Raises `InputError` where only the file could say, and cannot be read, or names a server: a folder that came from
    elsewhere must not make this machine call one.
    """
    from loratune.study.secrets import is_server, masked  # imports SQLAlchemy

    file = directory / FILE
    if (directory / "study.db").is_file() or not file.exists():
        return None
    storage = kept_options(directory).get("storage")
    if not isinstance(storage, str | None):
        raise InputError(f"storage in {str(file)!r} must be text, got {storage!r}; name it by --storage URL.")
    if storage is not None and is_server(storage):
        raise InputError(
            f"{printable(str(file))} names a database server, {printable(masked(storage))}, which is only called if "
            "you name it too; add it by --storage URL."
        )
    return storage
