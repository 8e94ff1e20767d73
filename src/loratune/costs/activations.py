"""Activations from the shapes of a model's layers: what training keeps per token, and what an evaluation holds.

Dense decoders with rotary or learnt positions, and mixtures of experts roughly; attention without stored scores. An
evaluation is predicted within 5 % of all living tensors for models like Llama, a quarter for others
(`tests/costs/test_evaluation_memory.py`). Knows shapes only, no pack and no device beyond its `Execution`.
"""

from collections.abc import Sequence
from itertools import groupby
from math import ceil

from loratune.costs.execution import FLOAT32, Execution
from loratune.maths.targets import Shape
from loratune.values import ModelProfile

_ATTENTION = "att"


def base_bytes_per_token(model: ModelProfile, adapted: frozenset[str], execution: Execution) -> float:
    """Bytes kept per token of the base's own operations, all layers together.

    A frozen linear layer keeps nothing, an adapted one its input, shared by siblings. Attention keeps queries,
    keys and values (after their rotation), its output and a float32 sum per head. A gated MLP keeps gate and
    up; its activated gate and the product only without recomputation (the product is the input of an adapted
    `down_proj`). A norm keeps a float32 number, and without recomputation a float32 copy of what it sees; with it,
    the residual stream before it and what it gives to the layers behind it stay, in the base's type. A layer that
    passes a state on keeps what was counted when the model was read.

    Args:
        adapted: full names of the layers that any trial adapts.
    """
    features = 0.0
    has_mlp = False
    recurrent = dict(model.recurrent_layers)
    for parent, members in groupby(model.targets, key=lambda target: target[0].rpartition(".")[0]):
        group = list(members)
        if parent in recurrent:
            continue
        if _ATTENTION in parent.lower():
            features += _attention(group, adapted, model, execution)
        else:
            has_mlp = True
            features += _mlp(group, adapted, model.hidden_size, execution)
    if not has_mlp:
        features += _experts(model, execution)
    sums = model.layers * model.attention_heads
    kept = sum(recurrent.values())
    return features * model.bytes_per_parameter + FLOAT32 * (sums + _norms(model, execution)) + kept


def kept_bytes_per_token(
    model: ModelProfile, adapted: frozenset[str], execution: Execution, recomputed: int
) -> float:
    """`base_bytes_per_token` if this number of layers keep no activations: their inputs alone, and the attention's
    output where it is not computed again. Layers count alike; what the layers above them read, and its gradient, are
    two inputs more.
    """
    everything = base_bytes_per_token(model, adapted, execution)
    if not recomputed:
        return everything
    last_norm = FLOAT32 * (1 if execution.recompute else 1 + model.hidden_size)
    kept = (everything - last_norm) * (1 - recomputed / model.layers)
    return last_norm + kept + recomputed * _input_bytes(model, execution) + 2 * _stream(model)


def _input_bytes(model: ModelProfile, execution: Execution) -> float:
    """Bytes per token of a layer that runs again."""
    if not execution.keeps_attention:
        return _stream(model)
    blocks = {}
    for parent, members in groupby(model.targets, key=lambda target: target[0].rpartition(".")[0]):
        if _ATTENTION in parent.lower():
            _, (_, output, _) = _split(list(members), model.hidden_size)
            blocks[parent] = output * model.bytes_per_parameter + FLOAT32 * model.attention_heads
    return _stream(model) + sum(blocks.values()) / model.layers


def _stream(model: ModelProfile) -> float:
    """Bytes of a token's hidden state."""
    return model.bytes_per_parameter * model.hidden_size


def _norms(model: ModelProfile, execution: Execution) -> int:
    """float32 numbers that the norms keep: one each, and what they see unless it is computed again."""
    seen = model.norm_features or (2 * model.layers + 1) * model.hidden_size
    norms = 2 * model.layers + 1
    return norms if execution.recompute else norms + seen


def _attention(
    group: Sequence[Shape], adapted: frozenset[str], model: ModelProfile, execution: Execution
) -> float:
    """Features of one attention block in the base's type: inputs, queries, keys, values, output."""
    first, (name, output, _) = _split(group, model.hidden_size)
    each = FLOAT32 / model.bytes_per_parameter if execution.float32_attention else 1.0
    inside = each * (sum(outputs for *_, outputs in first) + output)
    collected = output if execution.collects_attention and name in adapted else 0
    return _inputs(first, adapted, execution) + inside + collected


def _mlp(group: Sequence[Shape], adapted: frozenset[str], hidden_size: int, execution: Execution) -> int:
    """Features of one MLP: inputs, gate and up (or the one wide layer), what is between them and the last."""
    first, last = _split(group, hidden_size)
    name, width, _ = last
    outputs = sum(outputs for *_, outputs in first)
    kept = _inputs(first, adapted, execution) + outputs
    if not execution.recompute:
        gated = outputs >= 2 * width
        kept += width if gated else 3 * width  # without a gate, the terms of its GELU
    product = name in adapted and (execution.keeps_product or not execution.recompute)
    return kept + (width if product else 0)


def _experts(model: ModelProfile, execution: Execution) -> int:
    """Features of a mixture's experts: gate, up and what lies between, and what each expert gives back."""
    between = 2 if execution.recompute else 3
    each = between * model.intermediate_size + model.experts_per_token * model.hidden_size
    return model.layers * each


def _split(group: Sequence[Shape], hidden_size: int) -> tuple[list[Shape], Shape]:
    """The layers under one parent without the last that gives the hidden size (to the residual), and that."""
    last = max(range(len(group)), key=lambda i: (group[i][2] == hidden_size, i))
    return [shape for i, shape in enumerate(group) if i != last], group[last]


def _inputs(first: Sequence[Shape], adapted: frozenset[str], execution: Execution) -> int:
    """Distinct inputs kept: of adapted layers, and with recomputation of all, each beside the residual stream."""
    kept = sum({inputs for name, inputs, _ in first if execution.recompute or name in adapted})
    return 2 * kept if execution.recompute else kept


def evaluation_bytes(
    model: ModelProfile, *, tokens: int, models: int, supervised: float, execution: Execution
) -> float:
    """Bytes of tensors while a micro-batch is evaluated, beyond what is held between steps.

    The largest of: a layer's MLP, its attention where that needs more, the head.

    Args:
        tokens: of the micro-batch, padding included.
        models: adapters that share it.
        supervised: share of the tokens that are supervised.
    """
    inside = max(_mlp_bytes(model, models, execution), _attention_bytes(model, execution))
    return max(tokens * (_stream_bytes(model) + inside), _head_bytes(model, tokens, supervised, execution))


def _stream_bytes(model: ModelProfile) -> float:
    """Bytes per token while a layer works: the residual stream, what a norm and a product make of it, the angles."""
    angles = 2 * model.hidden_size / model.attention_heads
    return model.bytes_per_parameter * (4 * model.hidden_size + angles)


def _mlp_bytes(model: ModelProfile, models: int, execution: Execution) -> float:
    """Bytes per token: gate, up and their product; or product, output and one model's float32 copy of the product.

    Without a `gate_proj` of its own one tensor more, the terms of a GELU or a part cut out; a mixture also gathers
    what each of its experts reads and gives back.
    """
    own, wide = model.bytes_per_parameter, model.intermediate_size
    copied = FLOAT32 * wide / models if execution.float32_input and own < FLOAT32 else 0.0
    gathered = 3 * own * model.experts_per_token * model.hidden_size
    plain = model.experts_per_token or any(name.endswith("gate_proj") for name, _, _ in model.targets)
    return max((3 if plain else 4) * own * wide + gathered, 2 * own * wide + copied)


def _attention_bytes(model: ModelProfile, execution: Execution) -> float:
    """Bytes per token: queries, keys and their copies, where attention runs in float32; else the MLP is more."""
    if not execution.float32_attention:
        return 0.0
    queries, keys = (
        max((outputs for name, _, outputs in model.targets if name.endswith(end)), default=model.hidden_size)
        for end in ("q_proj", "k_proj")
    )
    copied = 2 * model.bytes_per_parameter if model.bytes_per_parameter < FLOAT32 else 0.0
    return (queries + keys) * (4 * FLOAT32 + copied)


def _head_bytes(model: ModelProfile, tokens: int, supervised: float, execution: Execution) -> float:
    """Final states, and a chunk's logits in the base's type and in float32, in which all else is done in place.

    Twice in the base's type where that is float32: a model that scales or caps its logits holds both.
    """
    own = model.bytes_per_parameter
    predicting = min(tokens, ceil(tokens * supervised))
    choices = model.outputs or model.vocabulary
    positions = min(predicting, max(16, execution.logits_at_once // choices))
    return positions * choices * (own + FLOAT32) + own * model.hidden_size * (tokens + predicting)
