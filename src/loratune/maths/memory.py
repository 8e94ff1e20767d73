"""Memory of a pack, from shapes alone: every part is counted, and the parts add up to the total.

What the packed engine keeps: the frozen weights once; per trial one flat float32 vector each of weights, gradients
and two moments; of one micro-batch (the rows of all trials are cut into micro-batches) what autograd
saves; the largest of its short-lived tensors; and what the process needs anyway.
First version: dense decoders with rotary or learnt positions, attention without stored scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Literal

from loratune.maths.targets import Shape, select_targets
from loratune.values import HyperParameters, ModelProfile

FLOAT32 = 4
TIGHT = 0.92
"""Above this share of the device's memory the verdict is `tight`: the prediction may be off by 8 %."""
LOGITS_AT_ONCE = 2**24
"""Logits that the engine holds at a time."""
RUNTIME_BYTES = 768 * 2**20
"""Libraries and a CUDA context: 0.5 to 0.8 GiB."""
SLACK = {"cpu": 0.55, "cuda": 0.05}
"""Share of short-lived memory that the allocator holds and nobody uses. On a CPU the C library's heap
fragments: 45 to 55 % measured on Linux with SmolLM2's shape, micro-batches of 2,048 tokens."""
_ATTENTION = "att"

Verdict = Literal["fits", "tight", "does not fit"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Predicted peak by part, in bytes."""

    weights: int
    """The base model."""
    adapters: int
    gradients: int
    optimiser: int
    """Two moments per adapter parameter."""
    activations: int
    """What the backward pass of one micro-batch needs."""
    temporary: int
    """The larger of: a chunk of logits with its gradient; the backward pass through one layer."""
    slack: int
    """What the allocator holds beyond that."""
    runtime: int
    """The process itself."""

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return asdict(self)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def verdict(self, device_bytes: int) -> Verdict:
        """`tight` means within 8 % of the limit."""
        if self.total <= TIGHT * device_bytes:
            return "fits"
        return "tight" if self.total <= device_bytes else "does not fit"

    def fits(self, device_bytes: int) -> bool:
        """Whether the verdict is `fits`: safe to start."""
        return self.verdict(device_bytes) == "fits"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `total` included."""
        return {**self.parts, "total": self.total}


def estimate_pack(
    model: ModelProfile,
    pack: Sequence[HyperParameters],
    *,
    max_length: int,
    micro_batch_tokens: int,
    device: Device = "cuda",
) -> MemoryEstimate:
    """Predicted peak of training `pack` together.

    Args:
        max_length: tokens of the longest row.
        micro_batch_tokens: padded tokens that the engine puts into one micro-batch at most (one row always
            goes in). A larger batch means more micro-batches, not more memory.
    """
    tokens = tokens_in_flight(pack, max_length, micro_batch_tokens)
    parameters = sum(adapter_parameters(model, hp) for hp in pack)
    kept = tokens * base_bytes_per_token(model, adapted(model, pack))
    activations = round(kept) + inner_bytes(model, pack, tokens, max_length)
    temporary = round(max(logits_bytes(model, tokens), backward_bytes(model, tokens)))
    return MemoryEstimate(
        weights=round(model.parameters * model.bytes_per_parameter),
        adapters=FLOAT32 * parameters,
        gradients=FLOAT32 * parameters,
        optimiser=2 * FLOAT32 * parameters,
        activations=activations,
        temporary=temporary,
        slack=round(SLACK[device] * (activations + temporary)),
        runtime=RUNTIME_BYTES,
    )


def tokens_in_flight(pack: Sequence[HyperParameters], max_length: int, micro_batch_tokens: int) -> int:
    """Padded tokens of the largest micro-batch of a step."""
    rows = sum(hp.batch_size for hp in pack)
    return min(max(micro_batch_tokens, max_length), rows * max_length)


def adapter_parameters(model: ModelProfile, hyper_parameters: HyperParameters) -> int:
    """LoRA parameters: Σ r · (in + out)."""
    targets = select_targets(model.targets, hyper_parameters.target_modules)
    ranks = hyper_parameters.ranks_of(name for name, _, _ in targets)
    return sum(r * (inputs + outputs) for r, (_, inputs, outputs) in zip(ranks, targets, strict=True))


def adapted(model: ModelProfile, pack: Sequence[HyperParameters]) -> frozenset[str]:
    """Names of the layers that any trial of the pack adapts."""
    choices = {hp.target_modules for hp in pack}
    return frozenset(name for choice in choices for name, _, _ in select_targets(model.targets, choice))


def base_bytes_per_token(model: ModelProfile, adapted_names: frozenset[str]) -> float:
    """Bytes that autograd saves per token of the base's own operations, all layers together.

    Norms keep a float32 copy of what they see. Attention keeps queries, keys, values, its output and a
    float32 sum per head. A frozen linear layer keeps nothing, an adapted one its input (shared with its
    siblings). A gated MLP keeps gate, up, the activated gate; an MLP without gate the terms of its GELU.
    """
    features = 0
    has_mlp = False
    for parent, members in groupby(model.targets, key=lambda target: target[0].rpartition(".")[0]):
        group = list(members)
        attention = _ATTENTION in parent.lower()
        has_mlp = has_mlp or not attention
        features += _kept_by_group(group, adapted_names, model.hidden_size, attention=attention)
    if not has_mlp:  # a mixture: gate, up and activated gate of the experts used, and what each gives back
        features += model.layers * (3 * model.intermediate_size + model.experts_per_token * model.hidden_size)
    norms = model.norm_features or (2 * model.layers + 1) * model.hidden_size
    sums = model.layers * model.attention_heads
    return features * model.bytes_per_parameter + FLOAT32 * (norms + sums)


def _kept_by_group(
    group: Sequence[Shape], adapted_names: frozenset[str], hidden_size: int, *, attention: bool
) -> int:
    """Features kept per token by the linear layers under one parent: an attention block or an MLP.

    The last of them that gives the hidden size writes to the residual stream; the others' outputs are kept.
    """
    last = max(range(len(group)), key=lambda i: (group[i][2] == hidden_size, i))
    last_name, last_inputs, _ = group[last]
    first = [shape for i, shape in enumerate(group) if i != last]
    kept = sum(outputs for _, _, outputs in first)
    kept += sum({inputs for name, inputs, _ in first if name in adapted_names})
    if attention:
        return kept + last_inputs
    gated = sum(outputs for _, _, outputs in first) >= 2 * last_inputs
    kept += last_inputs if gated else 3 * last_inputs
    return kept + (last_inputs if last_name in adapted_names else 0)


def inner_bytes(model: ModelProfile, pack: Sequence[HyperParameters], tokens: int, max_length: int) -> int:
    """The products A·x, float32 [tokens, r] per adapted layer, where the widest trials fill the micro-batch."""
    total, left = 0, tokens
    for hp in sorted(pack, key=lambda hp: -hp.r):
        share = min(left, hp.batch_size * max_length)
        targets = select_targets(model.targets, hp.target_modules)
        total += share * sum(hp.ranks_of(name for name, _, _ in targets))
        left -= share
    return FLOAT32 * total


def logits_bytes(model: ModelProfile, tokens: int) -> float:
    """A chunk of logits with its likelihoods and gradients: four float32 tensors, and one in the base's type.

    Every token may be supervised. In float32 the logits are one of the four.
    """
    positions = min(tokens, max(16, LOGITS_AT_ONCE // model.vocabulary))
    own = model.bytes_per_parameter if model.bytes_per_parameter != FLOAT32 else 0
    return positions * model.vocabulary * (4 * FLOAT32 + own)


def backward_bytes(model: ModelProfile, tokens: int) -> float:
    """Gradients alive while the backward pass goes through the widest linear layer of one layer.

    The MLP's four gradients and the residual's in the base's type; the layer's input and the gradient
    through A in float32.
    """
    widest = max(model.intermediate_size, *(max(shape[1:]) for shape in model.targets))
    own = model.bytes_per_parameter * (4 * widest + 2 * model.hidden_size)
    return tokens * (own + 2 * FLOAT32 * widest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much of one thing fits where all else stays as it is; 0 where not even one does."""

    model: ModelProfile
    max_length: int
    """Tokens of the longest row."""
    micro_batch_tokens: int
    device_bytes: int
    device: Device = "cuda"

    def estimate(self, pack: Sequence[HyperParameters]) -> MemoryEstimate:
        """Predicted peak of a pack."""
        return estimate_pack(
            self.model,
            pack,
            max_length=self.max_length,
            micro_batch_tokens=self.micro_batch_tokens,
            device=self.device,
        )

    def fits(self, pack: Sequence[HyperParameters]) -> bool:
        """Whether a pack fits with room to spare."""
        return self.estimate(pack).fits(self.device_bytes)

    def largest_pack(self, trial: HyperParameters, limit: int = 4096) -> int:
        """How many such trials train beside each other."""
        return _largest(lambda trials: self.fits([trial] * trials), limit)

    def largest_rank(self, trial: HyperParameters, trials: int = 1) -> int:
        """Rank of that many equal trials, at most the smallest side of a targeted layer."""
        targets = select_targets(self.model.targets, trial.target_modules)
        limit = min(min(shape[1:]) for shape in targets)
        return _largest(lambda r: self.fits([replace(trial, r=r)] * trials), limit)

    def largest_micro_batch(self, pack: Sequence[HyperParameters], limit: int = 2**15) -> int:
        """Tokens that a micro-batch of that pack may hold: the way to fit a large model, at the cost of speed."""
        return _largest(lambda tokens: replace(self, micro_batch_tokens=tokens).fits(pack), limit)

    def largest_batch(self, trial: HyperParameters, limit: int = 2**20) -> int:
        """Rows of `max_length` tokens that one trial trains in one undivided micro-batch.

        Not a limit of the engine, which cuts larger batches into micro-batches.
        """

        def undivided(rows: int) -> bool:
            whole = replace(self, micro_batch_tokens=rows * self.max_length)
            return whole.fits([replace(trial, batch_size=rows)])

        return _largest(undivided, limit)


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, where every smaller one fits too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
