"""Jobs done by processes of this machine, each with an engine of its own: one for each device, or several on a CPU.

Whoever has a free slot gets the next trial, so that no device waits for another's pack; results are recorded here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Self, cast

import torch
from transformers import PreTrainedTokenizerBase

from loratune.data.prepare import PreparedData
from loratune.engine.memory import Shortage, ignore
from loratune.errors import ResourceError
from loratune.runners.engines import Host, never
from loratune.runners.finalists import Finalists
from loratune.runners.local import LargestAdapter
from loratune.runners.queue import Plans, TrialQueue
from loratune.runners.runner import Done, FinalJob, Job, More, TrialDone, TrialJob
from loratune.runners.spec import EngineFacts, EngineSpec
from loratune.runners.worker import (
    Abandon,
    Do,
    Ended,
    ForgetPeak,
    Give,
    Message,
    Order,
    Search,
    Setting,
    Stopped,
    Wants,
    serve,
)
from loratune.values.events import Event, Tell, nobody

_PATIENCE = 10.0
"""Seconds that a worker has to end by itself."""


class WorkerPool:
    """Processes that are started once and serve any number of runners, one at a time; to be closed."""

    def __init__(
        self, spec: EngineSpec, devices: Sequence[str], folder: Path, final: Path | None = None
    ) -> None:
        """A worker for each of `devices` (`cpu` may stand there several times), on rows and weights of `spec`.

        `folder` is for adapters on their way, on the file system of the run; `final` where final ones are kept.
        Raises what building the engine raises, in whichever worker.
        """
        context = get_context("spawn")
        self._lines: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self.devices = tuple(devices)
        on_cpu = sum(device == "cpu" for device in devices)
        for number, device in enumerate(devices):
            threads = (
                max(1, torch.get_num_threads() // on_cpu) if device == "cpu" else torch.get_num_threads()
            )
            setting = Setting(
                spec=replace(spec, device=device),
                final=final,
                scratch=folder / f"worker-{number}",
                threads=threads,
            )
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(setting, there), daemon=True)
            process.start()
            there.close()
            self._lines.append(here)
            self._processes.append(process)
        self.facts = self._await_engines()
        """Of the first worker's engine."""
        self.peaks = [0] * len(devices)
        """Most bytes that each worker has held, as it last said."""

    def _await_engines(self) -> EngineFacts:
        try:
            found = [self._received(line) for line in self._lines]
        except BaseException:
            self.close()
            raise
        assert isinstance(found[0], EngineFacts)
        return found[0]

    def __len__(self) -> int:
        return len(self._lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, worker: int, order: Order) -> None:
        """Raises `ResourceError` where the worker has died."""
        try:
            self._lines[worker].send(order)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died(self._lines[worker]) from error

    def receive(self, workers: Sequence[int]) -> tuple[int, Message]:
        """The next message of one of these, whose exceptions are raised; `ResourceError` where one has died."""
        (first, *_) = wait([self._lines[worker] for worker in workers])
        line = cast(Connection, first)
        return self._lines.index(line), self._received(line)

    def _received(self, line: Connection) -> Message:
        try:
            message: Message = line.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died(line) from error
        if isinstance(message, Exception):
            raise message
        return message

    def _died(self, line: Connection) -> ResourceError:
        number = self._lines.index(line)
        self._processes[number].join(_PATIENCE)
        code = self._processes[number].exitcode
        return ResourceError(
            f"the process for {self.devices[number]} ended (exit code {code}) before its trials did; those that are "
            "finished are kept: go on with --resume, with less memory or fewer devices if it was killed for memory."
        )

    def forget_peaks(self) -> None:
        """Have all workers count memory from now on; none of them has an order to carry out."""
        for worker in range(len(self)):
            self.send(worker, ForgetPeak())
            message = self._received(self._lines[worker])
            assert isinstance(message, Ended)
            self.peaks[worker] = message.peak_bytes

    def abandon(self, workers: Sequence[int]) -> None:
        """Have them let go of what they do; what they still send is dropped."""
        for worker in workers:
            try:
                self.send(worker, Abandon())
                while not isinstance(self._lines[worker].recv(), Ended):
                    pass
            except (EOFError, OSError, ResourceError):
                continue  # dead: the next order says so

    def close(self) -> None:
        """End the processes."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()


@dataclass(kw_only=True, eq=False)
class ProcessRunner:
    """A `Runner` on a pool; what a kind of job does not need may be left out, as for `LocalRunner`."""

    pool: WorkerPool
    spec: EngineSpec | None = None
    """Whose micro-batches and threads the workers take; None: as they began."""
    folder: Path | None = None
    """Where final adapters are kept; None: where the pool was told."""
    planner: Plans | None = None
    """Packs the trials of the search, on each device alike."""
    largest: LargestAdapter | None = None
    """Where the best adapter of the largest rank of the search is kept; None: nowhere."""
    finalists: Finalists | None = None
    """Where the adapters are kept that may be compared by what they write; None: nowhere."""
    tell: Tell = nobody
    on_shortage: Callable[[Shortage], None] = ignore
    deadline: float | None = None
    """`time.monotonic()` after which no trial is begun and running ones stop at their next reading."""
    stopped: Callable[[], bool] = lambda: False
    """Whether somebody has asked that no trial be begun any more; running ones go on to their ends."""
    _busy: set[int] = field(default_factory=set, init=False)
    """Workers that carry out an order."""

    @property
    def late(self) -> bool:
        return (self.deadline is not None and monotonic() >= self.deadline) or self.stopped()

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Generator[Done, None, None]:
        """The trials of the search first, on all devices; then final trials, shared out, and the rest."""
        trials = [job.trial for job in jobs if isinstance(job, TrialJob)]
        try:
            if trials:
                assert self.planner is not None, "trials of a search need a planner"
                yield from self._search(TrialQueue(self.planner, trials, more, devices=len(self.pool)))
            yield from self._rest([job for job in jobs if not isinstance(job, TrialJob)])
        finally:
            self.pool.abandon(sorted(self._busy))
            self._busy.clear()

    def _search(self, queue: TrialQueue) -> Generator[Done, None, None]:
        while True:
            if queue.waiting and not self.late:
                for worker in set(range(len(self.pool))) - self._busy:
                    self._order(worker, Search(spec=self.spec, slots=queue.slots, deadline=self.deadline))
            if not self._busy:
                return
            worker, message = self.pool.receive(sorted(self._busy))
            match message:
                case Wants():
                    trial = None if self.late else queue.next(worker)
                    self.pool.send(worker, Give(trial=trial))
                case Stopped():
                    queue.ended(message.trial, None)
                case TrialDone():
                    queue.ended(message.result.asked, message.result)
                    yield replace(message, adapter=self._taken(message))
                case _:
                    self._heard(worker, message)

    def _rest(self, jobs: Sequence[Job]) -> Generator[Done, None, None]:
        final = [job for job in jobs if isinstance(job, FinalJob)]
        shares = [list[Job](final[number :: len(self.pool)]) for number in range(len(self.pool))]
        shares[0] += [job for job in jobs if not isinstance(job, FinalJob)]
        for worker, share in enumerate(shares):
            if share:
                self._order(worker, Do(spec=self.spec, jobs=tuple(share), folder=self.folder))
        while self._busy:
            worker, message = self.pool.receive(sorted(self._busy))
            if isinstance(message, Done):
                yield message
            else:
                self._heard(worker, message)

    def _order(self, worker: int, order: Order) -> None:
        self.pool.send(worker, order)
        self._busy.add(worker)

    def _heard(self, worker: int, message: Message) -> None:
        """What needs no answer."""
        match message:
            case Ended():
                self.pool.peaks[worker] = message.peak_bytes
                self._busy.discard(worker)
            case Event():
                self.tell(message)
            case Shortage():
                self.on_shortage(message)
            case _:
                raise TypeError(f"a worker must not send a {type(message).__name__} now.")

    def _taken(self, done: TrialDone) -> Path | None:
        """Where the adapter is kept that the worker has put down."""
        if done.adapter is None or self.largest is None:
            return None
        if self.finalists is not None:
            self.finalists.copy(done.result, done.adapter)
        return self.largest.take(done.result, done.adapter)


@dataclass(frozen=True, eq=False)
class PooledEngines:
    """`Engines` in the processes of a pool."""

    pool: WorkerPool

    @property
    def facts(self) -> EngineFacts:
        return self.pool.facts

    def runner(
        self,
        spec: EngineSpec,
        *,
        planner: Plans | None = None,
        folder: Path | None = None,
        largest: LargestAdapter | None = None,
        finalists: Finalists | None = None,
        tell: Tell = nobody,
        on_shortage: Callable[[Shortage], None] = ignore,
        deadline: float | None = None,
        stopped: Callable[[], bool] = never,
    ) -> ProcessRunner:
        return ProcessRunner(
            pool=self.pool,
            spec=spec,
            folder=folder,
            planner=planner,
            largest=largest,
            finalists=finalists,
            tell=tell,
            on_shortage=on_shortage,
            deadline=deadline,
            stopped=stopped,
        )

    def peak_bytes(self) -> int:
        return max(self.pool.peaks)

    def forget_peak(self) -> None:
        self.pool.forget_peaks()


def in_processes(devices: Sequence[str], scratch: Path) -> Host:
    """A `Host` of one process for each device; `scratch` is on the file system of the run, and removed in the end."""

    @contextmanager
    def host(
        spec: EngineSpec, data: PreparedData, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[PooledEngines]:
        try:
            with WorkerPool(spec.sealed(data), devices, scratch) as pool:
                yield PooledEngines(pool)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    return host
