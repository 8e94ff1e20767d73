"""What `tune` would run, priced by a short measurement; nothing is written."""

from __future__ import annotations

from json import dumps
from time import monotonic
from typing import Any

from loratune.tuning.experience import correct, gather, task_at_hand
from loratune.tuning.forecast import Forecast
from loratune.tuning.noise import first_forecast
from loratune.tuning.options import SearchOptions, keyword_options
from loratune.tuning.watch import Quiet, Terminal, Watch
from loratune.tuning.workbench import open_workbench


def plan(**options: Any) -> Forecast:
    """The priced plan; the options are those of `loratune plan`."""
    return run_plan(SearchOptions(**keyword_options(options)), Quiet())


def run_plan(options: SearchOptions, watch: Watch, *, started: float | None = None) -> Forecast:
    """`plan` with something that watches; `started` as in `tune.run_tune`."""
    started = monotonic() if started is None else started
    watch.note("Reading data and model.")
    with open_workbench(
        options,
        targets=options.target_modules,
        ranks=options.ranks,
        epochs=options.epochs,
        metric=options.metric,
        surveyed=True,
    ) as bench:
        watch.note("Measuring a few steps to price the plan.")
        corrections = correct(task_at_hand(bench, options), gather(options))
        calibration = bench.calibrate(options)
        priced = first_forecast(
            bench, options, calibration, started=started, corrections=corrections, watch=watch
        )
        watch.plan(priced, bench)
    return priced


def plan_command(options: SearchOptions, *, as_json: bool, started: float) -> None:
    """Print the plan, or with `as_json` the document."""
    priced = run_plan(options, Terminal(as_json=as_json), started=started)
    if as_json:
        print(dumps(priced.to_dict()))
