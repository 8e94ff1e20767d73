"""How long a run will still take: from its plan at first, then more and more from its own pace. Reads no clock."""

from dataclasses import dataclass, field, replace

_TOO_SOON = 0.02
"""Share of a part before which its own pace says nothing."""


@dataclass(kw_only=True)
class Part:
    """A part of a run that goes at one pace; costs are full-run equivalents."""

    seconds: float | None = None
    """Planned."""
    cost: float = 0.0
    """Expected."""
    began: float = 0.0
    done: float = 0.0
    """Cost of the trials that have ended."""

    def left(self, now: float, under_way: float) -> float | None:
        """Seconds; None where nothing is known. `under_way`: what the trials that train now have cost so far."""
        spent = now - self.began
        planned = None if self.seconds is None else max(0.0, self.seconds - spent)
        share = min(1.0, (self.done + under_way) / self.cost) if self.cost else 0.0
        if share < _TOO_SOON:
            return planned
        measured = spent * (1 - share) / share
        return measured if planned is None else share * measured + (1 - share) * planned


@dataclass(kw_only=True)
class Pace:
    """Search, final run and test rows, one after the other."""

    part: Part = field(default_factory=Part)
    """What goes on now: the search, then the final run."""
    final_trial: float | None = None
    """Planned seconds of the final run's training, for each of its trials."""
    final_trials: int = 0
    """Of the final run, those that have not ended; before it those that are planned."""
    test_seconds: float | None = None
    """Planned."""
    in_final: bool = False
    test_began: float | None = None

    def begin_final(self, now: float, trials: int) -> None:
        """So many trials are trained in a pack, and nothing else; again where one is repeated."""
        planned = None if self.final_trial is None else self.final_trial * trials
        self.part = Part(seconds=planned, cost=float(trials), began=now)
        self.final_trials, self.in_final = trials, True

    def begin_test(self, now: float) -> None:
        """Nothing is left to be trained."""
        self.test_began = now

    def ended(self, cost: float) -> None:
        """A trial has; one of the final run that stopped early leaves less to be done than was expected."""
        self.part.done += cost
        if self.in_final:
            self.final_trials -= 1
            self.part.cost = self.part.done + self.final_trials

    def already(self, cost: float) -> None:
        """So much of the search was done by an earlier run."""
        search = self.part
        if search.cost > 0 and search.seconds is not None:
            left = max(0.0, 1 - cost / search.cost)
            self.part = replace(search, seconds=search.seconds * left, cost=search.cost * left)

    def left(self, now: float, under_way: float) -> float | None:
        """Seconds until all is done; None where nothing is known."""
        if self.test_began is not None:
            return (
                None if self.test_seconds is None else max(0.0, self.test_seconds - (now - self.test_began))
            )
        left = self.part.left(now, under_way)
        if left is None:
            return None
        to_come = 0.0 if self.in_final else (self.final_trial or 0.0) * self.final_trials
        return left + to_come + (self.test_seconds or 0.0)
