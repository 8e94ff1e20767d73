"""Evidence as it comes: what the search would decide if it ended now, published now and then while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from loratune.values import Decision
from loratune.values.events import Event, Findings, Tell, TrialEnded

_SECONDS = 5.0
"""Between two, at least."""
_SHARE = 0.02
"""Of the time, at most, goes into them."""


class FindingsTeller:
    """A subscriber of the search's events. Deciding is pure, so that looking changes nothing."""

    def __init__(
        self, decide: Callable[[], Decision], tell: Tell, *, clock: Callable[[], float] = monotonic
    ) -> None:
        """`decide`: on all results so far."""
        self._decide, self._tell, self._clock = decide, tell, clock
        self._next = -1.0
        self._new = False

    def __call__(self, event: Event) -> None:
        """Take notice of one event; results that came too soon after the last findings count at a later one."""
        self._new |= isinstance(event, TrialEnded)
        began = self._clock()
        if not self._new or began < self._next:
            return
        self._new = False
        self._tell(findings_of(self._decide()))
        ended = self._clock()
        self._next = ended + max(_SECONDS, (ended - began) / _SHARE)


def findings_of(decision: Decision) -> Findings:
    """The event for a decision."""
    return Findings(hyper_parameters=decision.hyper_parameters, evidence=decision.evidence)
