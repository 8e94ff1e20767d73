"""What compiled layers keep for their backward pass, by torch's own partitioner, against the memory model.

The Triton kernels and the row attention of the GPU path need a GPU; here operators of the same shapes stand for them,
opaque to the compiler as those are, and do no arithmetic. Compiled is with autograd's partitioner and without
code generation, so that the test runs anywhere.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from loratune.costs.execution import ON_CUDA
from loratune.costs.memory import estimate_pack
from loratune.model.profile import profile_of
from loratune.values import HyperParameters

TOKENS, RANK = 96, 16


@torch.library.custom_op("memory_test::low_rank", mutates_args=())
def low_rank(x: Tensor, y: Tensor, anchor: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    return y.clone(), x.new_zeros(inner.shape)


@low_rank.register_fake
def _(x: Tensor, y: Tensor, anchor: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), x.new_empty(inner.shape)


@torch.library.custom_op("memory_test::low_rank_backward", mutates_args=())
def low_rank_backward(grad: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(x), x.new_zeros(1)


@low_rank_backward.register_fake
def _(grad: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(1)


def keep_input_and_inner(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], output[1])


def low_rank_gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    grad_x, grad_anchor = torch.ops.memory_test.low_rank_backward(grad, *ctx.saved_tensors)
    return grad_x, grad, grad_anchor, None


low_rank.register_autograd(low_rank_gradients, setup_context=keep_input_and_inner)


@torch.library.custom_op("memory_test::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(query), query.new_zeros((query.shape[1], query.shape[0]), dtype=torch.float32)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


@torch.library.custom_op("memory_test::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)


@attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def keep_all(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)


def attention_gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.memory_test.attention_backward(grad, *ctx.saved_tensors)
    return found


attention.register_autograd(attention_gradients, setup_context=keep_all)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    lines = (each[0].transpose(0, 1) for each in (query, key, value))
    return attention(*lines)[0].unsqueeze(0), None


AttentionInterface.register("memory_test", attend)


def kept_and_predicted(kind: type[PreTrainedConfig], layers: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that the compiled layers save, weights left out, and the model's activations."""
    config = kind(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="memory_test")
    model.eval().requires_grad_(False)
    profile = profile_of(model, "random")
    anchor, inner = torch.zeros(1, requires_grad=True), torch.zeros(1, dtype=dtype).expand(TOKENS, RANK)
    for name, _, _ in profile.targets:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, y: low_rank(inputs[0], y, anchor, inner)[0])
    for layer in model.model.layers:
        layer._compiled_call_impl = torch.compile(
            layer._call_impl, dynamic=True, backend="aot_eager_decomp_partition"
        )
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    places = torch.arange(TOKENS).unsqueeze(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=places % 64, position_ids=places, use_cache=False)
    trial = HyperParameters(r=RANK, lora_alpha=RANK, learning_rate=1e-3, batch_size=1)
    estimate = estimate_pack(
        profile,
        [trial],
        max_length=TOKENS,
        micro_batch_tokens=TOKENS,
        execution=ON_CUDA,
    )
    scaled = estimate.activations * TOKENS // ON_CUDA.token_multiple  # the model fills lines up
    return sum(sizes.values()), scaled


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(LlamaConfig, torch.bfloat16), (Qwen2Config, torch.float32)],
    ids=["llama, bfloat16", "qwen2, float32"],
)
def test_a_compiled_layer_more_adds_what_the_partitioner_saves(
    kind: type[PreTrainedConfig], dtype: torch.dtype
) -> None:
    few, more = kept_and_predicted(kind, 2, dtype), kept_and_predicted(kind, 3, dtype)
    assert more[1] - few[1] == pytest.approx(more[0] - few[0], rel=0.001)
