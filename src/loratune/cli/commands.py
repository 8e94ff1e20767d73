"""The commands: each parses its options and then imports and calls one function of `loratune.app`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal

import typer

from loratune import __version__
from loratune.cli.generate import Command, options_of
from loratune.cli.given import merged
from loratune.files.paths import user_path
from loratune.tuning.configuration import FILE
from loratune.tuning.options import RecommendOptions, SearchOptions, TrainOptions, TuneOptions

app = typer.Typer(
    name="loratune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Finds the LoRA hyper-parameters for your base model and your data, proves the choice, and hands over "
    "the trained adapter in PEFT's format.\n\nStart with `loratune demo`, then "
    "`loratune plan --model M --data D` (what would run, how long) and `loratune tune --model M --data D`.",
)

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout and nothing else there.",
        metavar="",
        show_default=False,
    ),
]
JsonLines = Annotated[
    bool,
    typer.Option(
        "--json-lines",
        help="Print each event as one JSON object a line on stdout, and nothing else there; "
        "with --json on stderr, in place of the progress.",
        metavar="",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A loratune.toml (or .yaml) with options; those of the command line go before it.",
    ),
]

FromConfig = Annotated[
    Path | None,
    typer.Option(
        help="A TRL, Axolotl or LLaMA-Factory file that names model, data, lengths, targets and epochs; "
        "other options go before it."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"loratune {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version.",
            metavar="",
            show_default=False,
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    """Options before the command."""


_FROM_FILE = frozenset({"model", "data"})
"""Options that a file may give."""
command = partial(app.command, cls=Command)


@command()
@options_of(TuneOptions, optional=_FROM_FILE)
def tune(
    *,
    values: dict[str, Any],
    directory: Annotated[
        Path | None,
        typer.Argument(help="Run directory that --resume continues: all options are taken from it."),
    ] = None,
    config: Config = None,
    from_config: FromConfig = None,
    json: Json = False,
    json_lines: JsonLines = False,
) -> None:
    """Search, decide, train the final adapter, and write it with the evidence.

    Prints the plan first, then progress, then the recommendation. The run directory receives `adapter/`
    (PEFT's format), `result.json`, `report.html`, `study.db` (Optuna) and `loratune.toml`. Interrupt it at
    any time and go on with `--resume`, which needs nothing but the directory.

    Example: `loratune tune --model HuggingFaceTB/SmolLM2-135M-Instruct --data train.jsonl --budget 30m`
    """
    started = monotonic()  # loading torch takes seconds of a budget in time, too
    options = merged(TuneOptions, values, config=config, from_config=from_config, directory=directory)
    if not options.devices:
        from loratune.model.device import wake

        wake(options.device)  # while the rest is imported
    from loratune.app.tune import tune_command

    raise typer.Exit(tune_command(options, as_json=json, json_lines=json_lines, started=started))


@command()
@options_of(SearchOptions, optional=_FROM_FILE)
def plan(
    *,
    values: dict[str, Any],
    config: Config = None,
    from_config: FromConfig = None,
    json: Json = False,
    json_lines: JsonLines = False,
) -> None:
    """What tune would run: stages, trials, packs, time and memory, after a short calibration."""
    started = monotonic()
    options = merged(SearchOptions, values, config=config, from_config=from_config)
    from loratune.app.plan import plan_command

    plan_command(options, as_json=json, json_lines=json_lines, started=started)


@command()
def init(
    data: Annotated[
        str,
        typer.Argument(
            help="Training data: .jsonl, .json, .csv, .tsv (.gz too), .parquet, a folder, or a hub name."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Base model, to know the rows' lengths in its tokens.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column that holds the prompt.")] = None,
    completion_column: Annotated[
        str | None, typer.Option(help="Column that holds the completion or label.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt template with {column} fields, as tune takes it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The new file: .toml, .yaml or .yml.")] = Path(FILE),
) -> None:
    """Write a commented file of options to start from, for --config, from what the rows show.

    Example: `loratune init train.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct`
    """
    from loratune.app.init import init_command

    init_command(
        model=model,
        out=out,
        data=data,
        prompt_column=prompt_column,
        completion_column=completion_column,
        template=template,
    )


@command()
@options_of(RecommendOptions, optional=_FROM_FILE)
def recommend(*, values: dict[str, Any], config: Config = None, json: Json = False) -> None:
    """The prior in seconds: what data and model suggest before anything is trained, with its uncertainty."""
    options = merged(RecommendOptions, values, config=config)
    from loratune.app.recommend import recommend_command

    recommend_command(options, as_json=json)


ledgers = typer.Typer(
    invoke_without_command=True,
    help="Your finished studies, from which `tune` and `recommend` learn; $LORATUNE_LEDGER moves the file.",
)
app.add_typer(ledgers, name="ledger")
Key = Annotated[str, typer.Argument(help="As `loratune ledger list` shows it.")]
Team = Annotated[
    str | None,
    typer.Option("--ledger", help="A team's ledger, by its URL; default: your own.", show_default=False),
]


@ledgers.callback()
def ledger(context: typer.Context, json: Json = False) -> None:
    """Your finished studies, from which `tune` and `recommend` learn; $LORATUNE_LEDGER moves the file.

    Without a command of its own: as `loratune ledger list`.
    """
    if context.invoked_subcommand is None:
        ledger_list(None, json)


@ledgers.command("list", cls=Command)
def ledger_list(ledger: Team = None, json: Json = False) -> None:
    """All studies, the oldest first, with their keys."""
    from loratune.app.ledger import list_command

    list_command(ledger, as_json=json)


@ledgers.command("show", cls=Command)
def ledger_show(key: Key, ledger: Team = None, json: Json = False) -> None:
    """All that is known of one study."""
    from loratune.app.ledger import show_command

    show_command(key, ledger, as_json=json)


@ledgers.command("remove", cls=Command)
def ledger_remove(
    keys: Annotated[list[str], typer.Argument(help="As `loratune ledger list` shows them.")],
    ledger: Team = None,
) -> None:
    """Take studies out of the ledger, damaged entries too: all that are named, or none."""
    from loratune.app.ledger import remove_command

    remove_command(keys, ledger)


@command()
@options_of(TrainOptions, optional=_FROM_FILE)
def train(
    *, values: dict[str, Any], config: Config = None, json: Json = False, json_lines: JsonLines = False
) -> None:
    """One adapter with given hyper-parameters and early stopping on the validation NLL."""
    options = merged(TrainOptions, values, config=config)
    from loratune.app.train import train_command

    train_command(options, as_json=json, json_lines=json_lines)


@command()
def worker(
    directory: Annotated[
        Path | None, typer.Argument(help="The run directory, on a file system that driver and workers share.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Storage URL of the run, where that is to say which directory it is.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    device_memory: Annotated[
        str | None, typer.Option(help="Memory to use at most, e.g. 24GiB; default: the device's.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="The run's metric, where it is code of your own: it is only run if named."),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            help="How long to wait for a run that has not begun (default: not at all) and for one whose driver is "
            "silent (10m), e.g. 30m."
        ),
    ] = None,
) -> None:
    """Train trials of a run that was begun with --devices workers, here or on any machine that sees its directory.

    Any number of workers, which come and go in any order; what one leaves unfinished others train. Ends when the run is
    complete.

    Example: `loratune worker runs/mine`
    """
    from loratune.app.worker import worker_command

    worker_command(
        directory, storage=storage, device=device, device_memory=device_memory, metric=metric, wait=wait
    )


@command()
def memory(
    model: Annotated[str, typer.Option(help="Model folder, config.json, .gguf file or hub name.")],
    rank: Annotated[int, typer.Option(help="LoRA rank of every trial.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Rows per step of every trial.")] = 8,
    max_length: Annotated[int, typer.Option(help="Tokens of the longest row.")] = 512,
    trials: Annotated[int, typer.Option(help="Trials trained at once.")] = 1,
    target_modules: Annotated[str, typer.Option(help="Layers to adapt, separated by commas.")] = "all-linear",
    dtype: Annotated[str, typer.Option(help="Base weights: bfloat16, float32 or nf4 (4 bits).")] = "bfloat16",
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda; auto with --device-memory means a GPU.")
    ] = "auto",
    device_memory: Annotated[
        str | None, typer.Option(help="What to fit into, e.g. 24GiB; default: this device's.")
    ] = None,
    recompute: Annotated[
        str,
        typer.Option(
            help="Layers whose activations are computed again: auto (as few as let it fit), none, all or a number."
        ),
    ] = "auto",
    task: Annotated[
        str, typer.Option(help="causal, or classification: by a trained head, for encoders too.")
    ] = "causal",
    json: Json = False,
) -> None:
    """What a pack needs, part by part, on which card it fits, and what fits here; reads a config alone, no weights.

    Exit code 4 where nothing fits.
    """
    from loratune.app.memory import memory_command

    code = memory_command(
        model=model,
        rank=rank,
        batch_size=batch_size,
        max_length=max_length,
        trials=trials,
        target_modules=tuple(name.strip() for name in target_modules.split(",") if name.strip()),
        dtype=dtype,
        device=device,
        device_memory=device_memory,
        recompute=recompute,
        task=task,
        as_json=json,
    )
    raise typer.Exit(code)


@command()
def report(
    directory: Annotated[Path, typer.Argument(help="A run directory of tune.")],
    storage: Annotated[
        str | None, typer.Option(help="Storage URL of the run; default: study.db or that of loratune.toml.")
    ] = None,
    form: Annotated[
        Literal["html", "markdown", "json"],
        typer.Option("--format", help="html writes report.html; markdown and json go to standard output."),
    ] = "html",
) -> None:
    """Write report.html again and print the summary of a finished run; or print it as Markdown or JSON."""
    from loratune.app.report import report_command

    report_command(directory, storage, form)


@command()
def watch(
    directories: Annotated[list[Path], typer.Argument(help="Run directories of tune, side by side.")],
    port: Annotated[int, typer.Option(help="On this machine alone; 0 takes any that is free.")] = 8474,
) -> None:
    """A live page of runs in a browser: learning curves, leaderboard, evidence, time left, and a button to stop.

    Works while a run goes on and after it. Stopping ends the search with what is known: the final adapter is
    trained and everything written, as where a budget in time runs out.

    Example: `loratune watch runs/mine`
    """
    from loratune.app.live_page import watch_command

    watch_command(directories, port)


RunDirectory = Annotated[Path, typer.Argument(help="A run directory of tune or train.")]
Base = Annotated[str | None, typer.Option("--model", help="The base model, where it has moved since.")]


@command()
def generate(
    directory: RunDirectory,
    text: Annotated[
        str, typer.Argument(help="What to complete; a JSON object of fields where the template has several.")
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Longest completion in tokens.")] = 256,
    model: Base = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Json = False,
) -> None:
    """Complete a text with the adapter of a finished run, in the prompt that it was trained with."""
    from loratune.app.adapted import generate_command

    generate_command(directory, text, max_new_tokens=max_new_tokens, model=model, device=device, as_json=json)


@command()
def merge(
    directory: RunDirectory,
    out: Annotated[Path, typer.Option(help="Folder for the merged model; new or empty.")],
    model: Base = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Write base model and adapter as one transformers model (safetensors)."""
    from loratune.app.adapted import merge_command

    merge_command(directory, out, model=model, device=device)


@command()
def export(
    directory: RunDirectory,
    to: Annotated[str, typer.Option(help="peft, transformers, trl, axolotl, llamafactory, unsloth or mlx.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files, new or empty; default: export/ in the run.")
    ] = None,
    model: Base = None,
    json: Json = False,
) -> None:
    """Files that repeat a finished run in another trainer: configuration, rows, and a script where needed.

    Example: `loratune export runs/mine --to trl`
    """
    from loratune.app.export import export_command

    export_command(directory, to=to, out=out, model=model, as_json=json)


@command()
def selfcheck(
    model: Annotated[str, typer.Option(help="Base model: a folder, a .gguf file, or a hub name.")],
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float64 or nf4 (4 bits).")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    steps: Annotated[int, typer.Option(help="Optimiser steps to compare.")] = 8,
    json: Json = False,
) -> None:
    """Train a mixed pack and plain PEFT side by side on this model, and print how far they differ."""
    from loratune.app.selfcheck import selfcheck_command

    raise typer.Exit(selfcheck_command(model=model, dtype=dtype, device=device, steps=steps, as_json=json))


@command()
def doctor(json: Json = False) -> None:
    """Versions, device, memory and processor features that matter here."""
    from loratune.app.doctor import doctor_command

    doctor_command(as_json=json)


@command()
def demo(
    out: Annotated[str, typer.Option(help="Run directory.")] = "runs/demo",
    fresh: Annotated[bool, typer.Option(help="Delete an earlier demo first.", metavar="")] = True,
) -> None:
    """Tune a real 135M model on real news data on this machine: about ten minutes on two cores."""
    from loratune.app.demo import demo_command

    raise typer.Exit(demo_command(user_path(out), fresh=fresh))
