"""Facts about a dataset and a model, what a probe measured on them, and the prior that follows."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from math import log, log2
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseScale:
    """Gradient noise scale tr(Σ)/|G|², in rows."""

    rows: float
    """Infinite where the gradient's mean cannot be distinguished from zero."""
    low: float
    high: float
    """Ends of a 90 % interval."""
    steps: int
    """Steps over which the two means were taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateTest:
    """Short runs at several learning rates, each annealed to its end."""

    r: int
    lora_alpha: float
    batch_size: int
    rows: int
    """Training rows of each run, seen once."""
    tried: tuple[tuple[float, float], ...]
    """(learning rate, NLL afterwards; infinite where it diverged), ascending."""
    best: float
    inside: bool
    """Whether a worse learning rate was tried on either side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Absorbed:
    """Prequential code length: what a first pass saved against the base model."""

    bits: float
    """Σ (base NLL - online NLL) / ln 2 over the rows; each row is read before it is learnt."""
    rows: int
    supervised_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The parts that were measured; None where time did not suffice."""

    seconds: float
    noise: NoiseScale | None = None
    rate: RateTest | None = None
    absorbed: Absorbed | None = None


PLAIN = "plain"
"""The weight format of a base whose layers are held in the type that is computed in."""


class TaskKind(StrEnum):
    """What a dataset teaches, as far as its rows show."""

    CLASSIFICATION = "classification"
    EXTRACTION = "extraction"
    INSTRUCTION = "instruction"
    DOMAIN_TEXT = "domain text"
    REASONING = "reasoning"
    TRANSLATION = "translation"


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Rows that share most of their tokens, by MinHash and then by their exact Jaccard similarity."""

    threshold: float
    """Smallest Jaccard similarity of the rows' shingles."""
    rows: int
    """Training rows that were compared."""
    training: int
    """Those that an earlier one almost repeats (exact repetitions included)."""
    leaks: tuple[tuple[str, int, int], ...] = ()
    """(split, rows compared, rows that almost stand in training), for validation and test."""
    examples: tuple[tuple[str, str], ...] = ()
    """A few leaked rows with the training row they repeat, as text, cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseLoss:
    """The base model's NLL on a sample of training rows, before anything is trained."""

    nll: float
    """Nats per supervised token."""
    low: float
    high: float
    """Ends of a 95 % interval over rows."""
    rows: int
    supervised_tokens: int
    total: float
    """Nats over all supervised tokens of the training rows, extrapolated: an upper bound of what can be learnt."""

    @property
    def bits(self) -> float:
        """`total` in bits."""
        return self.total / log(2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What a closer look at the rows found; costs seconds, so only some commands take it."""

    kind: TaskKind
    kind_reason: str
    compression_ratio: float
    """Bytes of text over their compressed bytes, on a sample."""
    near_duplicates: NearDuplicates | None = None
    base_loss: BaseLoss | None = None
    warnings: tuple[str, ...] = ()
    """What looks like a mistake in template, mask or splits; a sentence each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataProfile:
    """Counts of a prepared dataset; token figures are of the training split."""

    shape: str
    """`prompt-completion`, `messages`, `text` or `classification`."""
    rows: int
    validation_rows: int
    test_rows: int
    tokens: int
    supervised_tokens: int
    length_mean: float
    length_p50: int
    length_p95: int
    length_max: int
    max_length: int
    """Rows longer than this are left out or cut, as `overlong` and `cut` say."""
    labels: tuple[str, ...] = ()
    label_counts: tuple[int, ...] = ()
    duplicates_removed: int = 0
    """Rows of validation or test that also stand in training (or in validation), taken out."""
    overlong: int = 0
    """Rows left out because prompt and completion do not fit in max_length."""
    cut: int = 0
    """Rows whose prompt was shortened to fit; completions are never cut."""
    unique_tokens: int = 0
    """Different token ids in the training rows."""
    length_quantiles: tuple[tuple[float, int], ...] = ()
    """(share of training rows, tokens that they do not exceed)."""
    length_histogram: tuple[tuple[int, int, int], ...] = ()
    """(first length, last length, rows) of bins that double."""
    supervised_p50: int = 0
    """Supervised tokens of the median row."""
    survey: Survey | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The survey's; none without one."""
        return self.survey.warnings if self.survey else ()

    @property
    def leak_examples(self) -> tuple[tuple[str, str], ...]:
        """(held-out row, training row) as text; none without a survey."""
        near = self.survey.near_duplicates if self.survey else None
        return near.examples if near else ()

    @property
    def label_entropy(self) -> float:
        """Bits per label; 0 without labels."""
        total = sum(self.label_counts)
        return -sum(n / total * log2(n / total) for n in self.label_counts if n)

    @property
    def label_imbalance(self) -> float:
        """Rows of the most frequent label over those of the least frequent one that occurs; 1 without labels."""
        present = [n for n in self.label_counts if n]
        return max(present) / min(present) if present else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        derived = {"label_entropy": self.label_entropy, "label_imbalance": self.label_imbalance}
        return {**asdict(self), **(derived if self.label_counts else {})}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile:
    """Shapes of a base model; what the memory and cost arithmetic needs."""

    name: str
    family: str
    """transformers' `model_type`."""
    hidden_size: int
    layers: int
    attention_heads: int
    vocabulary: int
    parameters: int
    """All, embeddings included (tied ones once)."""
    embedding_parameters: int
    targets: tuple[tuple[str, int, int], ...]
    """(full module name, in features, out features) of every adaptable linear layer."""
    intermediate_size: int = 0
    """Width of the MLP that one token passes through (of a mixture, of all the experts it is sent to)."""
    experts_per_token: int = 0
    """Experts of a mixture that a token is sent to; 0 for dense models."""
    expert_parameters: int = 0
    """Parameters of all experts of a mixture, which stay frozen."""
    head_parameters: int = 0
    """Parameters of a classifier that every trial trains beside its adapter."""
    outputs: int = 0
    """Outputs of a classifier's head; 0: the vocabulary."""
    recurrent: bool = False
    """Whether some layers pass a state from token to token, as hybrids of attention and Mamba do."""
    recurrent_layers: tuple[tuple[str, float], ...] = ()
    """(full name, bytes that it keeps of a token) of such layers, as PyTorch runs them; empty: not known."""
    norm_features: int = 0
    """Features per token that normalisation layers see, all of them together."""
    cached_features: int = 0
    """Keys and values of one token, of all layers together; 0 in profiles of earlier versions."""
    bytes_per_parameter: float = 2.0
    """Bytes of a parameter that is not packed, and of what is computed in."""
    packed_parameters: int = 0
    """Parameters of layers that are held in 4 bits (NF4)."""
    largest_packed: int = 0
    """Parameters of the largest such layer."""
    doubly_packed: bool = True
    """Whether the scales of 4-bit layers are quantised too."""
    shards: int = 1
    """Processes that hold the linear layers between them."""
    sharded_parameters: int = 0
    """Parameters of all those layers; 0 where one process holds everything."""
    largest_sharded: int = 0
    """Parameters of the largest such layer."""

    @property
    def weight_format(self) -> str:
        """`nf4` where linear layers are held in 4 bits, else `PLAIN`."""
        return "nf4" if self.packed_parameters else PLAIN

    @property
    def parameters_per_rank(self) -> int:
        """LoRA parameters at rank 1 over all targets."""
        return sum(inputs + outputs for _, inputs, outputs in self.targets)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about adapting this model, a sentence each."""
        found = []
        if self.expert_parameters:
            share = self.expert_parameters / self.parameters
            found.append(
                f"A mixture of experts: LoRA adapts its attention projections only; the experts, {share:.0%} of the "
                "parameters, stay frozen."
            )
        if self.recurrent:
            found.append(
                "Some layers pass a state from token to token: rows are padded, and "
                + (
                    "predicted memory is that of PyTorch's own operations there, more than kernels of their own need."
                    if self.recurrent_layers
                    else "the predicted memory leaves out what those layers keep."
                )
            )
        return tuple(found)

    @property
    def largest_rank(self) -> int:
        return min(min(inputs, outputs) for _, inputs, outputs in self.targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggested:
    """One recommended value with its uncertainty and its source."""

    value: float
    low: float
    high: float
    reason: str
    """The facts that set it, and where the formula comes from."""
    basis: str = ""
    """What the interval rests on, with its n; empty where it is the law's own range."""
    tasks: int = 0
    """Measured tasks on which the interval was calibrated."""

    @property
    def spread(self) -> float:
        """Upper over lower end."""
        return self.high / self.low


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The prior: what to expect before anything is trained."""

    r: Suggested
    """The smallest rank that is as likely enough as not; the other values belong to it."""
    safe_r: Suggested
    """A rank that is unlikely to be too small, for those who cannot measure; alpha = 2r, and the learning rate times
    (r / safe_r)^0.5."""
    lora_alpha: Suggested
    learning_rate: Suggested
    batch_size: Suggested
    epochs: Suggested
    notes: tuple[str, ...] = ()
