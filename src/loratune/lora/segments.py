"""The low-rank products of many adapters, one run of tokens after the other, in plain PyTorch.

Shapes: N tokens of the micro-batch, n tokens of one segment, D in, O out, R rank. This is the reference:
it runs everywhere, in every number format, and the Triton path is tested against it. Isolation is by
slicing: no segment is ever multiplied with another's numbers, so a NaN stays where it is.
Knows nothing of losses, optimisers or schedules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from loratune.lora.dora import Magnitude, row_norms
from loratune.lora.dropout import keep_mask
from loratune.lora.layout import Adapter


class Matrices(NamedTuple):
    """One module's part of an adapter, and where its gradients are collected."""

    a: torch.Tensor
    """[R, D]"""
    b: torch.Tensor
    """[O, R]"""
    gradient_a: torch.Tensor | None
    gradient_b: torch.Tensor | None


class PackMember:
    """An adapter in a pack: its matrices by module, and the flat buffer that collects their gradients."""

    def __init__(self, adapter: Adapter, *, trainable: bool) -> None:
        self.adapter = adapter
        self.scaling = adapter.hyper_parameters.scaling
        self.dropout = adapter.hyper_parameters.lora_dropout
        self.aligned = all(
            target.in_features % 8 == 0 and target.out_features % 8 == 0 for target in adapter.layout.targets
        )
        """Whether every matrix begins at a multiple of 16 bytes in the flat vector, in half precision too."""
        self.ranks = frozenset(adapter.layout.ranks)
        self.gradient = torch.zeros_like(adapter.weights) if trainable else None
        self._norms: dict[str, tuple[int, torch.Tensor]] = {}
        """Norms of each layer's rows, with the version of the weights that they were computed from."""

    @cached_property
    def head(self) -> Mapping[str, torch.Tensor]:
        """What the trial trains beside the matrices, by parameter name."""
        return self.adapter.head()

    @cached_property
    def head_gradients(self) -> Mapping[str, torch.Tensor] | None:
        """Views of the flat buffer, by the same names; None where nothing is trained."""
        return None if self.gradient is None else self.adapter.layout.head_views(self.gradient)

    @cached_property
    def matrices(self) -> Mapping[str, Matrices]:
        """A and B by module."""
        gradients = self.adapter.layout.views(self.gradient) if self.gradient is not None else {}
        return {
            name: Matrices(a, b, *gradients.get(name, (None, None)))
            for name, (a, b) in self.adapter.views().items()
        }

    @cached_property
    def _magnitudes(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """DoRA's, with their gradients, by module."""
        layout = self.adapter.layout
        slopes = {} if self.gradient is None else layout.magnitude_views(self.gradient)
        own = layout.magnitude_views(self.adapter.weights)
        return {name: (m, slopes.get(name)) for name, m in own.items()}

    def magnitude(self, name: str, module: nn.Module) -> Magnitude | None:
        """Magnitude of the module by that name; None where the adapter is no DoRA. Norms are computed once a step."""
        if not self.adapter.layout.magnitudes:
            return None
        m, gradient = self._magnitudes[name]
        version, norm = self._norms.get(name, (-1, m))
        if version != self.adapter.weights._version:
            version = self.adapter.weights._version
            norm = row_norms(module, self.matrices[name].a, self.matrices[name].b, self.scaling)
            self._norms[name] = version, norm
        bias = module.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        return Magnitude(m / norm, norm, None if bias is None else bias.detach(), gradient)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segment:
    """Tokens [start, stop) of a micro-batch that belong to one adapter."""

    member: PackMember
    start: int
    stop: int
    dropout: bool = False
    """Whether inputs are dropped: in training, where the adapter's dropout is not zero."""


class Places(NamedTuple):
    """Row key and position of every token of a micro-batch, for dropout."""

    keys: torch.Tensor
    """[N] int32 `dropout.row_keys` of the token's row."""
    places: torch.Tensor
    """[N] int32 place of the token in its row."""


def unseen_tokens(shape: Sequence[int], tokens: int, name: str = "one") -> str:
    """What to say when a layer does not see the whole micro-batch (a mixture's experts, say)."""
    return (
        f"an adapted layer must see every token, {name} saw {tuple(shape[:-1])} of {tokens}; "
        "leave it out of target_modules."
    )


class _Part(NamedTuple):
    """A segment as one module sees it: token range, matrices, scaling, mask of the kept inputs, DoRA's magnitude."""

    start: int
    stop: int
    matrices: Matrices
    scaling: float
    mask: Callable[[], torch.Tensor] | None
    keep: float
    magnitude: Magnitude | None


def parts_of(
    segments: Sequence[Segment], places: Places | None, name: str, module: nn.Module, features: int
) -> list[_Part]:
    """The segments whose adapters target the module `name` with `features` inputs."""
    parts = []
    for segment in segments:
        member = segment.member
        matrices = member.matrices.get(name)
        if matrices is None:
            continue
        mask = None
        if segment.dropout and places is not None:
            mask = _mask_of(places, slice(segment.start, segment.stop), name, features, member.dropout)
        magnitude = member.magnitude(name, module)
        parts.append(
            _Part(segment.start, segment.stop, matrices, member.scaling, mask, 1 - member.dropout, magnitude)
        )
    return parts


def _mask_of(places: Places, tokens: slice, name: str, features: int, p: float) -> Callable[[], torch.Tensor]:
    """A mask to be made when it is needed: in the forward pass and again in the backward pass."""
    return lambda: keep_mask(places.keys[tokens], places.places[tokens], name, features=features, p=p)


def _input_of(part: _Part, x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Input of A [n, D] in the adapter's type, after dropout, and the multiplier that dropout applied."""
    piece = x[part.start : part.stop].to(dtype)
    if part.mask is None:
        return piece, None
    multiplier = part.mask().to(dtype).div_(part.keep)
    return piece * multiplier, multiplier


def add_low_rank(x: torch.Tensor, y: torch.Tensor, parts: Sequence[_Part]) -> list[torch.Tensor]:
    """y [N, O] += scaling · (dropout(x) Aᵀ) Bᵀ on each part's rows; returns the inner products [n, R].

    Then what DoRA's parts have of its backward pass [n, O]. The sum is made in the adapter's type and rounded once to
    the base's, as PEFT does.
    """
    inner, directed = [], []
    for part in parts:
        a, b = part.matrices.a, part.matrices.b
        h = _input_of(part, x, a.dtype)[0] @ a.T
        target = y[part.start : part.stop]
        if part.magnitude is not None:
            directed.append(part.magnitude.apply(target, (h @ b.T).mul_(part.scaling)))
        elif target.dtype == h.dtype:
            target.addmm_(h, b.T, alpha=part.scaling)
        else:
            target.add_(h @ b.T, alpha=part.scaling)
        inner.append(h)
    return inner + directed


class LowRank(torch.autograd.Function):
    """Adds the low-rank products to a module's output; backward fills the adapters' gradient buffers.

    `anchor` is a tensor that requires a gradient, so that the graph starts at the first adapted module
    although neither the embeddings nor the base do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, parts: Sequence[_Part]
    ) -> torch.Tensor:
        inner = add_low_rank(x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]), parts)
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
        directed = iter(inner[len(ctx.parts) :])
        if len(inner) > len(ctx.parts):  # the base's product is scaled too
            grad_y = grad_y.clone()
            flat_y = grad_y.view(-1, grad_y.shape[-1])
        for part, h in zip(ctx.parts, inner, strict=False):
            a, b, gradient_a, gradient_b = part.matrices
            rows = slice(part.start, part.stop)
            g = flat_y[rows].to(a.dtype)
            if part.magnitude is not None:
                g = part.magnitude.backward(g, next(directed))
                flat_y[rows] = g
            grad_h = (g @ b).mul_(part.scaling)
            piece, multiplier = _input_of(part, flat_x, a.dtype)
            gradient_b.addmm_(g.T, h, alpha=part.scaling)
            gradient_a.addmm_(grad_h.T, piece)
            if grad_x is None:
                continue
            through = grad_h @ a
            grad_x[rows] = through if multiplier is None else through.mul_(multiplier)
        return (None if grad_x is None else grad_x.view_as(x)), grad_y, None, None
