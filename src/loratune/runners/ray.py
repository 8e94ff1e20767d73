"""Jobs done by the GPUs of a Ray cluster: an actor on each, with an engine and a pack of its own.

Only this file imports ray. Its actors are placed by Ray, one GPU each; which trials are whose is our own plan, as for
processes of one machine, whose place they take. All nodes see the run directory and the base model at the same paths.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any

from transformers import PreTrainedTokenizerBase

from loratune.data.prepare import PreparedData
from loratune.errors import InputError, ResourceError, printable
from loratune.runners.engines import Host
from loratune.runners.pool import Died, Pool, common_facts
from loratune.runners.processes import PooledEngines, scratch_rows
from loratune.runners.spec import EngineFacts, EngineSpec
from loratune.runners.worker import Message, Order, Setting, serve

try:
    import ray
    from ray.exceptions import RayError
except ImportError:
    ray = None

_REACHED = 5.0
"""Seconds for an address to answer; Ray itself waits for a minute, and then ends the process."""
_TOGETHER = 60.0
"""Seconds after the first engine in which others still enter the plan; later ones only help."""


class _Line:
    """A `Line` between the threads of an actor."""

    def __init__(self) -> None:
        self.orders: SimpleQueue[Order] = SimpleQueue()
        self.messages: SimpleQueue[Message] = SimpleQueue()

    def send(self, message: Message, /) -> None:
        self.messages.put(message)

    def recv(self) -> Order:
        return self.orders.get()

    def poll(self) -> bool:
        return not self.orders.empty()


class _Actor:
    """A worker on some node; Ray ends it with its runner's process."""

    def __init__(self, setting: Setting, folder: str) -> None:
        self._line = _Line()
        with suppress(OSError):  # relative paths are the driver's, where its folder is here too
            os.chdir(folder)
        threading.Thread(target=self._live, args=(setting,), daemon=True).start()

    def _live(self, setting: Setting) -> None:
        try:
            serve(setting, self._line)
        finally:
            os._exit(1)  # the runner hears of it

    def send(self, order: Order) -> None:
        self._line.orders.put(order)

    def next_message(self) -> Message:
        return self._line.messages.get()


class RayPool(Pool):
    """Actors of a cluster that this process is connected to."""

    def __init__(self, spec: EngineSpec, folder: Path) -> None:
        """A worker for each GPU that is free; for each node where the specification says `cpu`.

        `folder` is as for `WorkerPool`. A GPU that is too small for the base model is left out, which the facts note.
        Raises `InputError` for a cluster without a free GPU, `ResourceError` where no engine can be built, and what
        building one raises for wrong input.
        """
        on_cpu = spec.device == "cpu"
        self._kind = ray.remote(concurrency_groups={"orders": 1, "messages": 1})(_Actor).options(
            num_cpus=1, num_gpus=0 if on_cpu else 1, scheduling_strategy="SPREAD"
        )
        self._settings = [
            Setting(spec=spec, final=None, scratch=folder / f"worker-{number}", threads=1)
            for number in range(_nodes() if on_cpu else _free_gpus())
        ]
        self._actors = [self._started(setting) for setting in self._settings]
        self._next = [_message(actor) for actor in self._actors]
        self.beginning = set(range(len(self)))
        try:
            self._assemble()
        except BaseException:
            self.close()
            raise

    def _assemble(self) -> None:
        """Wait for the engines, and leave those out that cannot be built while others can."""
        facts: dict[int, EngineFacts] = {}
        failures: dict[int, str] = {}
        until: float | None = None
        while waited := sorted(self.beginning - facts.keys() - failures.keys()):
            received = self.next_message(waited, None if until is None else max(0.0, until - monotonic()))
            if received is None:
                failures |= dict.fromkeys(waited, f"none came within {_TOGETHER:.0f} s of the first")
                break
            number, message = received
            if isinstance(message, EngineFacts):
                facts[number] = message
                until = until or monotonic() + _TOGETHER
            elif isinstance(message, ResourceError | Died):
                failures[number] = printable(str(message))[:300]
            elif isinstance(message, Exception):
                raise message
        if not facts:
            raise ResourceError(f"No worker of the Ray cluster could begin: {next(iter(failures.values()))}")
        for number in failures:
            self._end(number)
        there = sorted(facts)
        self._settings = [self._settings[number] for number in there]
        self._actors = [self._actors[number] for number in there]
        self._next = [self._next[number] for number in there]
        self.beginning, self.peaks = set(), [0] * len(there)
        notes = (f"A worker of the Ray cluster is left out: {reason}" for reason in failures.values())
        self.facts = common_facts([facts[number] for number in there])
        self.facts = replace(self.facts, notes=(*self.facts.notes, *notes))

    def __len__(self) -> int:
        return len(self._settings)

    def send(self, worker: int, order: Order) -> None:
        with suppress(RayError):
            self._actors[worker].send.options(concurrency_group="orders").remote(order)

    def next_message(
        self, workers: Sequence[int], seconds: float | None
    ) -> tuple[int, Message | Died] | None:
        ready, _ = ray.wait([self._next[worker] for worker in workers], num_returns=1, timeout=seconds)
        if not ready:
            return None
        worker = self._next.index(ready[0])
        try:
            message: Message = ray.get(ready[0])
        except RayError as error:
            return worker, Died(f"a worker of the Ray cluster ended ({_reason(error)})")
        self._next[worker] = _message(self._actors[worker])
        return worker, message

    def renew(self, worker: int) -> None:
        """Wherever a GPU is free, now or later; others meanwhile take what it had."""
        self._end(worker)
        self._actors[worker] = self._started(self._settings[worker])
        self._next[worker] = _message(self._actors[worker])
        self.beginning.add(worker)

    def close(self) -> None:
        for worker in range(len(self)):
            self._end(worker)

    def _started(self, setting: Setting) -> Any:
        return self._kind.remote(setting, os.getcwd())

    def _end(self, worker: int) -> None:
        with suppress(RayError):
            ray.kill(self._actors[worker])


def _message(actor: Any) -> Any:
    """A promise of the next message."""
    return actor.next_message.options(concurrency_group="messages").remote()


def _reason(error: Exception) -> str:
    """The first sentence of what Ray says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0])[:200] if lines else type(error).__name__


def _nodes() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())


def _free_gpus() -> int:
    """Raises `InputError` where there is none."""
    free, all_of_them = (
        int(resources.get("GPU", 0)) for resources in (ray.available_resources(), ray.cluster_resources())
    )
    if not free:
        raise InputError(
            f"--ray needs a cluster with a free GPU, but this one has {all_of_them} GPUs and none is free; add a node "
            "with GPUs (ray start --address=...), or give --device cpu for a worker on each node."
        )
    return free


@contextmanager
def connected(address: str) -> Iterator[None]:
    """To a cluster, `auto` or host:port, while the block runs. Raises `InputError` where that cannot be."""
    if ray is None:
        raise InputError("--ray needs ray, which is not installed; pip install 'loratune[ray]'.")
    if address != "auto":
        _check_address(address)
    before = ray.is_initialized()
    try:
        ray.init(
            address=address,
            namespace="loratune",
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--ray {address} must be a Ray cluster that answers, but: {_reason(error)}; begin one with ray start "
            "--head on this machine, or give its address as HOST:6379."
        ) from None
    try:
        yield
    finally:
        if not before:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `InputError` for what is no HOST:PORT, or where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--ray must be auto or HOST:PORT, got {address!r}; give e.g. --ray auto.")
    try:
        socket.create_connection((host, int(port)), _REACHED).close()
    except OSError as error:
        raise InputError(
            f"--ray {address} must be a Ray cluster that answers, but: {error.strerror or error}; begin one with "
            f"ray start --head, or give --ray auto on one of its nodes."
        ) from None


def on_cluster(address: str, scratch: Path) -> Host:
    """A `Host` of one worker for each GPU of a cluster; `scratch` is as for `in_processes`, on a shared file system."""

    @contextmanager
    def host(
        spec: EngineSpec, data: PreparedData, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[PooledEngines]:
        with connected(address), scratch_rows(scratch, data) as rows:
            model = Path(spec.model)
            own = replace(
                spec.sealed(data),
                rows=str(rows.resolve()),
                model=str(model.resolve()) if model.exists() else spec.model,
            )
            with RayPool(own, scratch.resolve()) as pool:
                yield PooledEngines(pool)

    return host
