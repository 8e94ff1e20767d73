"""A file of options to start from, with what the rows show in its comments. Loads torch only for a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

from loratune.data.overview import Overview, look
from loratune.data.sources import DataOptions
from loratune.errors import InputError
from loratune.files.paths import user_path
from loratune.files.write import write_atomically
from loratune.maths.laws import epochs_law
from loratune.metrics.names import PREFERENCE_NAMES
from loratune.reporting.screen import Screen
from loratune.tuning.configuration import ENDINGS, FILE, Setting, commented
from loratune.tuning.options import TuneOptions, data_options
from loratune.values import DataProfile

_NAMED = 10
"""Labels that are named with their rows."""
_RARE = 0.99
"""Share of the rows whose length is suggested as the longest, where the longest is twice as long and more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What the options file is made from."""

    model: str | None
    seen: Overview
    profile: DataProfile | None = None
    """What the rows look like as the model's tokens."""
    notes: tuple[str, ...] = field(default=())
    """How rows are read and split as tokens."""

    @property
    def train_rows(self) -> int:
        """Training rows without those split off, where a model's tokens have been split."""
        return self.seen.rows["train"] if self.profile is None else self.profile.rows

    def facts(self) -> Iterator[str]:
        """What was seen, a sentence each."""
        seen = self.seen
        rows = ", ".join(
            f"{count} {split} row{'' if count == 1 else 's'}" for split, count in seen.rows.items()
        )
        yield f"{rows}, columns {', '.join(seen.columns)}."
        yield from self.notes or (seen.description, *seen.notes)
        if seen.labels:
            yield _labels(seen)
        if self.profile is None:
            yield (
                f"Characters of a row: {seen.median_characters:.0f} in the median, at most {seen.longest_characters}."
            )
        else:
            yield (
                f"Tokens of a row: {self.profile.length_p50} in the median, {self.profile.length_p95} or fewer in "
                f"95 %, at most {self.profile.length_max}."
            )

    def suggested_length(self) -> int | None:
        """A maximum length in tokens: the longest row, or what 99 % have where few rows are far longer."""
        if self.profile is None:
            return None
        most = dict(self.profile.length_quantiles)[_RARE]
        return most if 2 * most <= self.profile.length_max else self.profile.length_max


def _labels(seen: Overview) -> str:
    named = ", ".join(f"{label} ({rows})" for label, rows in seen.labels.most_common(_NAMED))
    more = f" and {len(seen.labels) - _NAMED} more" if len(seen.labels) > _NAMED else ""
    return f"{len(seen.labels)} labels with their rows: {named}{more}."


def start(*, model: str | None, **data: Any) -> Start:
    """Read all rows, `data` being options of them. Raises `InputError` for data or a tokenizer that cannot be used."""
    seen = look(data_options(TuneOptions(model=model or "M", **data)))
    if model is None:
        return Start(model=None, seen=seen)
    profile, notes = _as_tokens(model, seen.options)
    return Start(model=model, seen=seen, profile=profile, notes=notes)


def _as_tokens(model: str, options: DataOptions) -> tuple[DataProfile, tuple[str, ...]]:
    from loratune.model.tokenizer import load_tokenizer
    from loratune.runners.spec import model_cache, read_rows

    tokenizer = load_tokenizer(model, cache=model_cache())
    with TemporaryDirectory(prefix="loratune-") as folder:
        data = read_rows(model, options, tokenizer, Path(folder))
        return data.profile, data.notes


def file_of(found: Start, path: Path) -> str:
    """The file's text, TOML or by its name YAML."""
    return commented([_head(path), *_inputs(found), *_search(found)], path)


Part = tuple[list[str], list[Setting]]


def _head(path: Path) -> Part:
    file = quote(str(path))
    return [
        f"What would run, and how long: loratune plan --config {file}",
        f"Then: loratune tune --config {file} --out runs/mine",
        "Options of the command line go before those of this file; `loratune tune --help` has all of them.",
    ], []


def _inputs(found: Start) -> Iterator[Part]:
    seen = found.seen
    model = Setting("model", found.model or "HuggingFaceTB/SmolLM2-135M-Instruct", found.model is not None)
    yield ["The base model: a folder, a .gguf file or a hub name."], [model]
    split_off = [name for name in ("validation", "test") if name not in seen.rows]
    given = [f"Split off, unless files are named: {' and '.join(split_off)}."] if split_off else []
    yield [*found.facts(), *given], [Setting("data", seen.options.data)]
    if seen.options.kind.has_pairs:
        yield (
            [
                "What the rows teach: the preferred of two answers, by DPO; objective orpo or simpo for another way."
            ],
            [
                Setting("task", seen.options.task),
                Setting("objective", seen.options.kind.objectives[0], False),
            ],
        )
    if settings := list(_columns(seen)):
        yield [_of_columns(seen)], settings
    if (length := found.suggested_length()) is not None:
        yield (
            [
                "Tokens of the longest row. Without it: what the rows need, at most 2048. Longer rows lose the start "
                "of their prompt, are split (plain text) or left out (conversations), each with a count.",
            ],
            [Setting("max_length", length, False)],
        )


def _of_columns(seen: Overview) -> str:
    if seen.guessed:
        return "The columns' names do not say what is what: guessed by their values. Change what is wrong."
    if any(setting.stands for setting in _columns(seen)):
        return "As the columns are named."
    return "Read so by the columns' names. To read them otherwise:"


def _columns(seen: Overview) -> Iterator[Setting]:
    """The columns that are named; as comments, the names that would read other rows in the same way."""
    given = seen.options
    if given.prompt_column is not None:
        yield Setting("prompt_column", given.prompt_column)
    if seen.completion is not None and (given.completion_column is not None or seen.template is not None):
        yield Setting("completion_column", seen.completion, given.completion_column is not None)
    if given.template is not None:
        yield Setting("template", given.template)
    elif seen.template is not None:
        yield Setting("template", seen.template, False)


def _search(found: Start) -> Iterator[Part]:
    yield _metric(found)
    usual = epochs_law(found.train_rows).value
    yield (
        [
            f"Passes over the training rows: a number, or auto, which starts from {usual:g} for this number of rows.",
        ],
        [Setting("epochs", "auto")],
    )
    yield (
        [
            "Time for the search: 30m, 2h, 5x (that of five final runs), or auto (5x, on a GPU up to a minute in all).",
        ],
        [Setting("budget", "auto")],
    )
    yield (
        ["Candidates; without them they follow from the data."],
        [
            Setting("ranks", (4, 16, 64), False),
            Setting("learning_rates", (1e-4, 3e-4, 1e-3), False),
        ],
    )


def _metric(found: Start) -> Part:
    if found.seen.options.kind.has_pairs:
        usual, *others = PREFERENCE_NAMES
        return [f"What decides: {usual}, or {' or '.join(others)}."], [Setting("metric", usual)]
    labelled = "; accuracy and f1 too, as there are labels" if found.seen.labels else ""
    return [
        "What decides: nll, which separates models best on few rows, perplexity or exact_match"
        f"{labelled}; or a function of yours, package.module:function.",
    ], [Setting("metric", "nll")]


def init_command(*, model: str | None, out: Path, **data: Any) -> None:
    """Write the file and print what was seen; `data` as in `start`.

    Raises `InputError`, also where the file is there already.
    """
    path = user_path(out)
    _check_new(path)
    found = start(model=model, **data)
    text = file_of(found, path)
    _check_new(path)  # reading the rows may have taken long
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    console = Screen()
    facts = list(found.facts())
    if found.seen.guessed:
        named = ", ".join(f"{each.name} {each.value!r}" for each in _columns(found.seen) if each.stands)
        facts.append(
            f"Guessed, as the columns' names do not say it: {named}; where that is wrong, name "
            f"another of {', '.join(found.seen.columns)} in {out}."
        )
    for line in (*facts, f"Written: {path}"):
        console.print(line, markup=False, highlight=False)
    wanted = "" if model else " --model M"
    next_ = f"Next: loratune plan --config {quote(str(out))}{wanted}"
    console.print(next_, markup=False, highlight=False, soft_wrap=True)


def _check_new(path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise InputError(
            f"--out must end in {', '.join(ENDINGS)}, got {str(path)!r}; give for example --out {FILE}."
        )
    if os.path.lexists(path):
        raise InputError(
            f"--out must be a new file, but {str(path)!r} is there already; give another name by --out."
        )
