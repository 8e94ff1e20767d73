"""What is built once on a base model: hooks, compiled layers, recorded graphs. Knows nothing of rows and trials."""

from dataclasses import dataclass
from functools import cached_property

from loratune.engine.compiled import CompiledLayers
from loratune.engine.graphs import Graphs
from loratune.engine.head import Head
from loratune.engine.paths import Paths, choose_paths
from loratune.lora.packed import PackedAdapters
from loratune.model.base import BaseModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Machinery:
    """Each part is made when it is first needed, and serves every engine that differs in its settings only."""

    base: BaseModel
    wished: Paths | None
    """Which paths to take; None chooses the fastest that are right here."""
    longest: int
    """Tokens of the longest row."""

    def serves(self, base: BaseModel, wished: Paths | None, longest: int) -> bool:
        """Whether an engine of these needs no other."""
        return base is self.base and wished == self.wished and longest <= self.longest

    @cached_property
    def paths(self) -> Paths:
        return choose_paths(self.base, longest=self.longest) if self.wished is None else self.wished

    @cached_property
    def head(self) -> Head:
        return Head(self.base.model, CompiledLayers(self.base.model) if self.paths.compiled else None)

    @cached_property
    def graphs(self) -> Graphs | None:
        return Graphs(self.base.profile.parameters) if self.paths.compiled else None

    @cached_property
    def packed(self) -> PackedAdapters:
        names = [name for name, _, _ in self.base.profile.targets]
        return PackedAdapters(self.base.model, names, triton=self.paths.low_rank.triton)
