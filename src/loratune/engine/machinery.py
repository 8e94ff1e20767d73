"""What is built once on a base model, on the paths that it and the device allow; and what keeps it.

Knows nothing of rows and trials.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loratune.engine.body import Body, CompiledLayers, compiled
from loratune.engine.graphs import Graphs
from loratune.engine.recompute import decoder_layers, why_not
from loratune.kernels.launch import KernelPath, kernel_path
from loratune.lora.packed import PackedAdapters
from loratune.model.base import BaseModel
from loratune.model.rows import FlatPath, flat_path
from loratune.objectives.objective import Factory, Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """The reference, plain PyTorch on padded rectangles, where nothing faster is known to be right."""

    low_rank: KernelPath
    rows: FlatPath
    compiled: bool
    """Whether the layers are compiled: with flat rows and Triton."""

    def lines(self) -> tuple[str, ...]:
        """One line per choice, for people."""
        low_rank = "Triton kernels" if self.low_rank.triton else "PyTorch, segment by segment"
        rows = "flat, without padding" if self.rows.flat else "padded, sorted by length"
        return (
            f"low-rank products: {low_rank} ({self.low_rank.reason})",
            f"rows: {rows} ({self.rows.reason})",
            f"layers: {'compiled' if self.compiled else 'as transformers runs them'}",
        )


def choose_paths(base: BaseModel, *, longest: int, compiled: bool = True, dora: bool = False) -> Paths:
    """What is fast and checked on this model and device, for rows of at most `longest` tokens.

    `compiled=False` leaves the layers as they are; `dora`: whether trials may be DoRA, which the kernels do not run.
    """
    low_rank = KernelPath(False, "DoRA") if dora else kernel_path(base.device, base.dtype)
    layers = (base.model.get_submodule(name) for name, _, _ in base.profile.targets)
    numbers = (parameter for layer in layers for parameter in layer.parameters())
    if len({each.dtype for each in numbers if each.is_floating_point()}) > 1:  # those in 4 bits are packed
        low_rank = KernelPath(False, "layers of several types of numbers")
    rows = flat_path(base.model, longest=longest)
    works = compiled and low_rank.triton and rows.flat
    return Paths(low_rank=low_rank, rows=rows, compiled=works)


@dataclass(frozen=True, kw_only=True, eq=False)
class Machinery:
    """Each part is made when it is first needed, and serves every engine that differs in its settings only."""

    base: BaseModel
    wished: Paths | None
    """Which paths to take; None chooses the fastest that are right here."""
    longest: int
    """Tokens of the longest row."""
    learns: Factory
    """What trials learn."""

    def serves(self, base: BaseModel, wished: Paths | None, longest: int, learns: Factory) -> bool:
        """Whether an engine of these needs no other."""
        same = base is self.base and wished == self.wished and learns is self.learns
        return same and longest <= self.longest

    @cached_property
    def paths(self) -> Paths:
        return choose_paths(self.base, longest=self.longest) if self.wished is None else self.wished

    @cached_property
    def body(self) -> Body:
        layers = CompiledLayers(self.base.model) if self.paths.compiled else None
        return Body(self.base.model, layers, first_position=self.paths.rows.first_position)

    @cached_property
    def objective(self) -> Objective:
        return self.learns(self.base.model, compiled if self.paths.compiled else _as_it_is)

    @cached_property
    def graphs(self) -> Graphs | None:
        """None too where layers are read from elsewhere, which a recording would not do again."""
        records = self.paths.compiled and self.base.profile.shards == 1
        return Graphs(self.base.profile.parameters) if records else None

    @cached_property
    def recomputable(self) -> int:
        """Layers whose activations can be computed again, all of the model's or 0."""
        return 0 if why_not(self.base.model) else len(decoder_layers(self.base.model))

    @cached_property
    def packed(self) -> PackedAdapters:
        names = [name for name, _, _ in self.base.profile.targets]
        return PackedAdapters(self.base.model, names, triton=self.paths.low_rank.triton)


class Machines:
    """Keeps the machinery that was built last, for all engines that differ in their settings only."""

    def __init__(self) -> None:
        self._last: Machinery | None = None

    def serving(self, base: BaseModel, wished: Paths | None, longest: int, learns: Factory) -> Machinery:
        """The current machinery where it serves, else a new one."""
        if self._last is None or not self._last.serves(base, wished, longest, learns):
            self._last = Machinery(base=base, wished=wished, longest=longest, learns=learns)
        return self._last


def _as_it_is(function: Any) -> Any:
    return function
