"""Memory of a pack, from shapes alone: every part is counted, and the parts add up to the total.

What the engine keeps: the frozen weights once; per trial one flat float32 vector each of weights, gradients
and two moments; of one micro-batch (the rows of all trials are cut into micro-batches) what the backward
pass needs (`activations`); the larger of its short-lived tensors; and what libraries and allocator take.
How the engine runs is an `Execution`, which holds all constants; a `Correction` measured on the device at
hand applies to every estimate.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Literal

from loratune.costs.activations import kept_bytes_per_token
from loratune.costs.correction import UNCORRECTED, Correction, Peak
from loratune.costs.execution import (
    FLOAT32,
    NF4_BLOCK,
    NF4_BYTES,
    NF4_PLAIN_SCALES_BYTES,
    OPTIMISER_VECTORS,
    Execution,
)
from loratune.maths.sizes import SHARD_BUFFERS, line_tokens, recorded_tokens
from loratune.maths.targets import select_targets
from loratune.values import HyperParameters, ModelProfile

TIGHT = 0.92
"""Share of the device's memory above which the verdict is `tight`: the prediction may be off by 8 %."""

Verdict = Literal["fits", "tight", "does not fit"]


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
    logits: int
    """Final states, and a chunk of logits with its gradient."""
    backward: int
    """What the backward pass through one layer holds beyond the room that the logits have left; where all layers run
    again, that layer's activations too."""
    workspace: int
    """What matrix products set aside."""
    allocator: int
    """What the allocator holds beyond all that."""
    runtime: int
    """The process itself; with a correction, also what was measured beyond (or below) the other parts."""

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return asdict(self)

    @property
    def steady(self) -> int:
        """What is held between steps too: base, adapters, their gradients and moments."""
        return self.weights + self.adapters + self.gradients + self.optimiser

    @property
    def transient(self) -> int:
        """What lives within a step and grows with the tokens in flight, the allocator's part included."""
        return self.activations + self.logits + self.backward + self.allocator

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def verdict(self, device_bytes: int) -> Verdict:
        """`tight` means within 8 % of the limit. `device_bytes` is all that the process may take."""
        if self.total <= TIGHT * device_bytes:
            return "fits"
        return "tight" if self.total <= device_bytes else "does not fit"

    def fits(self, device_bytes: int) -> bool:
        """Whether the verdict is `fits`: safe to start."""
        return self.verdict(device_bytes) == "fits"

    def held(self, tensors: int) -> int:
        """What a GPU holds for that many bytes of tensors, by this estimate."""
        return tensors + self.allocator + self.runtime

    def peak(self, measured: int) -> Peak:
        """This (uncorrected) estimate beside the measured whole, as `fit_correction` wants it."""
        fixed = self.runtime + self.workspace
        return Peak(steady=self.steady, runtime=fixed, transient=self.transient, measured=measured)


def estimate_pack(
    model: ModelProfile,
    pack: Sequence[HyperParameters],
    *,
    max_length: int,
    micro_batch_tokens: int,
    execution: Execution,
    correction: Correction = UNCORRECTED,
    supervised: float = 1.0,
    step_tokens: int | None = None,
    recomputed: int = 0,
) -> MemoryEstimate:
    """Predicted peak of training `pack` together.

    Args:
        max_length: tokens of the longest row.
        micro_batch_tokens: tokens, padding included, that the engine puts into one micro-batch at most (one
            row always goes in). A larger batch means more micro-batches, not more memory.
        supervised: share of the tokens that are supervised; only their logits are computed.
        step_tokens: tokens of the largest step, where rows are known; else every row is as long as the longest.
        recomputed: layers, the first ones, whose activations are computed again in the backward pass.
    """
    recorded = recorded_tokens(model.parameters) if execution.records and model.shards == 1 else 0
    tokens = tokens_in_flight(pack, max_length, micro_batch_tokens, execution, step_tokens, recorded)
    parameters = sum(count * adapter_parameters(model, hp) for hp, count in Counter(pack).items())
    names = adapted(model, pack, execution)
    inner = inner_bytes(model, pack, tokens, max_length, execution)
    activations = tokens * kept_bytes_per_token(model, names, execution, recomputed)
    activations += inner * (1 - recomputed / model.layers)
    logits = logits_bytes(model, tokens, supervised, execution)
    backward = backward_bytes(model, pack, tokens, max_length, execution)
    if (
        recomputed == model.layers
    ):  # else those that are kept need more, and are gone when the first ones run again
        one = kept_bytes_per_token(model, names, execution, model.layers - 1)
        backward += tokens * (one - kept_bytes_per_token(model, names, execution, model.layers))
        backward += inner / model.layers
    beyond = max(0.0, backward - logits)
    slack = execution.allocator * (activations + logits + beyond)
    return MemoryEstimate(
        weights=weight_bytes(model),
        adapters=round(execution.adapter_bytes(model.bytes_per_parameter) * parameters),
        gradients=FLOAT32 * parameters,
        optimiser=OPTIMISER_VECTORS * FLOAT32 * parameters,
        activations=round(correction.scale * activations),
        logits=round(correction.scale * logits),
        backward=round(correction.scale * beyond),
        workspace=execution.workspace + unpacked_bytes(model) + copied_bytes(model),
        allocator=round(correction.scale * slack),
        runtime=execution.runtime + correction.fixed,
    )


def weight_bytes(model: ModelProfile) -> int:
    """The base, as far as a process holds it: layers in 4 bits with their scales, all else in its own type."""
    packed = NF4_BYTES if model.doubly_packed else NF4_PLAIN_SCALES_BYTES
    plain = model.parameters - model.packed_parameters
    whole = plain * model.bytes_per_parameter + packed * model.packed_parameters
    return round(whole - _sharded_bytes(model, model.sharded_parameters) * (1 - 1 / model.shards))


def copied_bytes(model: ModelProfile) -> int:
    """Layers of other processes that are here at once."""
    return round(SHARD_BUFFERS * _sharded_bytes(model, model.largest_sharded)) if model.shards > 1 else 0


def _sharded_bytes(model: ModelProfile, parameters: int) -> float:
    packed = NF4_BYTES if model.doubly_packed else NF4_PLAIN_SCALES_BYTES
    return parameters * (packed if model.packed_parameters else model.bytes_per_parameter)


def unpacked_bytes(model: ModelProfile) -> int:
    """A layer in 4 bits is unpacked for each of its products, its scales before it; one lives at a time."""
    scales = FLOAT32 / NF4_BLOCK if model.doubly_packed else 0
    return round(model.largest_packed * (model.bytes_per_parameter + scales))


def tokens_in_flight(
    pack: Sequence[HyperParameters],
    max_length: int,
    micro_batch_tokens: int,
    execution: Execution,
    step_tokens: int | None = None,
    recorded: int = 0,
) -> int:
    """Tokens of the largest micro-batch of a step, padding included.

    Flat rows fill as few micro-batches as the limit allows, each about equally; padded ones up to the limit.
    `recorded`: tokens of the largest micro-batch that is recorded.
    """
    rows = sum(hp.batch_size for hp in pack)
    step = rows * max_length if step_tokens is None else min(step_tokens, rows * max_length)
    limit = max(micro_batch_tokens, max_length)
    if not execution.flat:
        return min(limit, step)
    count = ceil(step / limit)
    largest = step if count == 1 else min(limit, ceil(step / count) + max_length - 1)
    if step_tokens is not None and step == rows * max_length:  # rows known to be alike
        count = ceil(rows / (limit // max_length))
        largest = ceil(rows / count) * max_length
    return line_tokens(largest, multiple=execution.token_multiple, recorded=recorded)


def adapter_parameters(model: ModelProfile, hyper_parameters: HyperParameters) -> int:
    """LoRA parameters: Σ r · (in + out), each layer with its own rank; DoRA's; and those of a classifier's head."""
    targets = select_targets(model.targets, hyper_parameters.target_modules)
    ranks = hyper_parameters.ranks_of(name for name, _, _ in targets)
    lora = sum(r * (inputs + outputs) for r, (_, inputs, outputs) in zip(ranks, targets, strict=True))
    magnitudes = sum(outputs for _, _, outputs in targets) if hyper_parameters.use_dora else 0
    return lora + magnitudes + model.head_parameters


def adapter_bytes(model: ModelProfile, hyper_parameters: HyperParameters, execution: Execution) -> int:
    """What one more trial holds between steps: weights, gradients and moments."""
    each = execution.adapter_bytes(model.bytes_per_parameter) + (1 + OPTIMISER_VECTORS) * FLOAT32
    return round(each * adapter_parameters(model, hyper_parameters))


def adapted(model: ModelProfile, pack: Sequence[HyperParameters], execution: Execution) -> frozenset[str]:
    """Names of the layers that any trial of the pack adapts; of all where the kernels visit every layer."""
    if execution.shared_inner:
        return frozenset(name for name, _, _ in model.targets)
    choices = {hp.target_modules for hp in pack}
    return frozenset(name for choice in choices for name, _, _ in select_targets(model.targets, choice))


def inner_bytes(
    model: ModelProfile, pack: Sequence[HyperParameters], tokens: int, max_length: int, execution: Execution
) -> float:
    """The inner products A·x of all adapted layers, kept for the gradient of B; of DoRA its outputs too, for that of m.

    Segment by segment: [tokens, r] in float32, where the widest trials fill the micro-batch. In one tensor for
    all: [tokens, widest block] in the base's type for every adaptable layer.
    """
    if execution.shared_inner:
        widest = max(max(hp.r, *(r for _, r in hp.rank_pattern), 1) for hp in pack)
        each = tokens * execution.rank_block(widest) * model.bytes_per_parameter
        return each * len(model.targets)
    total, left = 0, tokens
    kinds = [(_kept(model, hp), count * hp.batch_size) for hp, count in Counter(pack).items()]
    for kept, rows in sorted(kinds, reverse=True):
        share = min(left, rows * max_length)
        total += share * kept
        left -= share
    return FLOAT32 * total


def _kept(model: ModelProfile, hp: HyperParameters) -> int:
    targets = select_targets(model.targets, hp.target_modules)
    outputs = sum(outputs for _, _, outputs in targets) if hp.use_dora else 0
    return sum(hp.ranks_of(name for name, _, _ in targets)) + outputs


def logits_bytes(model: ModelProfile, tokens: int, supervised: float, execution: Execution) -> float:
    """The decoder's states, those that predict with their gradients, and one chunk of logits.

    Per logit the logit itself and the larger of: the float32 numbers between likelihood and slope; the slope
    and the gradient that selects the chunk, both in the base's type.
    """
    own = model.bytes_per_parameter
    predicting = min(tokens, ceil(tokens * supervised))
    choices = model.outputs or model.vocabulary
    positions = min(predicting, max(16, execution.logits_at_once // choices))
    each = own + max(FLOAT32 * execution.likelihoods, 2 * own)
    return positions * choices * each + own * model.hidden_size * (tokens + 2 * predicting)


def backward_bytes(
    model: ModelProfile, pack: Sequence[HyperParameters], tokens: int, max_length: int, execution: Execution
) -> float:
    """Gradients alive while the backward pass goes through one layer: through its MLP or through a norm.

    Where the wide input of the MLP's last layer is not kept, its gradient outlives the product by one step.
    """
    names = adapted(model, pack, execution)
    widest = max(model.intermediate_size, *(max(shape[1:]) for shape in model.targets))
    inputs = max(inputs for name, inputs, _ in model.targets if name in names)
    count = execution.backward_wide + (inputs < widest)
    wide = tokens * count * widest * model.bytes_per_parameter
    if execution.float32_input and model.bytes_per_parameter < FLOAT32:
        segment = min(tokens, max(hp.batch_size for hp in pack) * max_length)
        wide += 2 * FLOAT32 * inputs * segment
    return max(wide, tokens * execution.backward_hidden * model.hidden_size)
