"""What `tune` would run, priced by a short measurement; nothing is written."""

from __future__ import annotations

from json import dumps
from time import monotonic
from typing import Any

import loratune
from loratune.app.watching import watching
from loratune.tuning.experience import correct, gather, task_at_hand
from loratune.tuning.forecast import Forecast
from loratune.tuning.noise import first_forecast
from loratune.tuning.options import SearchOptions, keyword_options
from loratune.tuning.workbench import open_workbench
from loratune.values.events import Phase, PhaseBegan, Started, Tell, nobody


def plan(**options: Any) -> Forecast:
    """The priced plan; the options are those of `loratune plan`."""
    return run_plan(SearchOptions(**keyword_options(options)))


def run_plan(options: SearchOptions, tell: Tell = nobody, *, started: float | None = None) -> Forecast:
    """`plan` with someone who is told of events; `started` as in `tune.run_tune`."""
    started = monotonic() if started is None else started
    tell(Started(command="plan", model=options.model, data=options.data, version=loratune.__version__))
    tell(PhaseBegan(phase=Phase.LOADING))
    with open_workbench(
        options,
        targets=options.target_modules,
        ranks=options.ranks,
        epochs=options.epochs,
        metric=options.metric,
        surveyed=True,
    ) as bench:
        tell(PhaseBegan(phase=Phase.CALIBRATING))
        corrections = correct(task_at_hand(bench, options), gather(options))
        calibration = bench.calibrate(options)
        priced = first_forecast(
            bench, options, calibration, started=started, corrections=corrections, tell=tell
        )
        tell(priced.event(bench))
    return priced


def plan_command(options: SearchOptions, *, as_json: bool, started: float, json_lines: bool = False) -> None:
    """Print the plan, or with `as_json` the document."""
    with watching(as_json=as_json, json_lines=json_lines) as bus:
        priced = run_plan(options, bus, started=started)
    if as_json:
        print(dumps(priced.to_dict()))
