"""`--proxy`: the search runs on a smaller model of the family first, in a folder of the run, and is carried over.

That run is one of `tune` like any other, resumable, with an adapter and a report of its own. Which of its findings are
measured again on the larger model: `search/carried.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from loratune.errors import ModelError
from loratune.files.write import write_atomically
from loratune.model.profile import family_and_size
from loratune.model.tokenizer import load_tokenizer
from loratune.reporting.result import TuneResult
from loratune.runners.spec import model_cache
from loratune.study.record import PROXY
from loratune.tuning.configuration import FILE as TOML
from loratune.tuning.configuration import to_toml
from loratune.tuning.options import SearchOptions, TuneOptions
from loratune.values import Carried, HyperParameters
from loratune.values.events import Note, Tell

_SIZES = ("_moe", "_text")
"""Ends of transformers' names for parts and mixtures of one family."""
_TRIED = "The 3 small models\nwrote café, 12,345.60 and {json: [true]}: größer, 模型, naïve."

Options = TypeVar("Options", bound=SearchOptions)


def of_proxy(options: Options) -> Options:
    """The options of the search on the smaller model; of a run they have its folder."""
    assert options.proxy is not None
    own = replace(options, model=options.proxy, proxy=None)
    if not isinstance(own, TuneOptions):
        return own
    folder = options.directory / PROXY  # type: ignore[attr-defined]
    return replace(own, out=str(folder), resume=folder.exists())


def check_sibling(options: SearchOptions) -> None:
    """Raise `ModelError` where the proxy is no smaller model of the same family and tokenizer.

    From configurations and tokenizers alone, in seconds.
    """
    assert options.proxy is not None
    (family, size), (other, smaller) = (
        family_and_size(name, classifies=options.kind.has_answers) for name in (options.model, options.proxy)
    )
    if _plain(family) != _plain(other):
        raise ModelError(
            f"--proxy must be of the same family as --model, {options.proxy} is a {other} and {options.model} a "
            f"{family}; choose a smaller {_plain(family)}."
        )
    if smaller >= size:
        raise ModelError(
            f"--proxy must be smaller than --model, {options.proxy} has {smaller} parameters and {options.model} "
            f"{size}; choose a smaller one, or leave --proxy out."
        )
    ours, theirs = (
        load_tokenizer(name, cache=model_cache(), classifies=options.kind.has_answers)
        for name in (options.model, options.proxy)
    )
    if (
        ours(_TRIED).input_ids != theirs(_TRIED).input_ids
        or ours.get_vocab() != theirs.get_vocab()
        or ours.chat_template != theirs.chat_template
        or ours.eos_token_id != theirs.eos_token_id
    ):
        raise ModelError(
            f"--proxy must have the tokenizer and chat template of --model, those of {options.proxy} differ from "
            f"{options.model}'s, so that rows would be other tokens; choose another proxy."
        )


def begin_on_proxy(options: TuneOptions) -> None:
    """Write the options down before the study of the larger model is there: from now on the run can be resumed."""
    options.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(options.directory / TOML, to_toml(replace(options, resume=False)))


def carried(options: TuneOptions, found: TuneResult, *, settled: bool) -> Carried:
    """What a finished run on the proxy says of the larger model.

    The layers are those that were asked for, by the user's words for them, unless others were found.
    """
    assert options.proxy is not None
    values = {each.name: getattr(found.recommended, each.name) for each in fields(HyperParameters)}
    if not options.tune_targets:
        values["target_modules"] = options.target_modules
    return Carried(
        model=options.proxy,
        directory=str(found.directory),
        setting=HyperParameters(**values),
        trials=int(found.cost["trials"]),
        seconds=float(found.cost["seconds"]),
        settled=settled,
    )


def search_on_proxy(
    options: TuneOptions, run: Callable[[TuneOptions], tuple[TuneResult, int]], tell: Tell
) -> Carried:
    """What a whole run on the smaller model, or the rest of it, says of the larger one.

    `run` is `tune`, and gives its exit code too. Raises `ModelError` where the two do not belong together.
    """
    check_sibling(options)
    begin_on_proxy(options)
    own = of_proxy(options)
    tell(Note(text=f"The search runs on the proxy {own.model}, in {own.directory}."))
    found, code = run(own)
    result = carried(options, found, settled=code == 0)
    tell(Note(text=result.sentence))
    return result


def belongs_to(directory: Path) -> Path:
    """The run directory that a proxy's belongs to, by which it is resumed; any other one itself."""
    outer = directory.parent
    return outer if directory.name == PROXY and (outer / TOML).exists() else directory


def _plain(family: str) -> str:
    for end in _SIZES:
        family = family.removesuffix(end)
    return family
