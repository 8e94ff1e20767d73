"""Workers that are started once and serve any number of runners, whatever carries the messages to them and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Self

from loratune.runners.spec import EngineFacts
from loratune.runners.worker import DropWork, Ended, ForgetPeak, Message, Order

PATIENCE = 10.0
"""Seconds that a worker has to exit, or to drop its work."""


class Died(Exception):
    """A worker has died; its text says which and how."""


class Pool(ABC):
    """One worker for each device, by number; to be closed. Serves one runner at a time."""

    facts: EngineFacts
    """Facts of the first worker's engine, with the memory that each of them has at least."""
    peaks: list[int]
    """Most bytes that each worker has held, as it last said."""
    beginning: set[int]
    """Workers that load the base model in the place of one that has died."""

    sharded: bool = False
    """Whether each holds a part of the base model that the others need; then none is replaced."""

    @property
    def whole(self) -> bool:
        """Whether no worker has died that others need."""
        return True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def send(self, worker: int, order: Order) -> None:
        """To a dead worker nothing is sent: `receive` says so."""

    @abstractmethod
    def next_message(
        self, workers: Sequence[int], seconds: float | None
    ) -> tuple[int, Message | Died] | None:
        """The next message of one of these; None where none came in this time (`seconds` None: it is waited for)."""

    @abstractmethod
    def renew(self, worker: int) -> None:
        """A new worker in the place of one; it is there when it sends its facts, and `beginning` until then."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(
        self, workers: Sequence[int], seconds: float | None = None
    ) -> tuple[int, Message | Died] | None:
        """`next_message`, where an exception that a worker has sent is raised."""
        received = self.next_message(workers, seconds)
        if received is None:
            return None
        worker, message = received
        if isinstance(message, EngineFacts):
            self.beginning.discard(worker)
        if isinstance(message, Exception) and not isinstance(message, Died):
            raise message
        return worker, message

    def forget_peaks(self) -> None:
        """Have all workers count memory from now on; none of them has an order to carry out."""
        for worker in set(range(len(self))) - self.beginning:
            self.send(worker, ForgetPeak())
            while (received := self.receive([worker])) is not None:
                if isinstance(received[1], Ended):
                    self.peaks[worker] = received[1].peak_bytes
                if isinstance(received[1], Ended | Died):
                    break

    def abandon(self, workers: Sequence[int]) -> None:
        """Have them drop their work; what they still send is ignored.

        A worker that does not answer in time is replaced.
        """
        for worker in workers:
            self.send(worker, DropWork())
        until = monotonic() + PATIENCE
        for worker in workers:
            if not self._let_go(worker, until):
                self.renew(worker)

    def _let_go(self, worker: int, until: float) -> bool:
        while (received := self.next_message([worker], max(0.0, until - monotonic()))) is not None:
            if isinstance(received[1], Ended | Died):
                return isinstance(received[1], Ended)
        return False


def common_facts(facts: Sequence[EngineFacts]) -> EngineFacts:
    """Facts of several engines together: the first one's, with the memory that each of them has at least."""
    least = min(each.limits.device_bytes for each in facts)
    limits = replace(facts[0].limits, device_bytes=least)
    beyond = tuple(each.limits.device_bytes - least for each in facts)
    return replace(facts[0], limits=limits, devices=len(facts), beyond=beyond if any(beyond) else ())
