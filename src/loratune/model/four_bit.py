"""Linear layers in 4 bits: each is unpacked once for a micro-batch, in the forward pass and again in the backward pass.

One unpacked layer lives at a time, for all of a micro-batch. bitsandbytes' own forward pass takes other kernels
for few tokens and for the passes of evaluations, which round otherwise, and knows no float64; this one is the same for
all. torch.compile leaves the product in one piece, so that what lives of it is not the compiler's choice.
Imported only where bitsandbytes is installed.
"""

from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch.nn import functional

_UNPACKS_INTO = (torch.bfloat16, torch.float16, torch.float32)
"""What bitsandbytes unpacks into."""
_SCALES_BLOCK = 256
"""Scales that share a float32 where scales are quantised too."""


class Packed(NamedTuple):
    """The tensors of a layer's weight, in the order that the operator takes them."""

    weight: torch.Tensor
    """uint8, two parameters each."""
    scales: torch.Tensor
    """Scale of each block of parameters; uint8 where they are quantised too, else float32."""
    outer_scales: torch.Tensor | None
    """float32, of each 256 scales; None where scales are not quantised."""
    outer_code: torch.Tensor | None
    """float32 [256], what the bytes of `scales` stand for."""
    offset: torch.Tensor | None
    """float32, the mean of the scales."""


class PackedLinear(Linear4bit):  # type: ignore[misc]
    """bitsandbytes' layer with the product of this file; PEFT takes it for bitsandbytes' own."""

    packed: Packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [.., out] of x [.., in], in x's type."""
        block = self.weight.blocksize
        size = self.out_features, self.in_features, block
        result: torch.Tensor = torch.ops.loratune.packed_linear(x, *self.packed, self.bias, *size)
        return result


def adopt(layer: Linear4bit, dtype: torch.dtype) -> None:
    """Make a loaded layer a `PackedLinear` that computes in `dtype`."""
    state = layer.weight.quant_state
    state.dtype = dtype  # bitsandbytes unpacks into it on the way back, into the input's on the way there
    layer.compute_dtype, layer.compute_type_is_set = dtype, True
    # Without gradients it would repack a layer in place for products that have no backward pass
    layer.support_avx512bf16_for_cpu = False
    weight = layer.weight.data.view(torch.uint8)
    layer.weight.data = weight
    outer = state.state2
    layer.__dict__["packed"] = Packed(
        weight=weight.as_subclass(torch.Tensor),
        scales=state.absmax,
        outer_scales=None if outer is None else outer.absmax,
        outer_code=None if outer is None else outer.code,
        offset=state.offset,
    )
    layer.__class__ = PackedLinear


def unpacked(packed: Packed, size: tuple[int, int], block: int, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in]; in float64 what float32 unpacks to."""
    outer = None
    if packed.outer_scales is not None:
        outer = QuantState(
            absmax=packed.outer_scales,
            code=packed.outer_code,
            blocksize=_SCALES_BLOCK,
            dtype=torch.float32,
        )
    state = QuantState(
        absmax=packed.scales,
        shape=torch.Size(size),
        blocksize=block,
        quant_type="nf4",
        dtype=dtype if dtype in _UNPACKS_INTO else torch.float32,
        offset=packed.offset,
        state2=outer,
    )
    weight: torch.Tensor = dequantize_4bit(packed.weight, state)
    return weight.to(dtype)


def _packed_linear(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    *packed, bias, outputs, inputs, block = arguments
    weight = unpacked(Packed(*packed), (outputs, inputs), block, x.dtype)
    return functional.linear(x, weight, bias)


def _packed_linear_backward(gradient: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Gradient of x."""
    *packed, outputs, inputs, block = arguments
    return gradient @ unpacked(Packed(*packed), (outputs, inputs), block, gradient.dtype)


def _fake(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], arguments[-3]))


def _fake_backward(gradient: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return gradient.new_empty((*gradient.shape[:-1], arguments[-2]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[1:6])
    ctx.size = inputs[7:]


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    own = None
    if ctx.needs_input_grad[0]:
        own = torch.ops.loratune.packed_linear_backward(gradient, *ctx.saved_tensors, *ctx.size)
    return own, *([None] * 9)


_TENSORS = "Tensor weight, Tensor scales, Tensor? outer_scales, Tensor? outer_code, Tensor? offset"
_SIZE = "int outputs, int inputs, int block"
_LIBRARY: Any = torch.library.Library("loratune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"packed_linear(Tensor x, {_TENSORS}, Tensor? bias, {_SIZE}) -> Tensor")
_LIBRARY.define(f"packed_linear_backward(Tensor gradient, {_TENSORS}, {_SIZE}) -> Tensor")
for _device in ("CUDA", "CPU"):
    _LIBRARY.impl("packed_linear", _packed_linear, _device)
    _LIBRARY.impl("packed_linear_backward", _packed_linear_backward, _device)
torch.library.register_fake("loratune::packed_linear", _fake, lib=_LIBRARY)
torch.library.register_fake("loratune::packed_linear_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("loratune::packed_linear", _gradients, setup_context=_save, lib=_LIBRARY)
