"""A metric's description, without the code that measures it: enough to show its values, differences and margins."""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

NATS, POINTS = "nats", "points"
_DASH = "–"
_WITHOUT_FRACTION = 1000.0


class Needs(StrEnum):
    """What a metric is computed from, which decides what an evaluation costs."""

    LIKELIHOOD = "likelihood"
    """One pass over the rows: the loss and the most likely token at every supervised position."""
    LABELS = "labels"
    """The likelihood of every label after every prompt; only rows with labels have it."""
    PREFERENCES = "preferences"
    """One pass over the rows of preference pairs: by how much the preferred answer is ahead."""
    NUMBERS = "numbers"
    """The number that a classifier gives each row; only rows that are to be given one (a regression) have it."""
    TEXT = "text"
    """Predictions as text: the most likely label of a labelled row, else the most likely token at each supervised
    position given the true tokens before it."""
    GENERATION = "generation"
    """The text that the model writes after each prompt, token by token. It costs far more than a pass over the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricInfo:
    """Name, unit and direction of a metric; plain values, kept with a run so that its report needs no code."""

    name: str
    """The name given to `--metric`, and the key in `result.json`."""
    title: str
    """The name in a sentence."""
    unit: str
    """Unit of losses, differences and margins. Values in `points` lie in [0, 1]; a point is a hundredth."""
    larger_is_better: bool
    margin: float
    """Tolerated loss for a cheaper choice where the user names none, in `unit`."""
    counts_rows: bool = False
    """Whether a value is the share of the rows that are right."""
    rows_under: str = ""
    """Name under which a result keeps the scores of its rows; empty: under its own."""
    by_nll: bool = False
    """Whether the NLL decides it, in nats: a metric that rises and falls with the NLL, or the NLL itself."""
    of_tokens: bool = False
    """Whether it says nothing new of a head's answers: of one class it is the NLL or the accuracy by another name."""

    @property
    def column(self) -> str:
        """Name under which a result keeps the scores of its rows (`TrialResult.example_scores`)."""
        return self.rows_under or self.name

    @property
    def scale(self) -> float:
        """Units in a value of 1."""
        return 100.0 if self.unit == POINTS else 1.0

    def loss(self, value: float) -> float:
        """A value as what is minimised, in `unit`: points short of 100, or the value with its sign turned."""
        if not self.larger_is_better:
            return self.scale * value
        return 100 * (1 - value) if self.unit == POINTS else -value

    def value_at(self, loss: float) -> float:
        """Inverse of `loss`."""
        if not self.larger_is_better:
            return loss / self.scale
        return 1 - loss / 100 if self.unit == POINTS else -loss

    def text(self, value: float | None) -> str:
        """A value: `0.1234`, `81.5 %`, a perplexity of `395,392`; a dash where there is none."""
        if value is None or not isfinite(value):
            return _DASH
        if self.unit == POINTS:
            return f"{100 * value:.1f} %"
        if not self.by_nll:
            return f"{value:.4g}"
        return f"{value:.4f}" if abs(value) < _WITHOUT_FRACTION else f"{value:,.0f}"

    def amount(self, difference: float) -> str:
        """The size of a difference in `unit`, without it: `0.0120`, `1.5`."""
        if self.by_nll:
            return f"{abs(difference):.4f}"
        return f"{abs(difference):.1f}" if self.unit == POINTS else f"{abs(difference):.4g}"

    def margin_text(self, margin: float) -> str:
        """`0.005 nats`."""
        return f"{margin:g} {self.unit}"

    def better(self, gain: float) -> str:
        """`higher` or `lower`: on which side of the other's a better model's values lie."""
        return "higher" if (gain >= 0) is self.larger_is_better else "lower"

    @property
    def axis(self) -> str:
        """Title of an axis with values times `scale`."""
        if self.by_nll:
            return f"{self.title}, nats per token"
        return f"{self.title}, %" if self.unit == POINTS else f"{self.title}, {self.unit}"
