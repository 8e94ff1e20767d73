"""Many adapters on one frozen model, each on its own rows, by forward hooks.

Shapes: N tokens of the micro-batch, n tokens of one segment, D in, O out, R rank.
Isolation is by slicing: no segment is ever multiplied with another's numbers, so a NaN stays where it is.
Knows nothing of losses, optimisers or schedules.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from loratune.errors import ModelError
from loratune.lora.dropout import keep_mask
from loratune.lora.layout import Adapter


class _Matrices(NamedTuple):
    a: torch.Tensor
    """[R, D]"""
    b: torch.Tensor
    """[O, R]"""
    gradient_a: torch.Tensor | None
    gradient_b: torch.Tensor | None


class Passenger:
    """An adapter on board: its matrices by module, and the flat buffer that collects their gradients."""

    def __init__(self, adapter: Adapter, *, trainable: bool) -> None:
        self.adapter = adapter
        self.scaling = adapter.hyper_parameters.scaling
        self.dropout = adapter.hyper_parameters.lora_dropout
        self.gradient = torch.zeros_like(adapter.weights) if trainable else None
        gradients = adapter.layout.views(self.gradient) if self.gradient is not None else {}
        self.matrices = {
            name: _Matrices(a, b, *gradients.get(name, (None, None)))
            for name, (a, b) in adapter.views().items()
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segment:
    """Rows [start, stop) of a micro-batch that belong to one adapter."""

    passenger: Passenger
    start: int
    stop: int
    row_keys: torch.Tensor | None = None
    """[stop - start] for dropout (`dropout.row_keys`); None in evaluation."""


class _Part(NamedTuple):
    """A segment as one module sees it: token range, matrices, scaling, mask of the kept inputs."""

    start: int
    stop: int
    matrices: _Matrices
    scaling: float
    mask: Callable[[], torch.Tensor] | None
    keep: float


def _input_of(part: _Part, x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Input of A [n, D] in the adapter's type, after dropout, and the multiplier that dropout applied."""
    piece = x[part.start : part.stop].to(dtype)
    if part.mask is None:
        return piece, None
    multiplier = part.mask().to(dtype).div_(part.keep)
    return piece * multiplier, multiplier


def _add_low_rank(x: torch.Tensor, y: torch.Tensor, parts: Sequence[_Part]) -> list[torch.Tensor]:
    """y [N, O] += scaling · (dropout(x) Aᵀ) Bᵀ on each part's rows; returns the inner products [n, R].

    The sum is made in the adapter's type and rounded once to the base's, as PEFT does.
    """
    inner = []
    for part in parts:
        a, b = part.matrices.a, part.matrices.b
        h = _input_of(part, x, a.dtype)[0] @ a.T
        target = y[part.start : part.stop]
        if target.dtype == h.dtype:
            target.addmm_(h, b.T, alpha=part.scaling)
        else:
            target.add_(h @ b.T, alpha=part.scaling)
        inner.append(h)
    return inner


class _LowRank(torch.autograd.Function):
    """Adds the low-rank products to a module's output; backward fills the adapters' gradient buffers.

    `anchor` is a tensor that requires a gradient, so that the graph starts at the first adapted module
    although neither the embeddings nor the base do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, parts: Sequence[_Part]
    ) -> torch.Tensor:
        inner = _add_low_rank(x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]), parts)
        ctx.parts = parts
        ctx.save_for_backward(x, *inner)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        x, *inner = ctx.saved_tensors
        flat_x = x.reshape(-1, x.shape[-1])
        flat_y = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = None
        if ctx.needs_input_grad[0]:
            covered = sum(part.stop - part.start for part in ctx.parts) == len(flat_x)
            grad_x = torch.empty_like(flat_x) if covered else torch.zeros_like(flat_x)
        for part, h in zip(ctx.parts, inner, strict=True):
            a, b, gradient_a, gradient_b = part.matrices
            rows = slice(part.start, part.stop)
            g = flat_y[rows].to(a.dtype)
            grad_h = (g @ b).mul_(part.scaling)
            piece, multiplier = _input_of(part, flat_x, a.dtype)
            gradient_b.addmm_(g.T, h, alpha=part.scaling)
            gradient_a.addmm_(grad_h.T, piece)
            if grad_x is None:
                continue
            through = grad_h @ a
            grad_x[rows] = through if multiplier is None else through.mul_(multiplier)
        return (None if grad_x is None else grad_x.view_as(x)), grad_y, None, None


@dataclass(eq=False)
class PackedAdapters:
    """Hooks on the adaptable modules of a model; without a route they do nothing.

    Use `attached` to place and remove the hooks, and `route` around each forward and backward.
    """

    model: nn.Module
    names: Sequence[str]
    """Full names of the modules that any adapter may target."""
    _segments: Sequence[Segment] = field(default=(), init=False)
    _shape: tuple[int, int] = field(default=(0, 0), init=False)

    @contextmanager
    def attached(self) -> Iterator["PackedAdapters"]:
        """Place the hooks; the model is as before when the block is left, however it is left."""
        handles = []
        try:
            for name in self.names:
                module = self.model.get_submodule(name)
                handles.append(module.register_forward_hook(self._hook(name)))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def route(self, segments: Sequence[Segment], shape: tuple[int, int]) -> Iterator[None]:
        """Say whose rows the next micro-batch of `shape` [rows, T] holds; other rows see the bare base."""
        self._segments, self._shape = segments, shape
        try:
            yield
        finally:
            self._segments, self._shape = (), (0, 0)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], torch.Tensor | None]:
        anchor: torch.Tensor | None = None

        def hook(module: nn.Module, inputs: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor | None:
            nonlocal anchor
            if not self._segments:
                return None
            x = inputs[0]
            parts = self._parts(name, x)
            if not parts:
                return None
            if not torch.is_grad_enabled():
                _add_low_rank(x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]), parts)
                return y
            if anchor is None:
                anchor = torch.zeros(1, device=y.device, requires_grad=True)
            # autograd replays an in-place change of a view (Conv1D returns one) on its base, in other shapes
            y = y.clone() if y._is_view() else y
            result: torch.Tensor = _LowRank.apply(x, y, anchor, parts)  # type: ignore[no-untyped-call]
            return result

        return hook

    def _parts(self, name: str, x: torch.Tensor) -> list[_Part]:
        rows, width = self._shape
        if x.shape[:-1].numel() != rows * width:
            raise ModelError(
                f"an adapted layer must see every token, {name} saw {tuple(x.shape[:-1])} of {rows}x{width}; "
                "leave it out of target_modules."
            )
        parts = []
        for segment in self._segments:
            passenger = segment.passenger
            matrices = passenger.matrices.get(name)
            if matrices is None:
                continue
            mask = None
            if segment.row_keys is not None and passenger.dropout > 0:
                mask = _mask_of(segment.row_keys, name, width, x.shape[-1], passenger.dropout)
            parts.append(
                _Part(
                    segment.start * width,
                    segment.stop * width,
                    matrices,
                    passenger.scaling,
                    mask,
                    1 - passenger.dropout,
                )
            )
        return parts


def _mask_of(
    keys: torch.Tensor, name: str, tokens: int, features: int, p: float
) -> Callable[[], torch.Tensor]:
    """A mask to be made when it is needed: in the forward pass and again in the backward pass."""
    return lambda: keep_mask(keys, name, tokens=tokens, features=features, p=p)
