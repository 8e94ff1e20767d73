"""Facts about a dataset and a model, and the prior that follows from them."""

from dataclasses import asdict, dataclass
from typing import Any


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


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
    """Of a mixture of experts, how many a token is sent to; 0 for dense models."""
    norm_features: int = 0
    """Features per token that normalisation layers see, all of them together."""
    bytes_per_parameter: float = 2.0

    @property
    def parameters_per_rank(self) -> int:
        """LoRA parameters at rank 1 over all targets."""
        return sum(inputs + outputs for _, inputs, outputs in self.targets)

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The prior: what to expect before anything is trained."""

    r: Suggested
    lora_alpha: Suggested
    learning_rate: Suggested
    batch_size: Suggested
    epochs: Suggested
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
