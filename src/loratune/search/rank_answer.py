"""What the first question comes to: ranks, each at its own learning rate, and how they compare. Decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from loratune.maths.curves import PowerLaw
from loratune.maths.noninferiority import Comparison, SeedNoise, Verdict
from loratune.search.bracket import Bracket
from loratune.search.procedure import Results


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One rank at its own learning rate."""

    r: int
    learning_rate: float
    bracket: Bracket | None
    """The learning rates compared on all rows; None where it has one run or none."""
    results: Results
    """Finished runs on all rows at that learning rate; empty where there is none."""
    tested: Results = ()
    """Those whose seed chose no learning rate."""

    @property
    def fair(self) -> bool:
        """Whether a worse learning rate lies on both sides of its own, all rows."""
        return self.bracket is not None and self.bracket.closed


@dataclass(frozen=True, kw_only=True, slots=True)
class RankAnswer:
    """The answer to the first question."""

    chosen: Measured
    reference: Measured | None
    """The largest rank that was measured; None where none was."""
    measured: tuple[Measured, ...]
    """Ascending by rank."""
    comparisons: tuple[tuple[int, Comparison], ...]
    """(rank, comparison with the reference), from the largest downwards, as far as the test went."""
    best: Measured | None
    """The one with the lowest expected loss."""
    against_best: Mapping[int, Comparison]
    """Of ranks compared: with the best one, where that is a third."""
    settled: bool
    """Whether the chosen rank was shown adequate (or is the reference itself, and the best)."""
    intervals: Mapping[int, tuple[float, float] | None]
    """Intervals of the rank taken and of the first that was not shown adequate, against the reference."""
    adequate: Mapping[int, float]
    """How probably a rank loses at most the margin against the largest and against the best one."""
    law: PowerLaw | None
    noise: SeedNoise
    correction: float
    """Best learning rate at the reference over the law's."""
    outliers: frozenset[int]
    """Ranks that stand out above both neighbours, still."""
    all_results: Results

    def shown_unbeaten(self, r: int) -> bool:
        """Whether no measured rank may be better than this one by more than the margin (one-sided 95 %)."""
        return r not in self.against_best or self.against_best[r].verdict is Verdict.ADEQUATE
