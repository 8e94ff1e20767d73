"""The prior in seconds: profile and closed-form recommendation; with a probe, a minute or two of measurement."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path

from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_probe, print_profile, print_recommendation, print_survey
from loratune.tuning.options import RecommendOptions, keyword_options
from loratune.tuning.recommendation import Recommended, recommended


def recommend(
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
    from_study: str | Path | None = None,
    ledger: Sequence[str] = (),
    no_ledger: bool = False,
    probe: bool = False,
) -> Recommended:
    """Rank, alpha, learning rate, batch size and epochs to expect, each with its range and reason.

    `loratune recommend` with the same options; trains nothing but a probe where that is asked for.

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
        from_study: Run directory of an old study whose results this one starts from, e.g. of another base model.
        ledger, no_ledger: Keys of the ledger's entries to learn from, whatever their size (by default all of about
            this size); neither learn from it nor write into it.
        probe: Measure for one or two minutes: gradient noise, a learning-rate test, bits absorbed.

    Raises `InputError` for wrong input.
    """
    options = locals()
    return recommended(RecommendOptions(**keyword_options(options)))


def recommend_command(options: RecommendOptions, *, as_json: bool) -> None:
    """Print profile and prior, or the document."""
    found = recommended(options)
    if as_json:
        print(dumps(found.to_dict()))
        return
    console = Screen()
    print_profile(console, found.data, found.model)
    for note in found.data_notes:
        console.print(f"– {note}", markup=False, highlight=False)
    print_survey(console, found.data)
    console.print()
    if found.probe is not None:
        print_probe(console, found.probe)
        console.print()
    print_recommendation(
        console, found.recommendation, before=found.without_probe, guide=found.guide, notes=found.notes
    )
