"""A worker: a process that builds its engine from a specification and does jobs that come through a connection.

It answers to one `processes.ProcessRunner`. What goes over the connection are plain values; adapters stay in files.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from loratune.costs.budget import TooSlow
from loratune.engine.memory import Shortage
from loratune.errors import LoratuneError
from loratune.runners.engines import LocalEngines
from loratune.runners.finalists import Finalists
from loratune.runners.largest import LargestAdapter
from loratune.runners.options import RunnerOptions
from loratune.runners.runner import Done, Job
from loratune.runners.spec import EngineFacts, EngineSpec, build
from loratune.values import Trial, TrialResult
from loratune.values.events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Order: train the trials that the driver gives on request, in one pack."""

    spec: EngineSpec | None
    """Whose micro-batches and threads; None: as the worker began."""
    slots: int
    deadline: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Do:
    """Order: these jobs, none of them a trial of the search."""

    spec: EngineSpec | None
    """The spec of `Search`."""
    jobs: tuple[Job, ...]
    folder: Path | None
    """Where final adapters are kept; None: where the worker's setting says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetPeak:
    """Order: count memory from now on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTrial:
    """Answer to `TrialWanted`."""

    trial: Trial | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DropWork:
    """Order: drop all work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Halt:
    """Order: every trial stops at its next reading, until the current order has been carried out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialWanted:
    """A slot is free."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """The clock has stopped a trial: it has no result."""

    trial: Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Offers:
    """Where the layers of a sharded base model are: of one process for each one, or of each for one."""

    parts: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """An order has been carried out, or dropped."""

    peak_bytes: int
    """Most that the worker has held."""


Order = Search | Do | NextTrial | DropWork | Halt | ForgetPeak | Offers
Message = EngineFacts | Offers | TrialWanted | Stopped | Ended | Done | Event | Shortage | Exception
"""The first says that the engine is there."""


class _Abandoned(Exception):
    """Nobody waits for the results any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a worker is started with."""

    spec: EngineSpec
    final: Path | None
    """Where final adapters are kept."""
    scratch: Path
    """Where adapters wait that may be kept of the search; the runner takes them from there."""
    threads: int
    """torch's."""


class Line(Protocol):
    """The worker's end of a connection; each call raises `EOFError` or `OSError` where the other end is closed."""

    def send(self, message: Message, /) -> None: ...

    def recv(self) -> Any:
        """The next order, which is waited for."""

    def poll(self) -> bool:
        """Whether an order is there."""


def serve_process(setting: Setting, line: Line) -> None:
    """`serve`, in a process of the runner's own group."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group: the runner's process decides
    serve(setting, line)


def serve(setting: Setting, line: Line) -> None:
    """A worker's life: until the other end of the connection is closed."""
    torch.set_num_threads(setting.threads)
    try:
        with TemporaryDirectory(prefix="loratune-") as rows:
            _Worker(setting, line).work(Path(rows))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Worker:
    def __init__(self, setting: Setting, line: Line) -> None:
        self._setting, self._line = setting, line
        self.halted = False

    def work(self, rows: Path) -> None:
        """Build the engine, then carry out order after order."""
        try:
            exchange = self._exchange if self._setting.spec.shard[1] > 1 else None
            built = build(self._setting.spec, rows, exchange)
        except Exception as error:
            self._line.send(_portable(error))
            return
        engines = LocalEngines(built)
        self._line.send(engines.facts)
        while True:
            order = self._line.recv()
            if isinstance(order, DropWork | Halt):  # of what has ended meanwhile
                continue
            self.halted = False
            try:
                self._carry_out(order, engines)
            except _Abandoned:
                pass
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                self._line.send(_portable(error))
            self._line.send(Ended(peak_bytes=engines.peak_bytes()))

    def _exchange(self, offers: Sequence[bytes]) -> Sequence[bytes]:
        """What other processes offer, for what this one does; through the driver, which does not look into it."""
        self._line.send(Offers(parts=tuple(offers)))
        answer = self._line.recv()
        assert isinstance(answer, Offers)
        return answer.parts

    def hear(self, order: Order) -> None:
        """What comes unasked while an order is carried out."""
        if isinstance(order, Halt):
            self.halted = True
        elif isinstance(order, DropWork):
            raise _Abandoned

    def _carry_out(self, order: Order, engines: LocalEngines) -> None:
        with closing(self._results(order, engines)) as results:
            for done in results:
                self._line.send(done)

    def _results(self, order: Order, engines: LocalEngines) -> Generator[Done, None, None]:
        if isinstance(order, Search):
            scratch, compared = self._setting.scratch, engines.engine.scoring.generates
            runner = engines.runner(
                order.spec or engines.built.spec,
                RunnerOptions(
                    # the best of the largest rank is among the finalists
                    largest=None if compared else LargestAdapter(scratch, (), alone=False),
                    finalists=Finalists(scratch, (), alone=False) if compared else None,
                    tell=self._tell,
                    on_shortage=self._line.send,
                    deadline=order.deadline,
                    stopped=self._stopped,
                ),
            )
            yield from runner.search(_RemoteQueue(self._line, order.slots, self.hear))
        elif isinstance(order, Do):
            runner = engines.runner(
                order.spec or engines.built.spec,
                RunnerOptions(
                    folder=order.folder or self._setting.final, tell=self._tell, on_shortage=self._line.send
                ),
            )
            yield from runner.run(order.jobs)
        elif isinstance(order, ForgetPeak):
            engines.forget_peak()

    def _stopped(self) -> bool:
        while self._line.poll():
            self.hear(self._line.recv())
        return self.halted

    def _tell(self, event: Event) -> None:
        self._stopped()
        self._line.send(event)


@dataclass(frozen=True, slots=True)
class _RemoteQueue:
    """A `Queue` in the driver's process."""

    line: Line
    slots: int
    hear: Callable[[Order], None]

    def next(self) -> Trial | None:
        self.line.send(TrialWanted())
        while not isinstance(answer := self.line.recv(), NextTrial):
            self.hear(answer)
        return answer.trial

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        if result is None:
            self.line.send(Stopped(trial=trial))


def _portable(error: Exception) -> Exception:
    """An exception that the driver's process can unpickle and raise."""
    return (
        error
        if isinstance(error, LoratuneError | TooSlow)
        else RuntimeError(f"{type(error).__name__}: {error}")
    )
