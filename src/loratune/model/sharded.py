"""A base model larger than one device: the weights of its linear layers are spread over several processes.

Each process holds some layers and reads the others' where they are, layer by layer, ahead of their use (over NVLink
between GPUs, from shared memory on a CPU). Reading takes no part of the other process: none waits for another, and
each trains trials of its own at its own pace. What is computed is what the whole model computes, to the last bit.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing  # how tensors are named to other processes
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from loratune.maths.sizes import SHARD_BUFFERS
from loratune.model.device import shareable_segments
from loratune.model.nf4 import packed_layers

Tensors = tuple[torch.Tensor, ...]
Exchange = Callable[[Sequence[bytes]], Sequence[bytes]]
"""Gives for each process what it may read here, and returns what each offers; to this one itself nothing."""

_AHEAD = SHARD_BUFFERS - 2
_ALIGNED = 256
"""Bytes, for tensors that share a buffer."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the layers that this process holds, and how it hears of the others'."""

    place: int
    of: int
    exchange: Exchange


@dataclass(slots=True, eq=False)
class _Buffer:
    """Room for one layer of another process."""

    storage: torch.Tensor
    layer: int = -1
    used: int = 0
    """When it was last filled or lent, by a counter."""
    filled: torch.cuda.Event | None = None
    free: torch.cuda.Event | None = None
    """Recorded after what read it last."""


@dataclass(eq=False)
class LayerWeights:
    """The tensors of all sharded layers, wherever they are; lent one layer at a time.

    Which layer comes next is learnt from what came after the last two before: forward passes, backward passes and
    layers that run again each have their own order.
    """

    device: torch.device
    layers: Sequence[Tensors]
    """Layers by number; those of other processes are views into them."""
    own: frozenset[int]
    _buffers: list[_Buffer] = field(init=False)
    _followers: dict[tuple[int, int], int] = field(default_factory=dict, init=False)
    _last: tuple[int, int] = field(default=(-1, -1), init=False)
    _clock: "count[int]" = field(default_factory=lambda: count(1), init=False)
    _stream: "torch.cuda.Stream | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        size = max((_room(tensors) for i, tensors in enumerate(self.layers) if i not in self.own), default=0)
        made = (torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(SHARD_BUFFERS))
        self._buffers = [_Buffer(storage) for storage in made]
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @contextmanager
    def lent(self, layer: int) -> Iterator[Tensors]:
        """Its tensors on this device, until the block is left."""
        self._followers[self._last] = layer
        self._last = (self._last[1], layer)
        if layer in self.own:
            self._read_ahead(layer)
            yield self.layers[layer]
            return
        buffer = self._find(layer) or self._fill(layer, layer)
        buffer.used = next(self._clock)
        self._read_ahead(layer)
        if buffer.filled is not None:
            torch.cuda.current_stream(self.device).wait_event(buffer.filled)
        try:
            yield self._views(buffer)
        finally:
            if self._stream is not None:
                buffer.free = torch.cuda.current_stream(self.device).record_event()

    def _read_ahead(self, current: int) -> None:
        """The layers that came after these two before."""
        pair = self._last
        for _ in range(_AHEAD):
            following = self._followers.get(pair)
            if following is None:
                return
            pair = (pair[1], following)
            if following in self.own:
                continue
            buffer = self._find(following) or self._fill(following, current)
            buffer.used = next(self._clock)

    def _find(self, layer: int) -> _Buffer | None:
        return next((each for each in self._buffers if each.layer == layer), None)

    def _fill(self, layer: int, current: int) -> _Buffer:
        """Read a layer into the buffer that has been idle longest, once what reads that has ended."""
        idle = [each for each in self._buffers if each.layer != current]
        buffer = min(idle, key=lambda each: each.used)
        buffer.layer = layer
        if self._stream is None:
            self._copy(buffer)
            return buffer
        with torch.cuda.stream(self._stream):
            if buffer.free is not None:
                self._stream.wait_event(buffer.free)
            self._copy(buffer)
            buffer.filled = self._stream.record_event()
        return buffer

    def _copy(self, buffer: _Buffer) -> None:
        for view, tensor in zip(self._views(buffer), self.layers[buffer.layer], strict=True):
            view.copy_(tensor, non_blocking=True)

    def _views(self, buffer: _Buffer) -> Tensors:
        start, views = 0, []
        for tensor in self.layers[buffer.layer]:
            part = buffer.storage[start : start + tensor.nbytes]
            views.append(part.view(tensor.dtype).view(tensor.shape))
            start += _aligned(tensor.nbytes)
        return tuple(views)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _room(tensors: Tensors) -> int:
    return sum(_aligned(tensor.nbytes) for tensor in tensors)


_WEIGHTS: dict[int, LayerWeights] = {}
"""Weights by what a layer's `source` says; operators take no objects."""


class ShardedLinear(nn.Linear):
    """A linear layer whose weight may be elsewhere."""

    source: torch.Tensor
    """int64 [3] on the CPU: whose layers, which of them, and of one in 4 bits how many parameters share a scale; a
    tensor, so that compiled code serves all layers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y [.., out] of x [.., in]."""
        result: torch.Tensor = torch.ops.loratune.sharded_linear(
            input, self.bias, self.source, self.out_features, self.in_features
        )
        return result

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """A copy of the whole weight, for what is no product."""
        size = self.out_features, self.in_features
        with _lent(self.source, size, torch.float32) as plain:
            return plain.clone()


@contextmanager
def _lent(source: torch.Tensor, size: tuple[int, int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A layer's weight [out, in], unpacked where it is in 4 bits."""
    whose, layer, block = source.tolist()
    with _WEIGHTS[whose].lent(layer) as tensors:
        if block == 0:
            yield tensors[0]
            return
        from loratune.model.four_bit import Packed, unpacked

        packed, scales, *outer = tensors
        yield unpacked(Packed(packed, scales, *(outer or (None, None, None))), size, block, dtype)


def _sharded_linear(
    x: torch.Tensor, bias: torch.Tensor | None, source: torch.Tensor, outputs: int, inputs: int
) -> torch.Tensor:
    with _lent(source, (outputs, inputs), x.dtype) as weight:
        return functional.linear(x, weight, bias)


def _sharded_linear_backward(
    gradient: torch.Tensor, source: torch.Tensor, outputs: int, inputs: int
) -> torch.Tensor:
    """Gradient of x."""
    with _lent(source, (outputs, inputs), gradient.dtype) as weight:
        return gradient @ weight


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.size = inputs[3:]


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    own = None
    if ctx.needs_input_grad[0]:
        own = torch.ops.loratune.sharded_linear_backward(gradient, *ctx.saved_tensors, *ctx.size)
    return own, None, None, None, None


_LIBRARY: Any = torch.library.Library("loratune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("sharded_linear(Tensor x, Tensor? bias, Tensor source, int outputs, int inputs) -> Tensor")
_LIBRARY.define("sharded_linear_backward(Tensor gradient, Tensor source, int outputs, int inputs) -> Tensor")
for _device in ("CUDA", "CPU"):
    _LIBRARY.impl("sharded_linear", _sharded_linear, _device)
    _LIBRARY.impl("sharded_linear_backward", _sharded_linear_backward, _device)
torch.library.register_fake(
    "loratune::sharded_linear",
    lambda x, bias, source, outputs, inputs: x.new_empty((*x.shape[:-1], outputs)),
    lib=_LIBRARY,
)
torch.library.register_fake(
    "loratune::sharded_linear_backward",
    lambda gradient, source, outputs, inputs: gradient.new_empty((*gradient.shape[:-1], inputs)),
    lib=_LIBRARY,
)
torch.library.register_autograd("loratune::sharded_linear", _gradients, setup_context=_save, lib=_LIBRARY)


def shardable(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The layers among `names`, in their order, whose weights can be elsewhere."""
    packed = set(packed_layers(model))
    return [name for name in names if type(model.get_submodule(name)) is nn.Linear or name in packed]


def holders(sizes: Sequence[int], of: int) -> list[int]:
    """Which process holds each layer: the largest first, each to the one that holds least."""
    held, owner = [0] * of, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = min(range(of), key=lambda place: held[place])
        held[owner[i]] += sizes[i]
    return owner


def shard(model: PreTrainedModel, names: Sequence[str], device: torch.device, given: Shard) -> Tensors:
    """Leave this process its part of the layers, and let it read the others; returns its own tensors.

    Layers in 4 bits must have been adopted. Waits until the other processes have come as far.
    """
    chosen = shardable(model, names)
    tensors = [_tensors_of(model.get_submodule(name)) for name in chosen]
    blocks = [_block_of(model.get_submodule(name)) for name in chosen]
    owner = holders([_room(each) for each in tensors], given.of)
    for name in chosen:
        _take_weight(model.get_submodule(name))
    mine = {i: tensors[i] for i in range(len(chosen)) if owner[i] == given.place}
    del tensors  # of the others
    with shareable_segments(device):
        own = {i: tuple(_shareable(tensor, device) for tensor in mine.pop(i)) for i in tuple(mine)}
    offers = [b"" if place == given.place else bytes(ForkingPickler.dumps(own)) for place in range(given.of)]
    layers = dict(own)
    for place, offer in enumerate(given.exchange(offers)):
        if place != given.place:
            layers.update(pickle.loads(offer))
    whose = len(_WEIGHTS)
    _WEIGHTS[whose] = LayerWeights(device, [layers[i] for i in range(len(chosen))], frozenset(own))
    for i, name in enumerate(chosen):
        layer = model.get_submodule(name)
        layer.__class__ = ShardedLinear
        layer.__dict__["source"] = torch.tensor([whose, i, blocks[i]])
    return tuple(tensor for kept in own.values() for tensor in kept)


def _shareable(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy in memory that other processes may read."""
    if device.type == "cpu":
        copy = tensor.clone()
        copy.share_memory_()  # type: ignore[no-untyped-call]
        return copy
    return tensor.to(device, copy=True)


def _tensors_of(layer: Any) -> Tensors:
    packed = layer.__dict__.get("packed")
    found = (layer.weight.data,) if packed is None else packed
    return tuple(tensor for tensor in found if tensor is not None)


def _block_of(layer: Any) -> int:
    return int(layer.weight.blocksize) if "packed" in layer.__dict__ else 0


def _take_weight(layer: nn.Module) -> None:
    layer._parameters.pop("weight", None)
    layer.__dict__.pop("packed", None)
