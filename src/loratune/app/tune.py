"""The main job: search, decide, train the final adapter, write the results. Resumable at any moment."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from loratune.analysis.comparison import Final
from loratune.analysis.diagnose import before_training
from loratune.costs.budget import Budget
from loratune.costs.device_limits import measured_peak
from loratune.lora.peft_io import save_adapter
from loratune.model.device import forget_peak
from loratune.model.source import portable_name
from loratune.reporting.card import card_of
from loratune.reporting.facts import RunCost
from loratune.reporting.live import TEST
from loratune.reporting.result import TuneResult, load_result, write_result
from loratune.reporting.stored import to_stored
from loratune.runners.kept import LargestAdapter
from loratune.runners.local import LocalRunner
from loratune.study.record import Study
from loratune.tuning.after_search import AfterSearch
from loratune.tuning.experience import TASK, remember, studied, study_key, task_at_hand
from loratune.tuning.final import FinalRunner, best_seed
from loratune.tuning.fingerprint import fingerprint
from loratune.tuning.forecast import Forecast
from loratune.tuning.lessons import LearningPlanner
from loratune.tuning.options import TuneOptions, keyword_options
from loratune.tuning.outcome import run_facts, write_report
from loratune.tuning.resumption import (
    CLOCK_START,
    CUT,
    PEAK,
    SECONDS,
    begin,
    find_study,
    is_finished,
    open_study,
    predicted_seconds,
    price,
    resumable,
)
from loratune.tuning.watch import Quiet, Watch
from loratune.tuning.workbench import Workbench, open_workbench
from loratune.values import Decision, Stage, StudiedTask, Trial, TrialResult, Truncation
from loratune.values.diagnosis import Diagnosis

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


def run_tune(options: TuneOptions, watch: Watch, *, started: float | None = None) -> tuple[TuneResult, int]:
    """`tune` with something that watches; also the exit code (3 where the clock cut the search).

    `started`: `time.monotonic()` as the user's clock began to run, if it was before now.
    """
    started = monotonic() if started is None else started
    existing = find_study(options)
    if existing is not None and is_finished(existing, options):
        watch.note(f"{options.directory} is complete; nothing to do.")
        return load_result(options.directory), 0
    watch.note("Reading data and model.")
    with (
        open_workbench(
            options,
            targets=options.target_modules,
            ranks=options.ranks,
            epochs=options.epochs,
            metric=options.metric,
            surveyed=True,
        ) as bench,
        watch,
    ):
        study = open_study(options, bench) if existing is not None else None
        priced = price(options, bench, study, started, watch)
        watch.plan(priced, bench)
        study = study or open_study(options, bench)
        begin(study, options, priced)
        planner = LearningPlanner(
            study=study, planner=priced.planner, calibration=priced.calibration, tell=watch.note
        )
        job = _Job(
            options=options,
            bench=bench.calibrated(priced.calibration).hearing(planner.learn),
            priced=priced,
            planner=planner,
            study=study,
            watch=watch,
            started=started,
        )
        with resumable(options, job.keep_costs):
            return job.run()


@dataclass(kw_only=True)
class _Job:
    """One run with everything it needs at hand."""

    options: TuneOptions
    bench: Workbench
    priced: Forecast
    planner: LearningPlanner
    study: Study
    watch: Watch
    started: float

    def __post_init__(self) -> None:
        self.earlier = float(self.study.get_fact(SECONDS, 0.0))
        self.earlier_peak = int(self.study.get_fact(PEAK, 0))
        self.clock_start = float(self.study.get_fact(CLOCK_START, 0.0))

    @property
    def seconds(self) -> float:
        """Wall clock, earlier parts of a resumed run included."""
        return self.earlier + monotonic() - self.started

    @property
    def peak_bytes(self) -> int:
        """Most that the process has held, earlier parts of a resumed run included."""
        return max(self.earlier_peak, measured_peak(self.bench.base.device, self.bench.limits.execution))

    def keep_costs(self) -> None:
        """For a later part of the run."""
        self.study.put_fact(SECONDS, self.seconds)
        self.study.put_fact(PEAK, self.peak_bytes)

    def run(self) -> tuple[TuneResult, int]:
        forget_peak(
            self.bench.base.device
        )  # calibration tries steps as large as fit, whatever the search needs
        before = self._look()
        runner = self._runner()
        cut = self._search(runner)
        after = AfterSearch(
            options=self.options,
            bench=self.bench,
            priced=self.priced,
            study=self.study,
            watch=self.watch,
            runner=runner,
        )
        decision = after.examine(self.priced.strategy.decide(self._history()), self._history())
        final = self._final(decision)
        result = self._write(decision, after.truncation, final, cut, before)
        return result, CLOCK_CUT if cut else 0

    def _look(self) -> tuple[Diagnosis, ...]:
        """What is wrong with the rows, told before anything is trained on them."""
        data = self.bench.data
        found = before_training(self.bench.engine, data.test, removed=data.profile.duplicates_removed)
        for each in found:
            self.watch.note(each.sentence)
        return found

    def _history(self) -> list[TrialResult]:
        return [result for result in self.study.results() if result.asked.stage is not Stage.FINAL]

    def _runner(self) -> LocalRunner:
        return LocalRunner(
            engine=self.bench.engine,
            study=self.study,
            planner=self.planner,
            on_progress=self.watch.progress,
            on_result=self.watch.result,
            largest=LargestAdapter(self.study, self.bench.base),
            deadline=self._deadline(),
        )

    def _search(self, runner: LocalRunner) -> bool:
        """Ask and run until the strategy is settled; returns whether the clock cut it."""
        history = self._history()
        self.watch.resumed(history)
        while trials := self.priced.strategy.ask(history):
            if runner.late:
                return True
            self.watch.stage(str(trials[0].stage), len(trials))
            history += runner.run(trials, partial(self._more, tuple(history)))
            self.keep_costs()
        return False

    def _more(
        self, before: Sequence[TrialResult], done: Sequence[TrialResult], running: Sequence[Trial]
    ) -> tuple[Trial, ...]:
        """What the strategy can ask for while trials are still running."""
        trials = self.priced.strategy.ask((*before, *done), running)
        if trials:
            self.watch.stage(str(trials[0].stage), len(trials))
        return trials

    def _deadline(self) -> float | None:
        """When the search must end for the final run to fit; only a budget in time has one."""
        budget = Budget.parse(self.options.budget)
        if budget.seconds is None:
            return None
        used = self.earlier - self.clock_start
        left = budget.seconds - used - _FINAL_RESERVE * self.priced.final_seconds
        return self.started + left

    def _final(self, decision: Decision) -> Final:
        recipe, seed = self.options.hyper_parameters(), self.options.seed
        known = best_seed(self._history(), decision.hyper_parameters)
        fits = recipe.r <= self.priced.context.largest_rank
        return FinalRunner(
            engine=self.bench.engine,
            study=self.study,
            test=self.bench.data.test,
            patience=self.options.patience,
            on_progress=self.watch.progress,
            on_result=self.watch.result,
            on_train=partial(self.watch.stage, str(Stage.FINAL)),
            on_test=partial(self.watch.stage, TEST),
        ).run(decision.hyper_parameters, recipe if fits else None, seed if known is None else known, seed)

    def _write(
        self,
        decision: Decision,
        truncation: Truncation | None,
        final: Final,
        cut: bool,
        before: tuple[Diagnosis, ...],
    ) -> TuneResult:
        """Adapter, report, and `result.json` last."""
        directory, base = self.options.directory, self.bench.base
        facts = run_facts(
            options=self.options,
            bench=self.bench,
            priced=self.priced,
            results=self.study.results(),
            decision=decision,
            truncation=truncation,
            final=final,
            cut=cut,
            before=before,
            shortages=self.planner.sentences,
            cost=RunCost(
                seconds=self.seconds,
                predicted_seconds=predicted_seconds(self.study, self.options, self.priced),
                predicted_bytes=self.priced.peak_bytes,
                measured_bytes=self.peak_bytes,
                sequential_seconds=self._sequential_seconds(),
            ),
        )
        name = portable_name(self.options.model)
        save_adapter(
            final.adapter,
            directory / "adapter",
            base.model,
            base_name=name,
            tokenizer=base.tokenizer,
            card=card_of(facts, name),
        )
        task = self._studied(decision)
        self.study.put_fact("facts", to_stored(facts))
        self.study.put_fact(TASK, task.to_dict())
        self.study.put_fact(CUT, cut)
        write_report(facts, directory, self.watch)
        write_result(facts, directory)
        shutil.rmtree(directory / "final", ignore_errors=True)
        if not (cut or self.options.no_ledger):
            key = study_key(fingerprint(self.options, self.bench))
            if trouble := remember(key, directory, task):
                self.watch.note(trouble)
        self.watch.summary(facts)
        return load_result(directory)

    def _studied(self, decision: Decision) -> StudiedTask:
        """This study as later ones may learn from it."""
        task = task_at_hand(self.bench, self.options)
        return studied(task, self._history(), decision, ranks_wished=bool(self.options.ranks))

    def _sequential_seconds(self) -> float:
        """The same trials one after another: training at the speed that one alone was measured to have."""
        trained = sum(result.trained_tokens for result in self.study.results())
        speed = self.priced.calibration
        return max(0.0, self.seconds - trained / speed.pack) + trained / speed.alone


def tune_command(options: TuneOptions, *, as_json: bool, started: float) -> int:
    """Run with a live view on stderr; the summary, or with `as_json` the document, on stdout."""
    from loratune.tuning.watch import Terminal

    _, code = run_tune(options, Terminal(as_json=as_json), started=started)
    if as_json:
        print((options.directory / "result.json").read_text(encoding="utf-8"), end="")
    return code
