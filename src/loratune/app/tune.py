"""The main job: search, decide, train the final adapter, write the results. Resumable at any moment."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from loratune.app.forecast import Forecast, calibrate, forecast
from loratune.app.options import SearchOptions, TuneOptions, keyword_options, to_toml
from loratune.app.outcome import fingerprint, peak_memory, run_facts, write_report
from loratune.app.watch import Quiet, Watch
from loratune.app.workbench import Workbench, check_out, open_workbench
from loratune.errors import Interrupted
from loratune.lora.peft_io import save_adapter
from loratune.reporting.facts import RunCost
from loratune.reporting.result import TuneResult, load_result, write_atomically, write_result
from loratune.reporting.stored import to_stored
from loratune.run.budget import Budget
from loratune.run.calibration import Calibration
from loratune.run.final import Final, FinalRunner
from loratune.run.local import LocalRunner
from loratune.study import Study
from loratune.values import Decision, Stage, TrialResult

CLOCK_CUT = 3
_FINAL_RESERVE = 1.15
"""Share of the predicted final run that the clock keeps free."""


def tune(**options: Any) -> TuneResult:
    """Search, decide, train and write everything to `out`; the options are those of `loratune tune`.

    Returns what `result.json` holds. Raises `InputError` for wrong input, before anything is written;
    `ResourceError` where memory or device do not suffice.
    """
    result, _ = run_tune(TuneOptions(**keyword_options(options)), Quiet())
    return result


def run_tune(options: TuneOptions, watch: Watch) -> tuple[TuneResult, int]:
    """`tune` with something that watches; also the exit code (3 where the clock cut the search)."""
    started = monotonic()
    if finished := _finished(options):
        watch.note(f"{options.directory} is complete; nothing to do.")
        return finished, 0
    watch.note("Reading data and model.")
    with (
        open_workbench(
            options,
            targets=options.target_modules,
            ranks=options.ranks,
            epochs=options.epochs,
            metric=options.metric,
        ) as bench,
        watch,
    ):
        study = _open_existing(options, bench)
        priced = _forecast(bench, options, study, started, watch)
        watch.plan(priced, bench)
        if study is None:
            study = _open_new(options, bench, priced)
        job = _Job(options=options, bench=bench, priced=priced, study=study, watch=watch, started=started)
        try:
            return job.run()
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted; nothing finished is lost: go on with loratune tune --config "
                f"{options.directory / 'loratune.toml'} --resume."
            ) from None
        finally:
            study.put_fact("seconds", job.seconds)


def _finished(options: TuneOptions) -> TuneResult | None:
    """The result of a complete run that is resumed. Raises `OutputError` where `--out` is taken."""
    directory = options.directory
    if options.resume:
        return load_result(directory) if (directory / "result.json").exists() else None
    check_out(directory)
    return None


def _open_existing(options: TuneOptions, bench: Workbench) -> Study | None:
    if not options.resume or not (options.storage or (options.directory / "study.db").exists()):
        return None
    return _study(options, bench)


def _study(options: TuneOptions, bench: Workbench) -> Study:
    return Study.open(
        options.directory,
        storage=options.storage,
        resume=options.resume,
        fingerprint=fingerprint(options, bench.data.fingerprint),
        metric=options.metric,
    )


def _open_new(options: TuneOptions, bench: Workbench, priced: Forecast) -> Study:
    study = _study(options, bench)
    study.put_fact("calibration", priced.calibration.to_dict())
    study.put_fact("budget", priced.context.budget)
    study.put_fact("predicted_seconds", priced.seconds)
    write_atomically(options.directory / "loratune.toml", to_toml(replace(options, resume=False)))
    return study


def _forecast(
    bench: Workbench, options: SearchOptions, study: Study | None, started: float, watch: Watch
) -> Forecast:
    """Calibration and budget are measured once per study, so that a resumed search decides alike."""
    kept = study.get_fact("calibration") if study else None
    if study is None or kept is None:
        watch.note("Measuring a few steps to price the plan.")
        return forecast(bench, options, calibrate(bench, options), started=started)
    runs = study.get_fact("budget")
    return forecast(bench, options, Calibration.from_dict(kept), started=started, runs=runs)


@dataclass(kw_only=True)
class _Job:
    """One run with everything it needs at hand."""

    options: TuneOptions
    bench: Workbench
    priced: Forecast
    study: Study
    watch: Watch
    started: float

    def __post_init__(self) -> None:
        self.earlier = float(self.study.get_fact("seconds", 0.0))

    @property
    def seconds(self) -> float:
        """Wall clock, earlier parts of a resumed run included."""
        return self.earlier + monotonic() - self.started

    def run(self) -> tuple[TuneResult, int]:
        cut = self._search()
        decision = self.priced.strategy.decide(self._history())
        self.watch.stage(str(Stage.FINAL))
        final = self._final(decision)
        result = self._write(decision, final, cut)
        return result, CLOCK_CUT if cut else 0

    def _history(self) -> list[TrialResult]:
        return [result for result in self.study.results() if result.asked.stage is not Stage.FINAL]

    def _search(self) -> bool:
        """Ask and run until the strategy is settled; returns whether the clock cut it."""
        runner = LocalRunner(
            engine=self.bench.engine,
            study=self.study,
            slots=self.priced.calibration.slots,
            on_progress=self.watch.progress,
            on_result=self.watch.result,
            deadline=self._deadline(),
        )
        history = self._history()
        self.watch.resumed(history)
        while trials := self.priced.strategy.ask(history):
            if runner.late:
                return True
            self.watch.stage(str(trials[0].stage), len(trials))
            history += runner.run(trials)
            self.study.put_fact("seconds", self.seconds)
        return False

    def _deadline(self) -> float | None:
        """When the search must end for the final run to fit; only a budget in time has one."""
        budget = Budget.parse(self.options.budget)
        if budget.seconds is None:
            return None
        left = budget.seconds - self.earlier - _FINAL_RESERVE * self.priced.final_seconds
        return self.started + left

    def _final(self, decision: Decision) -> Final:
        recipe = self.options.hyper_parameters()
        fits = recipe.r <= self.priced.context.largest_rank
        return FinalRunner(
            engine=self.bench.engine,
            study=self.study,
            test=self.bench.data.test,
            patience=self.options.patience,
            on_progress=self.watch.progress,
            on_result=self.watch.result,
        ).run(decision.hyper_parameters, recipe if fits else None, self.options.seed)

    def _write(self, decision: Decision, final: Final, cut: bool) -> TuneResult:
        """Adapter, report, and `result.json` last."""
        directory = self.options.directory
        model = self.bench.base.model
        save_adapter(final.adapter, directory / "adapter", model, base_name=self.options.model)
        facts = run_facts(
            options=self.options,
            bench=self.bench,
            priced=self.priced,
            results=self.study.results(),
            decision=decision,
            final=final,
            cut=cut,
            cost=RunCost(
                seconds=self.seconds,
                predicted_seconds=self.study.get_fact("predicted_seconds", self.priced.seconds),
                predicted_bytes=self.priced.peak_bytes,
                measured_bytes=peak_memory(self.bench.base.device),
                sequential_seconds=self._sequential_seconds(),
            ),
        )
        self.study.put_fact("facts", to_stored(facts))
        write_report(facts, directory, self.watch)
        write_result(facts, directory)
        shutil.rmtree(directory / "final", ignore_errors=True)
        self.watch.summary(facts)
        return load_result(directory)

    def _sequential_seconds(self) -> float:
        """The same trials one after another: training at the speed that one alone was measured to have."""
        trained = sum(result.trained_tokens for result in self.study.results())
        speed = self.priced.calibration
        return max(0.0, self.seconds - trained / speed.pack) + trained / speed.alone


def tune_command(options: TuneOptions, *, as_json: bool) -> int:
    """Run with a live view on stderr; the summary, or with `as_json` the document, on stdout."""
    from loratune.app.watch import Terminal

    _, code = run_tune(options, Terminal(as_json=as_json))
    if as_json:
        print((options.directory / "result.json").read_text(encoding="utf-8"), end="")
    return code
