"""An engine that adds up the seconds of its evaluations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter


@dataclass
class Clock:
    """Adds up seconds."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """While inside, it runs."""
        started = perf_counter()
        yield
        self.seconds += perf_counter() - started


@dataclass(frozen=True, kw_only=True, eq=False)
class TimedEngine(PackEngine):
    """`clock` has the seconds of all evaluations; each ends with the device's work done."""

    clock: Clock = field(default_factory=Clock)

    def read(self, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        with self.clock.running():
            return super().read(models, table)
