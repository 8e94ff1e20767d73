"""What an out-of-memory error that was survived has changed. Plain numbers, for whoever keeps and tells them."""

from dataclasses import dataclass
from enum import StrEnum

from loratune.values import Trial


class Place(StrEnum):
    """Where memory ran out."""

    TRAINING = "training"
    """The micro-batches have been halved."""
    EVALUATION = "evaluation"
    """Those of the evaluation have been halved."""
    PACK = "pack"
    """Fewer trials train beside each other; the others wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """Nothing was lost, no step was taken twice; what follows is smaller."""

    place: Place
    trials: tuple[Trial, ...]
    """Those in memory as it ran out."""
    tokens: int
    """Of the micro-batch that failed, at most, padding included."""
    needed: int
    """Bytes that were held, with those that were asked for where the error told."""
    now: int
    """Tokens of a micro-batch, or trials beside each other, at most, from now on."""

    @property
    def sentence(self) -> str:
        """For people."""
        trials = f"{len(self.trials)} trial{'s' if len(self.trials) != 1 else ''}"
        held = f"{self.needed / 2**30:.1f} GiB were needed"
        if self.place is Place.PACK:
            return (
                f"Memory ran out with {trials} in it ({held}): from now on at most {self.now} train beside each "
                "other, the others take turns; nothing was lost."
            )
        return (
            f"Memory ran out in {self.place} with {trials} and micro-batches of {self.tokens:,} tokens ({held}): "
            f"they have {self.now:,} at most from now on; nothing was lost."
        )


def ignore(shortage: Shortage) -> None:
    """Nobody wants to know."""
