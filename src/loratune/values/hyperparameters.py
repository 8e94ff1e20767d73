"""The hyper-parameters of one LoRA run, under PEFT's and transformers' own names."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from math import sqrt
from typing import Any, Self

from loratune.errors import HyperParameterError

ALL_LINEAR = ("all-linear",)
"""Target every linear layer but the head, as PEFT's `target_modules="all-linear"` does."""

_FLAGS = {"r": "--rank"}
"""Options of the command line that are not called as their field."""
_EXAMPLES = {
    "r": "16",
    "lora_alpha": "32",
    "learning_rate": "2e-4",
    "batch_size": "16",
    "lora_dropout": "0.05",
    "weight_decay": "0.01",
    "epochs": "3",
    "warmup_ratio": "0.05",
    "target_modules": "all-linear",
    "loraplus_lr_ratio": "16",
    "beta": "0.1",
}
"""A value that works, by field."""

_LARGEST = 1e30
"""Of any value: float32, in which adapters are trained, holds 3e38."""

VARIANT = ("use_rslora", "loraplus_lr_ratio", "use_dora")
"""Fields that make an adapter something else than plain LoRA, under PEFT's names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperParameters:
    """What a trial is trained with. Raises `HyperParameterError` where a value is outside its range."""

    r: int
    """LoRA rank, ≥ 1."""
    lora_alpha: float
    """Numerator of the scaling lora_alpha / r, > 0."""
    learning_rate: float
    """Peak learning rate of AdamW, > 0."""
    batch_size: int
    """Rows per optimiser step, ≥ 1."""
    lora_dropout: float = 0.0
    """Dropout on the input of lora_A, in [0, 1)."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay, ≥ 0."""
    epochs: float = 1.0
    """Passes over the training rows, > 0."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises linearly from zero, in [0, 1); then linear to zero."""
    target_modules: tuple[str, ...] = ALL_LINEAR
    """Names (suffixes) of the adapted modules, or `ALL_LINEAR`."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """(full module name, rank ≥ 1) of the modules whose rank is not `r`; their alpha is in proportion."""
    beta: float | None = None
    """Weight of a preference, > 0; None where the objective has none."""
    use_rslora: bool = False
    """Whether B·A is scaled by lora_alpha / √r instead of lora_alpha / r."""
    loraplus_lr_ratio: float = 1.0
    """LoRA+: the learning rate of B as a multiple, ≥ 1, of that of A."""
    use_dora: bool = False
    """DoRA: whether each output of an adapted layer has a trained magnitude; only without dropout."""

    def __post_init__(self) -> None:
        rules = (
            ("r", self.r >= 1 and self.r == int(self.r), "a whole number of at least 1"),
            ("lora_alpha", 0 < self.lora_alpha <= _LARGEST, "above 0, such as 16"),
            (
                "learning_rate",
                0 < self.learning_rate <= _LARGEST,
                "above 0, such as 2e-4",
            ),
            ("batch_size", self.batch_size >= 1 and self.batch_size == int(self.batch_size), "at least 1"),
            ("lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1), such as 0.1"),
            ("weight_decay", 0 <= self.weight_decay <= _LARGEST, "at least 0"),
            ("epochs", 0 < self.epochs <= _LARGEST, "above 0, such as 3"),
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1), such as 0.05"),
            ("target_modules", len(self.target_modules) > 0, "at least one name, such as all-linear"),
            (
                "rank_pattern",
                all(r >= 1 and r == int(r) for _, r in self.rank_pattern),
                "ranks of at least 1",
            ),
            (
                "loraplus_lr_ratio",
                1 <= self.loraplus_lr_ratio <= _LARGEST,
                "at least 1, such as 16",
            ),
            ("use_dora", not (self.use_dora and self.lora_dropout), "off where lora_dropout is not 0"),
            ("beta", self.beta is None or 0 < self.beta <= _LARGEST, "above 0, such as 0.1"),
        )
        for name, holds, rule in rules:
            if not holds:
                flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
                advice = f"give e.g. {flag} {_EXAMPLES[name]}" if name in _EXAMPLES else f"leave {flag} out"
                above = f" and at most {_LARGEST:g}" if _is_too_large(getattr(self, name)) else ""
                raise HyperParameterError(
                    f"{name} must be {rule}{above}, got {getattr(self, name)!r}; {advice}."
                )

    @property
    def variant(self) -> str:
        """What it is beside plain LoRA, in words: `rsLoRA`, `LoRA+ (ratio 16)`; empty where it is nothing else."""
        words = (
            "rsLoRA" if self.use_rslora else "",
            "DoRA" if self.use_dora else "",
            f"LoRA+ (ratio {self.loraplus_lr_ratio:g})" if self.loraplus_lr_ratio != 1 else "",
        )
        return ", ".join(word for word in words if word)

    @property
    def scaling(self) -> float:
        """PEFT's factor on B·A, the same for every module."""
        return self.lora_alpha / (sqrt(self.r) if self.use_rslora else self.r)

    @property
    def alpha_ratio(self) -> float:
        """Alpha as a multiple of the rank, however it scales."""
        return self.lora_alpha / self.r

    def alpha_at(self, rank: int) -> float:
        """The alpha that scales an adapter of another rank as this one is scaled."""
        return self.scaling * (sqrt(rank) if self.use_rslora else rank)

    @property
    def alpha_pattern(self) -> dict[str, float]:
        """Alpha by full module name where the rank is not `r`: alpha grows with the rank, as PEFT's EVA does."""
        return {name: self.alpha_at(rank) for name, rank in self.rank_pattern}

    def ranks_of(self, modules: Iterable[str]) -> tuple[int, ...]:
        """The rank of each module, by full name."""
        pattern = dict(self.rank_pattern)
        return tuple(pattern.get(module, self.r) for module in modules)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `rank_pattern`, a mapping, `beta` and what makes a variant are absent by default."""
        values = {**asdict(self), "target_modules": list(self.target_modules)}
        for name, usual in _ABSENT.items():
            if values[name] == usual:
                del values[name]
        if self.rank_pattern:
            values["rank_pattern"] = dict(self.rank_pattern)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        pattern = tuple(values.get("rank_pattern", {}).items())
        return cls(**{**values, "target_modules": tuple(values["target_modules"]), "rank_pattern": pattern})


def _is_too_large(value: Any) -> bool:
    return isinstance(value, float) and value > _LARGEST


_USUAL: dict[str, Any] = {each.name: each.default for each in fields(HyperParameters)}
VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "loraplus": {"loraplus_lr_ratio": 16.0},
    "dora": {"use_dora": True},
}
"""What searches call them: the fields that differ from plain LoRA's; LoRA+ with its authors' ratio."""


def changed_by(values: HyperParameters, variant: str, **changes: Any) -> HyperParameters:
    """The same as a variant of `VARIANTS`, with other changes."""
    return replace(values, **VARIANTS[variant], **changes)


PLAIN_LORA = {name: _USUAL[name] for name in VARIANT}
"""The values with which an adapter is plain LoRA."""
_ABSENT = {name: _USUAL[name] for name in ("rank_pattern", "beta", *VARIANT)}
"""Values that a document leaves out."""


def default_recipe(epochs: float = 1.0, warmup_ratio: float = 0.05) -> HyperParameters:
    """What everybody uses today and every result is compared with: r 16, alpha 32, 2e-4, batch 16."""
    return HyperParameters(
        r=16, lora_alpha=32, learning_rate=2e-4, batch_size=16, epochs=epochs, warmup_ratio=warmup_ratio
    )


PUBLISHED_RATES = (1e-4, 2e-4, 4e-4, 8e-4)
"""Learning rates with which the default recipe's rank and batch size are usually tried."""
