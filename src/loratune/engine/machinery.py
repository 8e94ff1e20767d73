"""What is built once on a base model: hooks, compiled layers, recorded graphs; and who keeps it.

Knows nothing of rows and trials.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loratune.engine.body import Body
from loratune.engine.compiled import CompiledLayers, compiled
from loratune.engine.graphs import Graphs
from loratune.engine.paths import Paths, choose_paths
from loratune.lora.packed import PackedAdapters
from loratune.model.base import BaseModel
from loratune.objectives.objective import Factory, Objective


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
        return Body(self.base.model, CompiledLayers(self.base.model) if self.paths.compiled else None)

    @cached_property
    def objective(self) -> Objective:
        return self.learns(self.base.model, compiled if self.paths.compiled else _as_it_is)

    @cached_property
    def graphs(self) -> Graphs | None:
        return Graphs(self.base.profile.parameters) if self.paths.compiled else None

    @cached_property
    def packed(self) -> PackedAdapters:
        names = [name for name, _, _ in self.base.profile.targets]
        return PackedAdapters(self.base.model, names, triton=self.paths.low_rank.triton)


class Machines:
    """Keeps the machinery that was built last, for all engines that differ in their settings only."""

    def __init__(self) -> None:
        self._last: Machinery | None = None

    def serving(self, base: BaseModel, wished: Paths | None, longest: int, learns: Factory) -> Machinery:
        """The machinery at hand where it serves, else another."""
        if self._last is None or not self._last.serves(base, wished, longest, learns):
            self._last = Machinery(base=base, wished=wished, longest=longest, learns=learns)
        return self._last


def _as_it_is(function: Any) -> Any:
    return function
