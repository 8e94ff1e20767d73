"""A worker: a process that builds its engine from a specification and does jobs that come through a connection.

It answers to one `processes.ProcessRunner`. What goes over the connection are plain values; adapters stay in files.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from loratune.engine.memory import Shortage
from loratune.errors import LoratuneError
from loratune.runners.local import LargestAdapter, LocalRunner
from loratune.runners.runner import Done, Job
from loratune.runners.spec import Built, EngineSpec, build
from loratune.values import Trial, TrialResult
from loratune.values.events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Order: train what is given for the asking, in one pack."""

    slots: int
    deadline: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Do:
    """Order: these jobs, none of them a trial of the search."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Give:
    """Answer to `Wants`."""

    trial: Trial | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Abandon:
    """Order: let go of everything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wants:
    """A slot is free."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """The clock has stopped a trial: it has no result."""

    trial: Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """An order has been carried out, or let go of; at first: the engine is there."""


Order = Search | Do | Give | Abandon
Message = Wants | Stopped | Ended | Done | Event | Shortage | Exception


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


def serve(setting: Setting, line: Connection) -> None:
    """A worker's life: until the other end of the connection is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group: the runner's process decides
    torch.set_num_threads(setting.threads)
    try:
        with TemporaryDirectory(prefix="loratune-") as rows:
            _Worker(setting, line).work(Path(rows))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Worker:
    def __init__(self, setting: Setting, line: Connection) -> None:
        self._setting, self._line = setting, line

    def work(self, rows: Path) -> None:
        """Build the engine, then carry out order after order."""
        try:
            built = build(self._setting.spec, rows)
        except Exception as error:
            self._line.send(_portable(error))
            return
        self._line.send(Ended())
        while True:
            order = self._line.recv()
            if isinstance(order, Abandon):  # of what has ended meanwhile
                continue
            try:
                self._carry_out(order, built)
            except _Abandoned:
                pass
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                self._line.send(_portable(error))
            self._line.send(Ended())

    def _carry_out(self, order: Order, built: Built) -> None:
        with closing(self._results(order, built)) as results:
            for done in results:
                self._line.send(done)

    def _results(self, order: Order, built: Built) -> Generator[Done, None, None]:
        runner = self._runner(built)
        if isinstance(order, Search):
            kept = LargestAdapter(self._setting.scratch, built.base, (), alone=False)
            queue = _RemoteQueue(self._line, order.slots)
            yield from replace(runner, largest=kept, deadline=order.deadline).search(queue)
        elif isinstance(order, Do):
            yield from runner.run(order.jobs)

    def _runner(self, built: Built) -> LocalRunner:
        engine = replace(built.engine, on_shortage=self._line.send)
        return LocalRunner(
            engine=engine,
            limits=built.limits,
            test=built.data.test,
            folder=self._setting.final,
            tell=self._tell,
        )

    def _tell(self, event: Event) -> None:
        if self._line.poll():  # unasked, nothing else comes while an order is carried out
            self._line.recv()
            raise _Abandoned
        self._line.send(event)


@dataclass(frozen=True, slots=True)
class _RemoteQueue:
    """A `Queue` at the other end."""

    line: Connection
    slots: int

    def next(self) -> Trial | None:
        self.line.send(Wants())
        answer = self.line.recv()
        if isinstance(answer, Abandon):
            raise _Abandoned
        trial: Trial | None = answer.trial
        return trial

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        if result is None:
            self.line.send(Stopped(trial=trial))


def _portable(error: Exception) -> Exception:
    """As it can be raised at the other end."""
    return error if isinstance(error, LoratuneError) else RuntimeError(f"{type(error).__name__}: {error}")
