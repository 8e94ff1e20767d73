"""What a command was given: options of the command line over those of files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from loratune.errors import InputError, printable
from loratune.files.paths import real_path, user_path
from loratune.tuning.configuration import FILE, check_named, named_metric, read_options, resumed_options
from loratune.tuning.options import RUNS, CommonOptions, TrainOptions, TuneOptions

Options = TypeVar("Options", bound=CommonOptions)


def merged(
    cls: type[Options],
    values: Mapping[str, Any],
    *,
    config: Path | None = None,
    from_config: Path | None = None,
    directory: Path | None = None,
) -> Options:
    """Another trainer's file, ours over it, the command line over both; on `--resume` below all what the run kept.

    Args:
        directory: a run directory named beside the options, which only `--resume` takes.

    Raises `InputError` where options are missing, all of them named, or where a file cannot be taken.
    """
    file = _checked(config, values, cls)
    given = _incoming(from_config) | file | dict(values)
    if directory is not None or given.get("resume"):
        given = _resumed(given, directory)
    given, known = named_metric(given, values), {each.name for each in fields(cls)}
    missing = [each.name for each in fields(cls) if each.default is MISSING and each.name not in given]
    if missing:
        raise _missing(missing, given)
    return cls(**{name: value for name, value in given.items() if name in known})


def _checked(path: Path | None, values: Mapping[str, Any], cls: type[CommonOptions]) -> dict[str, Any]:
    """Options of `--config`; a metric in it that is code must be named by the user too."""
    if path is None:
        return {}
    found = read_options(user_path(path), cls if cls is TrainOptions else TuneOptions)
    if "metric" in {each.name for each in fields(cls)}:
        check_named(found, values, path)
    return found


def _resumed(given: dict[str, Any], directory: Path | None) -> dict[str, Any]:
    """The options with all that the run directory has of the run; where they contradict it, its study refuses them."""
    out = given.get("out")
    if directory is not None:
        if not given.get("resume"):
            raise InputError(
                f"A run directory given beside options needs --resume, got {str(directory)!r} without it; add "
                "--resume, or name a new directory by --out."
            )
        if out is not None and real_path(out) != real_path(directory):
            raise InputError(
                f"--resume must continue one directory, got {str(directory)!r} and --out {out!r}; give one of them."
            )
        out = str(directory)
    out = RUNS if out is None else str(out)
    return resumed_options(user_path(out), {**given, "out": out})


def _missing(names: list[str], given: Mapping[str, Any]) -> InputError:
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in names)
    verb = "is" if len(names) == 1 else "are"
    if given.get("resume"):
        return InputError(
            f"{flags} {verb} required, as {given['out']!r} holds no {FILE} to take {'it' if verb == 'is' else 'them'} "
            "from; give the directory of a run, or the options that it was started with."
        )
    return InputError(
        f"{flags} {verb} required; give {'it' if verb == 'is' else 'them'}, or a --config that does."
    )


def _incoming(path: Path | None) -> dict[str, Any]:
    """Options of another trainer's file; what they are is printed on stderr."""
    if path is None:
        return {}
    from loratune.export.incoming import options_from

    found = options_from(user_path(path))
    print(printable(found.sentence), file=sys.stderr)
    return dict(found.options)
