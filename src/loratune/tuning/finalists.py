"""Metrics of generated text, after the search: the best adapters write on the validation rows, and the metric decides.

The search goes by the NLL, whose rows have little noise and cost a pass. What a model writes is scored in coarse steps
and costs hundreds of passes: by it only a few adapters are compared, and another takes the NLL's choice's place only
where it is shown better. The claim is of these adapters: the final run repeats the setting with the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic

import numpy as np
import numpy.typing as npt

from loratune.analysis.subject import Subject
from loratune.costs.generation import FINALISTS
from loratune.engine.scoring import table_rows
from loratune.maths.noninferiority import Comparison, SeedNoise, Verdict
from loratune.reporting.wording import setting_words
from loratune.runners.runner import AdapterFile, Evaluated, Runner, ScoringJob, only
from loratune.search.claims import note
from loratune.study.record import Study
from loratune.values import Decision, Evidence, StageSummary, TrialResult
from loratune.values.events import StageBegan, Tell

NAME = "finalists"
_QUESTION = "Does another of the best adapters by NLL write better?"
_THESE_ADAPTERS = SeedNoise(variance=0.0, degrees=inf)
Floats = npt.NDArray[np.float64]
Kept = tuple[TrialResult, AdapterFile]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalistRound:
    """Compares the kept adapters of a search by what they write."""

    runner: Runner
    subject: Subject
    study: Study
    margin: float
    """Margin in the metric's unit."""
    tell: Tell

    def examine(self, decision: Decision, kept: Sequence[Kept]) -> Decision:
        """The decision, with another of the kept settings where it is shown better, and the evidence.

        `kept`: the lowest NLL first.
        """
        setting = decision.hyper_parameters
        chosen = [each for each in kept if each[0].trial.hyper_parameters == setting]
        others = [each for each in kept if each[0].trial.hyper_parameters != setting][: FINALISTS - 1]
        if not chosen or not others:
            what = "no other setting was" if chosen else "the chosen setting was not"
            return _with(decision, note(f"Adapters were not compared by what they write: {what} kept."))
        began = monotonic()
        finalists = [chosen[0], *others]
        scores = self._scores(finalists)
        compared = [self._compared(scores, other, chosen[0]) for other in others]
        best = min(range(len(others)), key=lambda i: compared[i].difference)
        better = compared[best].better(len(others))
        claim = self._claim(others[best], compared[best], len(others), better=better)
        if better:
            decision = replace(decision, hyper_parameters=others[best][0].trial.hyper_parameters)
        summary = StageSummary(
            name=NAME,
            question=_QUESTION,
            answer=f"{_words(others[best])}: better" if better else "no, the choice by NLL is kept",
            seconds=monotonic() - began,
            details={"finalists": [self._shown(each, scores) for each in finalists]},
        )
        return replace(_with(decision, claim), stages=(*decision.stages, summary))

    def _scores(self, finalists: Sequence[Kept]) -> Mapping[str, Floats]:
        """[rows] by trial; measured once: a resumed run takes what the study holds."""
        keys = [result.asked.key for result, _ in finalists]
        stored = self.study.decode_fact(
            NAME, lambda kept: {key: np.array(kept[key], np.float64) for key in keys}
        )
        rows = len(self.subject.validation)
        if stored is not None and all(len(each) == rows for each in stored.values()):
            return stored
        self.tell(StageBegan(name=NAME, trials=len(finalists)))
        job = ScoringJob(
            adapters=tuple(file for _, file in finalists),
            split="validation",
            max_new_tokens=self.subject.scoring.max_new_tokens,
        )
        done = only(self.runner.run([job]))
        assert isinstance(done, Evaluated)
        found = {}
        for key, evaluation in zip(keys, done.evaluations, strict=True):
            _, columns = self.subject.scoring.measure(evaluation, self.subject.validation)
            found[key] = columns[self.subject.scoring.metric.column]
        self.study.put_fact(NAME, {key: each.tolist() for key, each in found.items()})
        return found

    def _compared(self, scores: Mapping[str, Floats], candidate: Kept, reference: Kept) -> Comparison:
        ours, theirs = (scores[each[0].asked.key][None] for each in (candidate, reference))
        rows = table_rows(self.subject.validation)
        return self.subject.scoring.metric.compare(ours, theirs, rows, _THESE_ADAPTERS, self.margin)

    def _claim(self, other: Kept, found: Comparison, tests: int, *, better: bool) -> Evidence:
        """The claim on the best other adapter against the choice; a positive number is what the claim says."""
        info = self.subject.scoring.metric.info
        rows, other_words = len(self.subject.validation), _words(other)
        low, high = found.interval or (-inf, inf)
        if better:
            return Evidence(
                claim=(
                    f"{info.title} on {rows} validation rows is {info.better(1.0)} with {other_words} than with the "
                    f"choice by NLL (95 %, shared by {tests} comparisons), and it is recommended."
                ),
                value=-found.difference,
                unit=info.unit,
                interval=(-high, -low),
                margin=0.0,
                holds=True,
            )
        if found.standard_error == 0 and found.difference == 0:
            return note(
                f"{info.title} on {rows} validation rows is the same, row by row, with the choice by NLL and with the "
                f"best of {tests} other adapters ({other_words}): so neither is shown to be better."
            )
        # turned round: what the choice loses against the best other, within the margin or not
        turned = replace(found, difference=-found.difference)
        return Evidence(
            claim=(
                f"{info.title} on {rows} validation rows is as good with the choice by NLL as with the best of {tests} "
                f"other adapters ({other_words})."
            ),
            value=0.0 - found.difference,  # a minus would make -0 of 0
            unit=info.unit,
            interval=(0.0 - high, 0.0 - low),
            margin=self.margin,
            holds={Verdict.ADEQUATE: True, Verdict.INFERIOR: False}.get(turned.verdict),
        )

    def _shown(self, each: Kept, scores: Mapping[str, Floats]) -> dict[str, object]:
        result, metric = each[0], self.subject.scoring.metric
        value = metric.value(scores[result.asked.key], table_rows(self.subject.validation))
        return {
            "setting": setting_words(result.trial.hyper_parameters),
            "nll": result.nll,
            metric.name: value,
        }


def _words(each: Kept) -> str:
    return setting_words(each[0].trial.hyper_parameters)


def _with(decision: Decision, claim: Evidence) -> Decision:
    return replace(decision, evidence=(*decision.evidence, claim))
