"""The main job: search, decide, train the final adapter, write the results. Resumable at any moment."""

from __future__ import annotations

from contextlib import closing
from time import monotonic
from typing import Any

import loratune
from loratune.app.report import print_answer
from loratune.app.watching import watching
from loratune.files.lock import FolderLock, check_free
from loratune.files.stop import forget_stop
from loratune.reporting.result import TuneResult, load_result
from loratune.study.events import EventLog
from loratune.tuning.job import CLOCK_CUT, Job
from loratune.tuning.lessons import LearningPlanner
from loratune.tuning.occupancy import Occupancy
from loratune.tuning.options import TuneOptions, keyword_options
from loratune.tuning.resumption import begin, find_study, is_finished, open_study, price, resumable
from loratune.tuning.timeline import Timeline
from loratune.tuning.workbench import open_workbench
from loratune.values.events import Bus, Event, Finished, Note, Phase, PhaseBegan, Started, Tell, nobody

__all__ = ["CLOCK_CUT", "run_tune", "tune", "tune_command"]


def tune(**options: Any) -> TuneResult:
    """Search, decide, train and write everything to `out`; the options are those of `loratune tune`.

    Returns what `result.json` holds. Raises `InputError` for wrong input, before anything is written;
    `ResourceError` where memory or device do not suffice.
    """
    result, _ = run_tune(TuneOptions(**keyword_options(options)))
    return result


def run_tune(
    options: TuneOptions, tell: Tell = nobody, *, started: float | None = None
) -> tuple[TuneResult, int]:
    """`tune` with someone who is told of events; also the exit code (3 where the clock cut the search).

    `started`: `time.monotonic()` as the user's clock began to run, if it was before now.
    """
    started = monotonic() if started is None else started
    existing = find_study(options)
    if existing is not None and is_finished(existing, options):
        tell(Note(text=f"{options.directory} is complete; nothing to do."))
        return load_result(options.directory), 0
    if existing is not None:
        check_free(options.directory)
        forget_stop(options.directory)
    with EventLog() as log, FolderLock(options.directory) as lock:
        timeline = Timeline(started=started)
        occupancy = Occupancy(started=started)
        tell = Bus(log, timeline, occupancy, tell)
        tell(_started(options, resumed=existing is not None))
        tell(PhaseBegan(phase=Phase.LOADING))
        with open_workbench(
            options,
            targets=options.target_modules,
            ranks=options.ranks,
            epochs=options.epochs,
            metric=options.metric,
            surveyed=True,
        ) as bench:
            study = open_study(options, bench, lock, tell) if existing is not None else None
            priced = price(options, bench, study, started, tell)
            tell(priced.event(bench))
            study = study or open_study(options, bench, lock, tell)
            begin(study, options, priced)
            log.open(options.directory)
            planner = LearningPlanner(
                study=study, planner=priced.planner, calibration=priced.calibration, tell=tell
            )
            job = Job(
                options=options,
                bench=bench.calibrated(priced.calibration).hearing(planner.learn),
                priced=priced,
                planner=planner,
                study=study,
                tell=tell,
                started=started,
                timeline=timeline,
                occupancy=occupancy,
            )
            with closing(study), resumable(options, job.keep_costs):
                return job.run()


def _started(options: TuneOptions, *, resumed: bool) -> Started:
    return Started(
        command="tune",
        model=options.model,
        data=options.data,
        directory=str(options.directory),
        resumed=resumed,
        version=loratune.__version__,
    )


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
