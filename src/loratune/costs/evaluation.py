"""Memory of an evaluation: without a backward pass the tensors of one layer are all that lives at a time.

Within 5 % of all living tensors for models like Llama, a quarter for others (`tests/test_evaluation_memory.py`). Knows
shapes only, no pack and no device beyond its `Execution`.
"""

from math import ceil

from loratune.costs.execution import FLOAT32, Execution
from loratune.values import ModelProfile


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
    """Per token, while a layer works: the residual stream, what a norm and a product make of it, the angles."""
    angles = 2 * model.hidden_size / model.attention_heads
    return model.bytes_per_parameter * (4 * model.hidden_size + angles)


def _mlp_bytes(model: ModelProfile, models: int, execution: Execution) -> float:
    """Per token: gate, up and their product; or product, output and one model's float32 copy of the product.

    Without a `gate_proj` of its own one tensor more, the terms of a GELU or a part cut out; a mixture also gathers
    what each of its experts reads and gives back.
    """
    own, wide = model.bytes_per_parameter, model.intermediate_size
    copied = FLOAT32 * wide / models if execution.float32_input and own < FLOAT32 else 0.0
    gathered = 3 * own * model.experts_per_token * model.hidden_size
    plain = model.experts_per_token or any(name.endswith("gate_proj") for name, _, _ in model.targets)
    return max((3 if plain else 4) * own * wide + gathered, 2 * own * wide + copied)


def _attention_bytes(model: ModelProfile, execution: Execution) -> float:
    """Per token: queries and keys with what is made of them, where attention runs in float32; else the MLP is more."""
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
    positions = min(predicting, max(16, execution.logits_at_once // model.vocabulary))
    return positions * model.vocabulary * (own + FLOAT32) + own * model.hidden_size * (tokens + predicting)
