"""One run of `tune` with everything it needs at hand: search, analysis, final run, writing. Resumable at any moment."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from time import monotonic

from loratune.analysis.diagnose import before_training
from loratune.analysis.final import Final
from loratune.costs.budget import Budget
from loratune.files.lock import forget_stop, is_asked_to_stop
from loratune.lora.peft_io import publish_adapter
from loratune.model.source import portable_name
from loratune.reporting.card import card_of
from loratune.reporting.facts import RunCost, to_stored
from loratune.reporting.result import TuneResult, load_result, write_result
from loratune.reporting.wording import setting_words
from loratune.runners.finalists import Finalists
from loratune.runners.largest import LargestAdapter
from loratune.runners.options import RunnerOptions
from loratune.runners.runner import Runner
from loratune.study.record import Study
from loratune.tuning.after_search import AfterSearch
from loratune.tuning.driver import Driver, FindingsTeller, findings_of
from loratune.tuning.experience import TASK, remember, studied, study_key, task_at_hand
from loratune.tuning.final import FOLDER, FinalRunner, best_seed
from loratune.tuning.finalists import FinalistRound
from loratune.tuning.forecast import Forecast
from loratune.tuning.lessons import LearningPlanner
from loratune.tuning.options import TuneOptions
from loratune.tuning.outcome import run_facts, write_report
from loratune.tuning.resumption import CLOCK_START, CUT, PEAK, SECONDS, fingerprint, predicted_seconds
from loratune.tuning.timeline import PACKS, TIMELINE, Occupancy, Timeline
from loratune.tuning.workbench import Workbench, in_unit_of_rows
from loratune.values import Decision, Stage, StudiedTask, TrialResult, Truncation
from loratune.values.analysis import Diagnosis
from loratune.values.events import (
    Bus,
    Chosen,
    Finished,
    Note,
    Phase,
    PhaseBegan,
    Resumed,
    Tell,
    TrialEnded,
)
from loratune.values.plain import to_plain

CLOCK_CUT = 3
"""Exit code where the clock, or the user, cut the search."""
_FINAL_RESERVE = 1.15
"""Share of the predicted final run that the clock keeps free."""


@dataclass(kw_only=True)
class Job:
    """One run with everything it needs at hand."""

    options: TuneOptions
    bench: Workbench
    priced: Forecast
    study: Study
    tell: Tell
    started: float
    timeline: Timeline
    occupancy: Occupancy
    """Both subscribe to the events."""

    def __post_init__(self) -> None:
        self.bench = self.bench.calibrated(self.priced.calibration)
        self.planner = LearningPlanner(
            study=self.study,
            planner=self.priced.planner,
            calibration=self.priced.calibration,
            tell=self.tell,
        )
        self.timeline.begin_with(self.study.get_fact(TIMELINE, {}))
        self.earlier = self.study.decode_fact(SECONDS, float) or 0.0
        self.occupancy.begin_with(self.study.get_fact(PACKS, ()), self.earlier)
        self.earlier_peak = self.study.decode_fact(PEAK, int) or 0
        self.clock_start = self.study.decode_fact(CLOCK_START, float) or 0.0

    @property
    def seconds(self) -> float:
        """Wall clock, earlier parts of a resumed run included."""
        return self.earlier + monotonic() - self.started

    @property
    def peak_bytes(self) -> int:
        """Most that the process has held, earlier parts of a resumed run included."""
        return max(self.earlier_peak, self.bench.engines.peak_bytes())

    def keep_costs(self) -> None:
        """Keep the costs for a later part of the run."""
        self.study.put_fact(SECONDS, self.seconds)
        self.study.put_fact(PEAK, self.peak_bytes)
        self.study.put_fact(TIMELINE, self.timeline.kept())
        self.study.put_fact(PACKS, self.occupancy.kept())

    def run(self) -> tuple[TuneResult, int]:
        self.bench.engines.forget_peak()  # calibration tries steps as large as fit, whatever the search needs
        strategy, history = self.priced.strategy, self._history()
        tell = Bus(self.tell, FindingsTeller(lambda: strategy.decide(history), self.tell))
        largest = LargestAdapter(self.options.directory, self.study.results())
        writes = self.bench.subject.scoring.generates
        finalists = Finalists(self.options.directory, history) if writes else None
        runner = self._runner(tell, largest, finalists)
        before = self._look(runner)
        driver = Driver(
            ask=strategy.ask,
            runner=runner,
            record=self.study.record,
            tell=tell,
            after_each=self.keep_costs,
            history=history,
        )
        self.tell(PhaseBegan(phase=Phase.SEARCHING))
        self.tell(Resumed(trials=tuple(map(TrialEnded.of, driver.history))))
        cut = driver.search()
        stopped = cut and self._stopped()
        self.tell(PhaseBegan(phase=Phase.ANALYSING))
        after = AfterSearch(
            options=self.options,
            bench=self.bench,
            priced=self.priced,
            study=self.study,
            tell=self.tell,
            runner=runner,
            largest=largest,
            driver=driver,
        )
        decision = after.examine(strategy.decide(history), history)
        if finalists is not None:
            decision = self._finalist_round(runner).examine(decision, finalists.files())
        self.tell(findings_of(decision))
        self.tell(Chosen(hyper_parameters=decision.hyper_parameters, settled=decision.settled))
        self.tell(PhaseBegan(phase=Phase.FINAL_RUN))
        final = self._final(decision, runner)
        self.tell(PhaseBegan(phase=Phase.WRITING))
        result = self._write(decision, after.truncation, final, before, runner, cut=cut, stopped=stopped)
        if finalists is not None and not cut:  # a search that goes on compares them anew
            finalists.forget()
        return result, CLOCK_CUT if cut else 0

    def _finalist_round(self, runner: Runner) -> FinalistRound:
        """Compares adapters by generated text, where the metric needs it."""
        subject = self.bench.subject
        return FinalistRound(
            runner=runner,
            subject=subject,
            study=self.study,
            margin=self.options.margin or subject.scoring.metric.info.margin,
            tell=self.tell,
        )

    def _look(self, runner: Runner) -> tuple[Diagnosis, ...]:
        """What is wrong with the rows, reported before anything is trained on them."""
        removed = self.bench.data.profile.duplicates_removed
        found = before_training(self.bench.subject, runner, removed=removed)
        for each in found:
            self.tell(Note(text=each.sentence))
        return found

    def _history(self) -> list[TrialResult]:
        return [result for result in self.study.results() if result.asked.stage is not Stage.FINAL]

    def _runner(self, tell: Tell, largest: LargestAdapter, finalists: Finalists | None) -> Runner:
        return self.bench.engines.runner(
            self.bench.spec,
            RunnerOptions(
                planner=self.planner,
                folder=self.options.directory / FOLDER,
                tell=tell,
                largest=largest,
                finalists=finalists,
                on_shortage=self.planner.learn,
                deadline=self._deadline(),
                stopped=self._stopped,
            ),
        )

    def _stopped(self) -> bool:
        """Whether the user has asked for an end of the search."""
        return is_asked_to_stop(self.options.directory)

    def _deadline(self) -> float | None:
        """When the search must end for the final run to fit; only a budget in time has one."""
        budget = Budget.parse(self.options.budget)
        if budget.seconds is None:
            return None
        used = self.earlier - self.clock_start
        left = budget.seconds - used - _FINAL_RESERVE * self.priced.final_seconds
        return self.started + left

    def _final(self, decision: Decision, runner: Runner) -> Final:
        recipe = self.options.hyper_parameters(epochs=self.priced.context.wishes.epochs)
        seed = self.options.seed
        known = best_seed(self._history(), decision.hyper_parameters)
        fits = recipe.r <= self.priced.context.model.largest_rank
        return FinalRunner(
            runner=runner,
            subject=self.bench.subject,
            study=self.study,
            patience=self.options.patience,
            tell=self.tell,
        ).run(decision.hyper_parameters, recipe if fits else None, seed if known is None else known, seed)

    def _write(
        self,
        decision: Decision,
        truncation: Truncation | None,
        final: Final,
        before: tuple[Diagnosis, ...],
        runner: Runner,
        *,
        cut: bool,
        stopped: bool,
    ) -> TuneResult:
        """Adapter, report, and `result.json` last."""
        directory = self.options.directory
        facts = run_facts(
            runner=runner,
            options=self.options,
            bench=self.bench,
            priced=self.priced,
            results=self.study.results(),
            decision=decision,
            truncation=truncation,
            final=final,
            cut=cut,
            stopped=stopped,
            before=before,
            shortages=self.planner.sentences,
            cost=self._cost(),
        )
        name = portable_name(self.options.model)
        publish_adapter(
            final.file.folder,
            directory / "adapter",
            base_name=name,
            tokenizer=self.bench.tokenizer,
            card=card_of(facts, name),
            changed=in_unit_of_rows(self.bench),
        )
        task = self._studied(decision)
        facts = write_report(facts, directory, self.tell, self._cost)
        self.study.put_fact("facts", to_stored(facts))
        self.study.put_fact(TASK, to_plain(task))
        self.study.put_fact(CUT, cut)
        self.study.show("recommended", setting_words(decision.hyper_parameters))
        write_result(facts, directory)
        shutil.rmtree(directory / FOLDER, ignore_errors=True)
        if not (cut or self.options.no_ledger) and self.options.kind.has_laws:
            key = study_key(fingerprint(self.options, self.bench))
            for trouble in remember(self.options, key, directory, task):
                self.tell(Note(text=trouble))
        forget_stop(directory)
        self.tell(Finished(directory=str(directory), seconds=self.seconds, cut=cut, stopped=stopped))
        return load_result(directory)

    def _cost(self) -> RunCost:
        """Up to now."""
        seconds, timeline = (
            self.seconds,
            self.timeline.seconds(),
        )  # of one moment: reading the study takes a while
        return RunCost(
            seconds=seconds,
            predicted_seconds=predicted_seconds(self.study, self.options, self.priced),
            predicted_bytes=self.priced.peak_bytes,
            measured_bytes=self.peak_bytes,
            sequential_seconds=self._sequential_seconds(),
            timeline=tuple(timeline.items()),
            price_per_hour=self.priced.price_per_hour,
            mean_trials_in_pack=self.timeline.mean_trials_in_pack,
            packs=self.occupancy.spans(),
        )

    def _studied(self, decision: Decision) -> StudiedTask:
        """This study as later ones may learn from it."""
        task = task_at_hand(self.bench, self.options)
        return studied(task, self._history(), decision, ranks_wished=bool(self.options.ranks))

    def _sequential_seconds(self) -> float:
        """The same trials one after another: training at the speed that one alone was measured to have."""
        trained = sum(result.trained_tokens for result in self.study.results())
        speed = self.priced.calibration
        return max(0.0, self.seconds - trained / speed.pack) + trained / speed.alone
