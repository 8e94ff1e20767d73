"""What analysis after a search found: signs of trouble, what mattered, how cut adapters do."""

from dataclasses import dataclass
from enum import StrEnum

from loratune.values.decision import Evidence


class Sign(StrEnum):
    """What losses, gradients and rows can show; each has its own cause and its own remedy."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Impact:
    """One hyper-parameter that was tried at several values."""

    name: str
    """The name in `HyperParameters`; alpha as `lora_alpha / r`."""
    tried: tuple[float, ...]
    """Values in ascending order, each run on all the rows that the effect is from."""
    effect: float | None
    """NLL of the worst value minus that of the best, in nats, each at the best learning rate tried with it and
    all else as recommended; None where no two values can be compared so."""
    effect_interval: tuple[float, float] | None = None
    """95 %, over rows and seeds, for whichever two of the values differ most; None where too few were repeated."""
    effect_rows: float = 1.0
    """Share of the training rows of the trials that the effect is from: the learning rate's may be from a part."""
    share: float | None = None
    """Share of the variance of validation NLL due to this hyper-parameter alone; None where trials are too few."""
    share_interval: tuple[float, float] | None = None
    """95 %, trials resampled."""
    memory_bytes: int = 0
    """Predicted peak of one trial at the largest value minus that at the smallest, all else as recommended."""
    time_factor: float = 1.0
    """Predicted time of one trial alone at the largest value over that at the smallest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """The table of impacts, largest first."""

    impacts: tuple[Impact, ...]
    trials: int
    """Trials on all rows with the same targets and epochs; diverged ones included."""
    wanted_trials: int
    """Trials from which on shares of the variance are computed."""
    interactions: float | None = None
    """Share of the variance that no hyper-parameter explains alone: interactions and noise."""
    noise: float | None = None
    """Share of the variance that is between seeds of the same setting, from repeated trials."""


class Cut(StrEnum):
    """How the ranks of a cut adapter were chosen, and whether it was trained on."""

    UNIFORM = "one rank for all layers"
    THRESHOLD = "one threshold for all layers"
    HEALED = "one rank for all layers, trained on"


@dataclass(frozen=True, kw_only=True, slots=True)
class CutPoint:
    """One cut adapter against the whole one, on the same validation rows."""

    way: Cut
    rank: int
    """Rank of every layer; under a threshold the uniform rank with the same number of parameters."""
    parameters: int
    nll: float
    """Nats per supervised token."""
    loss: float
    """What the cut loses against the whole adapter, in nats or points of the metric."""
    interval: tuple[float, float] | None
    """95 %, paired over rows; it says nothing of other seeds."""
    adequate: bool | None
    """Whether the loss is within the margin (one-sided 95 %); False: beyond it; None: undecided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpectrum:
    """Effective ranks of one layer's update (`lora.spectrum`)."""

    module: str
    stable_rank: float
    entropy_rank: float
    energy_rank: int
    """Singular values that hold 90 % of the energy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """The truncation curve of one adapter."""

    key: str
    """Its trial's key."""
    r: int
    learning_rate: float
    nll: float
    """The whole adapter's on the same rows."""
    rows: int
    """Validation rows that were evaluated."""
    margin: float
    points: tuple[CutPoint, ...]
    layers: tuple[LayerSpectrum, ...]
    cost: float
    """Full-run equivalents."""
    seconds: float

    def curve(self, way: Cut) -> tuple[CutPoint, ...]:
        """Ascending by rank."""
        return tuple(sorted((p for p in self.points if p.way is way), key=lambda point: point.rank))

    @property
    def deployable(self) -> int:
        """The lowest rank that the adapter can be cut to without training on: it and all above are adequate."""
        lowest = self.r
        for point in reversed(self.curve(Cut.UNIFORM)):
            if not point.adequate:
                break
            lowest = point.rank
        return lowest


class Change(StrEnum):
    """What training did to a row."""

    BETTER = "better"
    WORSE = "worse"
    STILL_WRONG = "still wrong"
    STILL_RIGHT = "still right"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One model's answer to a row."""

    nll: float
    """Nats per supervised token."""
    right: bool
    """Whether its most likely label, or without labels its most likely text of that length, is the true one."""
    answer: str = ""
    """Its most likely label; empty where rows have none."""
    text: str = ""
    """What it writes in place of the row's last answer, cut where it is long; empty where nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleRow:
    """A test row as text, cut where it is long."""

    change: Change
    prompt: str
    expected: str
    recommended: Reading
    base: Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Rows of one class that were taken for one class; indices into the profile's labels."""

    true: int
    predicted: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The recommended adapter and the base model on the test rows."""

    examples: tuple[ExampleRow, ...] = ()
    counts: tuple[tuple[Change, int], ...] = ()
    """All test rows by what training did to them."""
    recommended: tuple[Confusion, ...] = ()
    """Every pair of classes that came; empty where rows have no labels."""
    base: tuple[Confusion, ...] = ()
