"""Many adapters on one frozen model, each on its own tokens, by forward hooks.

Two paths give the same numbers up to rounding: loops over segments in plain PyTorch (`segments`), and Triton
kernels (`fused`) where `kernels.launch.kernel_path` finds them. Knows nothing of losses, optimisers or schedules.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from loratune.errors import ModelError
from loratune.lora.dora import initial_magnitude
from loratune.lora.segments import (
    LowRank,
    PackMember,
    Places,
    Segment,
    add_low_rank,
    parts_of,
    unseen_tokens,
)
from loratune.maths.sizes import CAPACITY

if TYPE_CHECKING:
    from loratune.lora.fused import Route


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """Which member each token of a micro-batch belongs to."""

    segments: Sequence[Segment]
    tokens: int
    places: Places | None
    route: "Route | None" = None
    """The same for the Triton kernels."""


@dataclass(slots=True, eq=False)
class _Read:
    """What the Triton products read of a member: its weights, in half precision a copy of them."""

    weights: torch.Tensor
    version: int = -1
    """Version of the member's weights when they were copied."""

    @classmethod
    def of(cls, member: PackMember, dtype: torch.dtype) -> "_Read":
        own = member.adapter.weights
        return cls(own if own.dtype == dtype else torch.empty_like(own, dtype=dtype))


@dataclass(eq=False)
class PackedAdapters:
    """Hooks on the adaptable modules of a model; without a route they do nothing.

    Use `attached` to place and remove the hooks, and `route` around each forward and backward.
    """

    model: nn.Module
    names: Sequence[str]
    """Full names of the modules that any adapter may target."""
    triton: bool = False
    """Whether the Triton kernels do the work."""
    _plan: "Plan | None" = field(default=None, init=False)
    _tables: torch.Tensor | None = field(default=None, init=False)
    _slots: dict[int, int] = field(default_factory=dict, init=False)
    _assigned: list[PackMember] = field(default_factory=list, init=False)
    _read: dict[int, _Read] = field(default_factory=dict, init=False)
    """Weights as they are read, by the ids of the members' weights, which several may share."""

    @property
    def _parameter(self) -> torch.Tensor:
        """One that is not packed: where the model is, and what it computes in."""
        return next(each for each in self.model.parameters() if each.is_floating_point())

    @contextmanager
    def attached(self) -> Iterator["PackedAdapters"]:
        """Place the hooks; the model is as before when the block is left, however it is left."""
        handles = []
        modules = [self.model.get_submodule(name) for name in self.names]
        try:
            if self.triton:
                handles += self._attach_kernels(modules)
            else:
                for module, name in zip(modules, self.names, strict=True):
                    handles.append(module.register_forward_hook(self._hook(name)))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for module in modules:
                module.__dict__.pop("loratune_table", None)
            self._slots, self._assigned, self._read = {}, [], {}

    def _attach_kernels(self, modules: Sequence[nn.Module]) -> list[Any]:
        from loratune.kernels import low_rank as kernels
        from loratune.lora import fused

        if self._tables is None:  # made once: recorded graphs hold its address
            shape = (len(modules), CAPACITY, kernels.COLUMNS)
            self._tables = torch.zeros(shape, dtype=torch.int64, device=self._parameter.device)
        for module, table in zip(modules, self._tables, strict=True):
            module.__dict__["loratune_table"] = table
        return [module.register_forward_hook(fused.hook) for module in modules]

    def assign(self, members: Sequence[PackMember]) -> None:
        """Say which adapters the coming routes may name; their weights are read as they are now."""
        if self._tables is None or not members:
            return
        if [id(p) for p in members] != list(self._slots):
            self._assign(self._tables, members)
        self._follow()

    def _assign(self, tables: torch.Tensor, members: Sequence[PackMember]) -> None:
        if any(member.adapter.layout.magnitudes for member in members):
            raise ModelError("DoRA is not run by the kernels; train it on the path of plain PyTorch.")
        if len(members) > CAPACITY:
            raise ModelError(f"at most {CAPACITY} adapters fit into one pack, {len(members)} were given.")
        from loratune.lora import fused

        dtype = self._parameter.dtype
        read: dict[int, _Read] = {}
        for member in members:
            key = id(member.adapter.weights)
            read[key] = read.get(key) or self._read.get(key) or _Read.of(member, dtype)
        modules = tuple(self.names)
        rows = [fused.member_rows(p, read[id(p.adapter.weights)].weights, modules) for p in members]
        tables[:, : len(members)].copy_(torch.from_numpy(np.stack(rows, 1)))
        self._slots = _numbered(members)
        self._assigned, self._read = list(members), read  # kept alive: the tables hold addresses

    def _follow(self) -> None:
        """Copy the weights that have changed since they were copied."""
        copies: list[torch.Tensor] = []
        changed: list[torch.Tensor] = []
        for member in self._assigned:
            weights = member.adapter.weights
            read = self._read[id(weights)]
            if read.weights is not weights and read.version != weights._version:
                copies.append(read.weights)
                changed.append(weights)
                read.version = weights._version
        if changed:
            torch._foreach_copy_(copies, changed)

    def row_lengths(self, name: str) -> torch.Tensor:
        """[out] of the weights of a module, with which DoRA's magnitudes begin."""
        return initial_magnitude(self.model.get_submodule(name))

    def plan(
        self,
        segments: Sequence[Segment],
        tokens: int,
        places: Places | None = None,
        *,
        members: Sequence[PackMember] | None = None,
    ) -> "Plan":
        """Say whose the `tokens` of a micro-batch are; other tokens see the bare base.

        `segments` in ascending order; `places` is needed where a segment drops inputs. `members`: those assigned
        when the plan is used; None: those assigned now, else those of the segments, which are assigned then.
        """
        if not self.triton:
            return Plan(segments=segments, tokens=tokens, places=places)
        from loratune.lora import fused

        if members is None and segments:  # else those assigned may have been parked, their weights too
            own = {id(segment.member): segment.member for segment in segments}
            self.assign(self._assigned if own.keys() <= self._slots.keys() else list(own.values()))
        slots = self._slots if members is None else _numbered(members)
        route = fused.route_of(segments, slots, tokens, places, self._parameter.device)
        return Plan(segments=segments, tokens=tokens, places=places, route=route)

    @contextmanager
    def routed(self, plan: "Plan") -> Iterator[None]:
        """Forward and backward passes in this block follow the plan."""
        if plan.route is not None:
            from loratune.lora import fused

            fused.set_route(plan.route)
        self._plan = plan
        try:
            yield
        finally:
            self._plan = None
            if plan.route is not None:
                fused.set_route(None)

    @contextmanager
    def route(self, segments: Sequence[Segment], tokens: int, places: Places | None = None) -> Iterator[None]:
        """`plan` and `routed` in one."""
        with self.routed(self.plan(segments, tokens, places)):
            yield

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], torch.Tensor | None]:
        anchor: torch.Tensor | None = None

        def hook(module: nn.Module, inputs: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor | None:
            nonlocal anchor
            plan = self._plan
            if plan is None:
                return None
            x = inputs[0]
            if x.shape[:-1].numel() != plan.tokens:
                raise ModelError(unseen_tokens(x.shape, plan.tokens, name))
            parts = parts_of(plan.segments, plan.places, name, module, x.shape[-1])
            if not parts:
                return None
            if not torch.is_grad_enabled():
                add_low_rank(x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]), parts)
                return y
            if anchor is None:
                anchor = torch.zeros(1, device=y.device, requires_grad=True)
            # autograd replays an in-place change of a view (Conv1D returns one) on its base, in other shapes
            y = y.clone() if y._is_view() else y
            result: torch.Tensor = LowRank.apply(x, y, anchor, parts)  # type: ignore[no-untyped-call]
            return result

        return hook


def _numbered(members: Sequence[PackMember]) -> dict[int, int]:
    """Places in the tables, by the members' ids."""
    return {id(member): place for place, member in enumerate(members)}
