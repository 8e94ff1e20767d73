"""The published guide's ranges by kind of task: where a reader would start, told beside what is recommended."""

from dataclasses import dataclass

from loratune.values import TaskKind


@dataclass(frozen=True, kw_only=True, slots=True)
class GuideRanges:
    """What the guide says; both ends included."""

    ranks: tuple[int, int]
    open_above: bool = False
    """Whether it says "and more"."""
    learning_rates: tuple[float, float] = (1e-4, 5e-3)
    """Its grid, the same for every kind."""
    batch_sizes: tuple[int, int] = (4, 32)


GUIDE: dict[TaskKind, GuideRanges] = {
    TaskKind.CLASSIFICATION: GuideRanges(ranks=(4, 8)),
    TaskKind.EXTRACTION: GuideRanges(ranks=(4, 8)),
    TaskKind.INSTRUCTION: GuideRanges(ranks=(8, 16)),
    TaskKind.DOMAIN_TEXT: GuideRanges(ranks=(16, 32)),
    TaskKind.REASONING: GuideRanges(ranks=(32, 64), open_above=True),
    TaskKind.TRANSLATION: GuideRanges(ranks=(32, 64), open_above=True),
}
