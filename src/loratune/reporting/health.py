"""What the curves say: the signs of trouble that were found, as lines of text. Knows facts, not how they arose."""

from dataclasses import dataclass

from loratune.reporting.facts import RunFacts
from loratune.values import TrialState

HEALTHY = (
    "Nothing wrong was found: no step of the final run had to be skipped, its loss never rose for good, its gradients "
    "did not leap, its validation NLL neither turned upwards nor was still falling in a straight line, its adapter is "
    "not stronger than the layers that it changes, and the rows hold no learnt padding, no held-out row and no text "
    "that the base model does not know."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthLine:
    """One sign, or the sentence that there is none."""

    mark: str
    kind: str
    """`yes` for nothing wrong, `no` for what needs the user, `note` for what was set right already."""
    finding: str
    action: str = ""
    """What has been done and what to do."""


def health_lines(facts: RunFacts) -> list[HealthLine]:
    """One line per diagnosis, those that need the user first; empty where nobody looked."""
    if facts.diagnoses is None:
        return []
    if not facts.diagnoses:
        return [HealthLine(mark="✓", kind="yes", finding=HEALTHY)]
    lines = [
        HealthLine(
            mark="!" if each.remedy else "–",
            kind="no" if each.remedy else "note",
            finding=each.finding,
            action=" ".join(text for text in (each.done, each.remedy) if text),
        )
        for each in facts.diagnoses
    ]
    return sorted(lines, key=lambda line: line.kind != "no")


def divergence_sentence(facts: RunFacts) -> str:
    """How many trials of the search diverged and from which learning rate on: that is how a bracket finds its end."""
    diverged = [result for result in facts.results if result.state is TrialState.DIVERGED]
    if not diverged:
        return ""
    lowest = min(result.trial.hyper_parameters.learning_rate for result in diverged)
    chosen = facts.decision.hyper_parameters.learning_rate
    trials = "trial" if len(diverged) == 1 else "trials"
    return (
        f"{len(diverged)} of {len(facts.results)} {trials} diverged, at learning rates from {lowest:.2g} on; "
        f"the recommended one is {chosen:.2g}."
    )
