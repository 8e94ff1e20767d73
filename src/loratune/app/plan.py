"""What `tune` would run, priced by a short measurement; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from tempfile import gettempdir
from time import monotonic
from typing import Literal

from loratune.app.watching import begin_loading, listening, watching
from loratune.metrics import Metric
from loratune.metrics.function import RowFunction
from loratune.tuning.devices import host_of, scratch_in
from loratune.tuning.experience import correct, gather, task_at_hand
from loratune.tuning.forecast import Forecast, expected_on_proxy, first_forecast, forecast
from loratune.tuning.options import SearchOptions, keyword_options
from loratune.tuning.proxy import check_sibling, of_proxy
from loratune.tuning.workbench import open_for_search
from loratune.values import ALL_LINEAR
from loratune.values.events import Phase, PhaseBegan, Tell, discard


def plan(
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
    on_event: Tell | None = None,
    progress: bool | None = None,
) -> Forecast:
    """What `tune` would run, priced by a short measurement; writes nothing. `loratune plan` with the same options.

    Args:
        model: Base model: a folder, a .gguf file, or a hub name.
        data, validation, test: Rows: a file (.jsonl, .json, .csv, .tsv, each with .gz too, .parquet), a folder, or a
            hub name; validation and test rows are split off `data` where they are not given.
        prompt_column, completion_column, template: How a prompt is made, where the columns' names do not say it; a
            template has {column} fields, {column?} where one may be empty: "Message: {text}\\nIntent:".
        max_length, train_rows, validation_rows, test_rows: Tokens of the longest row, and rows of each, at most.
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
        proxy: Smaller model of the same family: the search runs on it, and three learning rates around what it found on
            `model`.
        budget: "30m", "2h", "3x" (as long as three final runs) or "auto".
        strategy, metric, margin: How is searched, what decides (a name, "package.module:function", a function; None:
            "nll", of pairs "preference_accuracy"), and the loss of it that a cheaper choice may have.
        max_new_tokens: Generated tokens of a row at most: for metrics of generated text (by default those of the
            longest completion), and in the report's rows (at most 96).
        ranks, learning_rates, batch_sizes: Candidates, e.g. [4, 8, 16]; by default chosen from the data.
        betas: Candidates of preferences; by default the usual one, a third and three times as much.
        target_modules, variants: Adapted layers, e.g. ["q_proj", "v_proj"], by default every linear layer but the
            head; variants of LoRA that all trials are, e.g. ["rslora"].
        epochs, warmup_ratio: Of one full run: passes over the training rows ("auto": by the number of rows, then fewer
            and more are tried), and the share of the steps with a rising learning rate.
        regularise, tune_targets, tune_variants, layer_ranks, heal: More questions: dropout and decay even without
            over-fitting, which layers, other variants, a rank for each layer, cut adapters trained on for a little.
        patience, price_per_hour: When the final run stops, in evaluations without gain; of an hour of this machine.
        pack_size, recalibrate: Trials trained at once (by default what memory and device suit); whether the device's
            speed is measured again.
        devices, shard_base: Several of this machine, a process each: ["all"], GPUs such as [0, 1], or ["cpu", "cpu"];
            whether the base is spread over them.
        ray: Instead, a Ray cluster: "auto" or "HOST:PORT".
        on_event, progress: Called with each event (`loratune.values.events`); bars by tqdm, None: in notebooks.

    Raises `InputError` for wrong input; `ResourceError` where memory or device do not suffice.
    """
    options = locals()
    with listening(options.pop("on_event"), options.pop("progress")) as tell:
        return run_plan(SearchOptions(**keyword_options(options)), tell)


def run_plan(options: SearchOptions, tell: Tell = discard, *, started: float | None = None) -> Forecast:
    """`plan` with a subscriber of its events; `started` as in `tune.run_tune`.

    With a proxy the search on it is planned first, and the larger model's as if it found what is expected.
    """
    started = monotonic() if started is None else started
    proxy = None
    if options.proxy is not None:
        check_sibling(options)
        proxy = run_plan(of_proxy(options), tell, started=started)
        started = monotonic()
    begin_loading("plan", options, tell)
    scratch = scratch_in(Path(gettempdir()))
    host = host_of(options.devices, scratch, options.ray, sharded=options.shard_base)
    with open_for_search(options, host) as bench:
        tell(PhaseBegan(phase=Phase.CALIBRATING))
        calibration = bench.calibrate(options, monotonic() - started)
        if proxy is None:
            corrections = correct(task_at_hand(bench, options), gather(options))
            priced = first_forecast(
                bench, options, calibration, started=started, corrections=corrections, tell=tell
            )
        else:
            corrections = expected_on_proxy(str(options.proxy), proxy)
            priced = forecast(bench, options, calibration, started=started, corrections=corrections)
            priced = replace(priced, proxy=proxy)
        tell(priced.event(bench))
    return priced


def plan_command(options: SearchOptions, *, as_json: bool, started: float, json_lines: bool = False) -> None:
    """Print the plan, or with `as_json` the document."""
    with watching(as_json=as_json, json_lines=json_lines) as bus:
        priced = run_plan(options, bus, started=started)
    if as_json:
        print(dumps(priced.to_dict()))
