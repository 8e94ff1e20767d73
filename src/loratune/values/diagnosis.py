"""What is wrong with a run or its data, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum

from loratune.values.evidence import Evidence


class Sign(StrEnum):
    """What can be told from losses, gradients and rows; each has its own cause and its own remedy."""

    PADDING = "padding is learnt"
    TEMPLATE = "template or mask"
    LEAK = "evaluation rows in training"
    NOT_FINITE = "steps that are not finite"
    UNSTABLE = "learning rate too high"
    LEAPS = "gradients that leap"
    OVERFITTING = "over-fitting"
    UNDERTRAINED = "under-training"
    NEAR_START = "adapter near its start"
    OUTGROWN = "update stronger than its layers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """One sign that was found."""

    sign: Sign
    finding: str
    """What was seen, in one sentence with its numbers."""
    remedy: str
    """What the user can do about it, in one sentence."""
    done: str = ""
    """What has been done about it already, in one sentence; empty where nothing has."""
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    """The value from which on the sign counts."""

    @property
    def sentence(self) -> str:
        """Finding, what was done, remedy."""
        return " ".join(text for text in (self.finding, self.done, self.remedy) if text)

    def to_evidence(self) -> Evidence:
        """A note among the claims."""
        return Evidence(claim=self.sentence, value=self.value, unit=self.unit, margin=self.limit)
