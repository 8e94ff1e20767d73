"""Between search and final run: the truncation curve of the largest adapter, and if asked for a rank per layer.

The curve is shown beside the trained ranks and decides nothing; a rank per layer is trained and tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from pydantic import TypeAdapter

from loratune.analysis.truncation import TruncationRun, patterned
from loratune.costs.readings import cut_ranks
from loratune.lora.layout import AdapterLayout, find_targets
from loratune.runners.largest import LargestAdapter
from loratune.runners.local import read_adapter
from loratune.runners.runner import AdapterFile, Runner
from loratune.search.claims import note
from loratune.search.compare import unit
from loratune.search.layer_ranks import QUESTION, LayerRanksSearch, layer_rank_claims
from loratune.search.procedure import ask, decide
from loratune.search.summary import stage_summary
from loratune.study.record import Study
from loratune.tuning.driver import Driver
from loratune.tuning.forecast import Forecast
from loratune.tuning.options import TuneOptions
from loratune.tuning.workbench import Workbench
from loratune.values import (
    Cut,
    CutPoint,
    Decision,
    Evidence,
    HyperParameters,
    Stage,
    StageSummary,
    Trial,
    TrialResult,
    Truncation,
)
from loratune.values.events import StageBegan, Tell

_FACT = "truncation"
_DISAGREEMENT = 2.0
"""Ratio of trained to truncated rank beyond which they are said to disagree."""


@dataclass(kw_only=True)
class AfterSearch:
    """What is done with the adapter that the search kept."""

    options: TuneOptions
    bench: Workbench
    priced: Forecast
    study: Study
    tell: Tell
    runner: Runner
    largest: LargestAdapter
    """The largest adapter of the search."""
    driver: Driver
    """The search's driver, with all its results."""
    truncation: Truncation | None = field(default=None, init=False)

    def examine(self, decision: Decision, history: list[TrialResult]) -> Decision:
        """The decision with the evidence of the kept adapter; unchanged where the clock or the search left none."""
        kept = self.largest.file()
        if kept is None or self.runner.late or kept[1].hyper_parameters.r < 2:
            return decision
        if not self.options.kind.is_cut:
            return decision
        result, file = kept
        trained = self._uniform_rank(decision.hyper_parameters)
        self.truncation = self._truncation(kept, trained)
        claims = truncation_claims(self.truncation, trained, unit(self.priced.context))
        decision = replace(
            decision,
            evidence=(*decision.evidence, *claims),
            stages=(*decision.stages, _stage(self.truncation)),
        )
        if not self.options.layer_ranks:
            return decision
        setting = decision.hyper_parameters
        targets = find_targets(self.bench.profile.targets, setting.target_modules)
        other = patterned(setting, read_adapter(file, self.bench.profile), targets)
        if other is None or not other.rank_pattern:
            largest = file.hyper_parameters.r
            why = f"rank {setting.r} is all that the rank-{largest} adapter of the search has to share out"
            return replace(
                decision, evidence=(*decision.evidence, note(f"A rank for each layer was not tried: {why}."))
            )
        return self._layer_ranks(decision, other, result.asked, history)

    def _uniform_rank(self, setting: HyperParameters) -> int:
        """The rank with the same number of parameters on the layers that the search started from."""
        available = self.bench.profile.targets
        own = find_targets(available, setting.target_modules)
        return max(
            1, round(AdapterLayout.of(setting, own).size / self.priced.context.model.parameters_per_rank)
        )

    def _truncation(self, kept: tuple[TrialResult, AdapterFile], trained: int) -> Truncation:
        """Measured once: a resumed run takes what the study holds."""
        result, file = kept
        r = result.asked.hyper_parameters.r
        heal = [k for k in cut_ranks(r) if trained / 2 <= k <= 2 * trained] if self.options.heal else []
        key = [result.asked.key, *heal]
        adapter_of = TypeAdapter(Truncation)
        stored = self.study.decode_fact(
            _FACT, lambda kept: (kept["of"], adapter_of.validate_python(kept["found"]))
        )
        if stored is not None and stored[0] == key:
            return stored[1]
        self.tell(StageBegan(name=_FACT))
        run = TruncationRun(runner=self.runner, subject=self.bench.subject, context=self.priced.context)
        found = run.measure(result, file, heal=heal)
        self.study.put_fact(_FACT, {"of": key, "found": adapter_of.dump_python(found, mode="json")})
        return found

    def _layer_ranks(
        self, decision: Decision, other: HyperParameters, source: Trial, history: list[TrialResult]
    ) -> Decision:
        """Train the pattern beside the uniform rank; the better one, if it is shown better."""
        context = self.priced.context.changed(budget=inf)
        search = LayerRanksSearch.after(context, decision.hyper_parameters, other, history)
        driver = replace(self.driver, ask=lambda done, running: () if running else ask(search, context, done))
        driver.search()
        found = decide(search, context, history)
        words = f"one threshold on the singular values of the rank-{source.hyper_parameters.r} adapter"
        ranks = sorted(rank for _, rank in other.rank_pattern)
        answer = f"one rank for all; by layer they would be {ranks[0]} to {ranks[-1]}"
        if found.compared and found.changed:
            answer = f"ranks {ranks[0]} to {ranks[-1]} by layer"
            decision = replace(decision, hyper_parameters=other)
        summary = stage_summary(
            Stage.LAYER_RANKS, QUESTION, answer, history, {"rank_pattern": dict(other.rank_pattern)}
        )
        return replace(
            decision,
            evidence=(*decision.evidence, *layer_rank_claims(context, found, words)),
            stages=(*decision.stages, summary),
        )


def truncation_claims(found: Truncation, trained: int, units: str) -> tuple[Evidence, ...]:
    """How far the adapter can be cut, what the trained rank loses as a cut, and whether the two agree."""
    curve = {point.rank: point for point in found.curve(Cut.UNIFORM)}
    refused = max((k for k in curve if k < found.deployable), default=found.r)
    ranks = sorted({found.deployable, refused, trained} & curve.keys(), reverse=True)
    claims = [_cut_claim(found, curve[k], units) for k in ranks]
    claims += [
        replace(
            _cut_claim(found, point, units),
            claim=(
                f"Trained on for a few steps, the cut to rank {point.rank} loses {point.loss:.4g} {units}."
            ),
        )
        for point in found.curve(Cut.HEALED)
    ]
    return (*claims, *_cross_check(found, trained))


def _cross_check(found: Truncation, trained: int) -> tuple[Evidence, ...]:
    """Whether the rank that was trained and the cut agree; nothing where no cut was shown as good as the whole."""
    if found.deployable >= found.r:
        return ()
    below = [point for point in found.curve(Cut.UNIFORM) if point.rank < found.deployable]
    open_below = bool(below) and below[-1].adequate is None
    ratio = found.deployable / trained
    agree: bool | None = 1 / _DISAGREEMENT <= ratio <= _DISAGREEMENT
    text = (
        f"rank {trained} is recommended, and the rank-{found.r} adapter can be cut to rank {found.deployable}"
    )
    if ratio > _DISAGREEMENT and open_below:
        agree = None
        text += f"; cannot tell, the cut to rank {below[-1].rank} is undecided"
    elif ratio > _DISAGREEMENT:
        text += "; training at the lower rank was measured and decides, a cut beyond 8-fold is pessimistic"
    elif ratio < 1 / _DISAGREEMENT:
        text += "; a rank that low may do when trained, --ranks would test it"
    return (
        Evidence(
            claim=f"Training and cutting agree on the rank within a factor 2: {text}.",
            value=ratio,
            holds=agree,
        ),
    )


def _cut_claim(found: Truncation, point: CutPoint, units: str) -> Evidence:
    verdict = {True: "", False: "no, ", None: "undecided, "}[point.adequate]
    return Evidence(
        claim=(
            f"Cut to rank {point.rank}, the rank-{found.r} adapter is as good as whole: {verdict}it loses "
            f"{point.loss:.4g} {units} on {found.rows} validation rows."
        ),
        value=point.loss,
        unit=units,
        interval=point.interval,
        margin=found.margin,
        holds=point.adequate,
    )


def _stage(found: Truncation) -> StageSummary:
    return StageSummary(
        name=_FACT,
        question=f"How far can the rank-{found.r} adapter be cut without training on?",
        answer=f"to rank {found.deployable}" if found.deployable < found.r else "no cut was shown as good",
        cost=found.cost,
        seconds=found.seconds,
        details=TypeAdapter(Truncation).dump_python(found, mode="json"),
    )
