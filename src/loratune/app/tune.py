"""The main job: search, decide, train the final adapter, write the results. Resumable at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Literal

from loratune.app.report import print_answer
from loratune.app.watching import begin_loading, listening, tracking, watching
from loratune.files.lock import FolderLock, check_free, forget_stop
from loratune.files.paths import user_path
from loratune.metrics import Metric
from loratune.metrics.function import RowFunction
from loratune.reporting.result import TuneResult, load_result
from loratune.runners.engines import Host
from loratune.study.events import EventLog
from loratune.trackers import make_tracker
from loratune.tuning.configuration import resumed_options
from loratune.tuning.devices import host_of, remove_leftovers, scratch_in
from loratune.tuning.job import CLOCK_CUT, Job
from loratune.tuning.options import TuneOptions, keyword_options
from loratune.tuning.proxy import search_on_proxy
from loratune.tuning.resumption import (
    begin,
    find_study,
    has_carried,
    is_finished,
    kept_format,
    open_study,
    price,
    resumable,
)
from loratune.tuning.timeline import Occupancy, Timeline
from loratune.tuning.workbench import open_for_search
from loratune.values import ALL_LINEAR
from loratune.values.events import Bus, Event, Finished, Note, Tell, discard

__all__ = ["CLOCK_CUT", "resume", "run_tune", "tune", "tune_command"]


def tune(
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
    proxy: str | Path | None = None,
    budget: str = "auto",
    strategy: str = "evidence",
    metric: str | Metric | RowFunction | None = None,
    margin: float | None = None,
    max_new_tokens: int | None = None,
    ranks: Sequence[int] = (),
    learning_rates: Sequence[float] = (),
    batch_sizes: Sequence[int] = (),
    betas: Sequence[float] = (),
    target_modules: Sequence[str] = ALL_LINEAR,
    epochs: float | Literal["auto"] = "auto",
    warmup_ratio: float = 0.05,
    variants: Sequence[str] = (),
    regularise: bool = False,
    tune_targets: bool = False,
    tune_variants: Sequence[str] = (),
    layer_ranks: bool = False,
    heal: bool = False,
    patience: int = 3,
    price_per_hour: float | None = None,
    pack_size: int | None = None,
    recalibrate: bool = False,
    devices: Sequence[str | int] = (),
    shard_base: bool = False,
    ray: str | None = None,
    out: str | Path = "runs/loratune",
    storage: str | None = None,
    resume: bool = False,
    hash_weights: bool = False,
    report_to: Sequence[str] = (),
    on_event: Tell | None = None,
    progress: bool | None = None,
) -> TuneResult:
    """Search, decide, train and write everything to `out`; `loratune tune` with the same options.

    Args:
        model: Base model: a folder, a .gguf file, or a hub name.
        data, validation, test: Rows: a file (.jsonl, .json, .csv, .tsv, each with .gz too, .parquet), a folder, or a
            hub name; validation and test rows are split off `data` where they are not given.
        prompt_column, completion_column, template: How a prompt is made, where the columns' names do not say it; a
            template has {column} fields, {column?} where one may be empty: "Message: {text}\\nIntent:".
        max_length, train_rows, validation_rows, test_rows, seed: Tokens of a row, rows of each at most; seed of all.
        task, objective: "causal" (completions are learnt), "classification" (labels or numbers, by a trained head), or
            "preference" (pairs of prompt, chosen and rejected) by "dpo", "orpo" or "simpo".
        dtype, device, device_memory: How the base is held ("auto", "float32", "bfloat16"), where ("auto", "cpu",
            "cuda", "cuda:N"), and the memory to plan with ("24GiB"; by default the device's).
        recompute: Layers that are computed again on the way back, to save memory: "auto", "none", "all" or a number.
        from_study: Run directory of an old study whose results this one starts from, e.g. of another base model.
        ledger, no_ledger: Keys of the ledger's entries to learn from (default: all of about this size), and a team's
            ledger by its URL; neither learn from it nor write into it.
        proxy, budget: Smaller model of the family, on which the search runs instead; "30m", "2h", "3x" (as long
            as three final runs) or "auto".
        strategy, metric, margin: How is searched, what decides (a name, "package.module:function", a function; None:
            "nll", of pairs "preference_accuracy"), and the loss of it that a cheaper choice may have.
        max_new_tokens: Generated tokens of a row at most: for metrics of generated text (by default those of the
            longest completion), and in the report's rows (at most 96).
        ranks, learning_rates, batch_sizes, betas: Candidates, e.g. [4, 8, 16]; by default chosen from the data.
        target_modules, variants: Adapted layers, e.g. ["q_proj", "v_proj"], by default every linear layer but the
            head; variants of LoRA that all trials are, e.g. ["rslora"].
        epochs, warmup_ratio: Of one full run: passes over the training rows ("auto": by the number of rows, then fewer
            and more are tried), and the share of the steps with a rising learning rate.
        regularise, tune_targets, tune_variants, layer_ranks, heal: More questions: dropout and decay even without
            over-fitting, which layers, other variants, a rank for each layer, cut adapters trained on for a little.
        patience, price_per_hour: When the final run stops, in evaluations without gain; of an hour of this machine.
        pack_size, recalibrate, devices, shard_base, ray: Trials at once (default: what suits); whether to measure the
            speed again; where: ["all"], [0, 1] or ["workers"]; the base spread over these; Ray's "auto", HOST:PORT.
        out, storage, report_to: Run directory; Optuna's storage URL where the study is not in it (study.db); trackers.
        resume, hash_weights: Go on with the study in `out` (see `resume`), comparing every byte of the weights.
        on_event, progress: Called with each event (`loratune.values.events`); bars by tqdm, None: in notebooks.

    Returns what `result.json` holds. Raises `InputError` for wrong input, before anything is written;
    `ResourceError` where memory or device do not suffice.
    """
    options = locals()
    with listening(options.pop("on_event"), options.pop("progress")) as tell:
        return run_tune(TuneOptions(**keyword_options(options)), tell)[0]


def resume(
    directory: str | Path,
    *,
    budget: str | None = None,
    storage: str | None = None,
    metric: str | Metric | RowFunction | None = None,
    on_event: Tell | None = None,
    progress: bool | None = None,
) -> TuneResult:
    """Resume a run of `tune`; finished trials are not trained again.

    All options are those that the run was started with, as its directory has them.

    Args:
        directory: Its `out`.
        budget: Another one, for a run that is to search on.
        storage: Its URL, where that has a password, which is not written down.
        metric: That of the run, where it is code of your own, which is only run if you name it.
        on_event, progress: Called with each event (`loratune.values.events`); bars by tqdm, None: in notebooks.

    Raises `InputError` where there is no such run, or an option is not that of the run.
    """
    given = {"budget": budget, "storage": storage, "metric": metric, "out": directory, "resume": True}
    known = {name: value for name, value in given.items() if value is not None}
    options = resumed_options(user_path(directory), keyword_options(known))
    with listening(on_event, progress) as tell:
        return run_tune(TuneOptions(**options), tell)[0]


def run_tune(
    options: TuneOptions, tell: Tell = discard, *, started: float | None = None, host: Host | None = None
) -> tuple[TuneResult, int]:
    """`tune` with a subscriber of its events; also the exit code (3 where the clock cut the search).

    `started`: `time.monotonic()` as the user's clock began to run, if it was before now. `host` has the engines, by
    default as --devices says.
    """
    started = monotonic() if started is None else started
    scratch = scratch_in(options.directory)
    if host is None:
        host = host_of(options.devices, scratch, options.ray, sharded=options.shard_base)
    trackers = {name: make_tracker(name) for name in options.report_to}
    existing = find_study(options)
    if existing is not None and is_finished(existing, options):
        tell(Note(text=f"{options.directory} is complete; nothing to do."))
        return load_result(options.directory), 0
    if existing is not None:
        check_free(options.directory)
        forget_stop(options.directory)
    carried = None
    if options.proxy is not None and not has_carried(existing):
        carried = search_on_proxy(options, partial(run_tune, tell=tell), tell)
        started = monotonic()  # the cost of the proxy is its own run's
    with EventLog() as log, FolderLock(options.directory) as lock:
        timeline = Timeline(started=started)
        occupancy = Occupancy(started=started)
        tell = bus = Bus(log, timeline, occupancy, tell)
        with ExitStack() as stack:
            stack.enter_context(tracking(options, trackers, bus))
            directory, resumed = str(options.directory), existing is not None
            begin_loading("tune", options, tell, directory=directory, resumed=resumed)
            kept = None if existing is None else kept_format(existing)
            bench = stack.enter_context(open_for_search(options, host, weight_format=kept))
            study = open_study(options, bench, lock, tell) if existing is not None else None
            priced = price(options, bench, study, started, tell, carried)
            tell(priced.event(bench))
            study = study or open_study(options, bench, lock, tell)
            remove_leftovers(scratch)
            begin(study, options, priced)
            log.open(options.directory)
            job = Job(
                options=options,
                bench=bench,
                priced=priced,
                study=study,
                tell=tell,
                started=started,
                timeline=timeline,
                occupancy=occupancy,
            )
            with closing(study), resumable(options, job.keep_costs):
                return job.run()


def tune_command(options: TuneOptions, *, as_json: bool, started: float, json_lines: bool = False) -> int:
    """Run with progress on stderr; the summary, or with `as_json` the document, on stdout."""
    ends: list[Event] = []
    with watching(as_json=as_json, json_lines=json_lines) as bus:
        bus.subscribe(lambda event: ends.append(event) if isinstance(event, Finished) else None)
        _, code = run_tune(options, bus, started=started)
    if as_json:
        print((options.directory / "result.json").read_text(encoding="utf-8"), end="")
    elif ends and not json_lines:
        print_answer(options.directory, options.storage)
    return code
