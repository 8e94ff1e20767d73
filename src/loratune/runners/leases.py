"""Trials in a folder that processes of any number of hosts share: which process may train which, and with what result.

Everything is a small file that appears whole and changes hands by one rename, which a file system does for one process
alone; there is no server and no lock. A trial's file is in `waiting`, then in `running` under its worker's name, then
its result is in `done`. A worker shows that it lives by the time stamp of its own file. Knows no engine.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from json import dumps
from math import ceil
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import Any

from loratune.files.read_json import parse_json
from loratune.files.write import write_atomically
from loratune.study.rows import arrays_of, plain_result, read_arrays, result_of_plain, write_arrays
from loratune.values import Trial, TrialResult
from loratune.values.plain import to_plain

FOLDER = "queue"
"""Folder in a run directory."""
SILENCE = 60.0
"""Seconds without a sign of life after which a worker, or a driver, is taken for dead."""
BEAT = 5.0
"""Seconds between two signs of life."""
FORMAT = 1
KEPT = ("largest", "finalists")
"""Folders of adapters, as `LargestAdapter` and `Finalists` call theirs."""
_NAME = re.compile(r"(\d{6})-([0-9a-f]{16})")
_WORKER = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_ENGINE, _CLOSED, _HALT, _DRIVER = "engine.json", "closed", "halt", "driver"
_PARTS = ("waiting", "running", "done", "workers", "adapters")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A trial that waits for a worker."""

    trial: Trial
    memory: float
    """Bytes that it holds while it trains."""
    room: float
    """Bytes that all of a worker's trials may hold together."""
    slots: int
    """Trials of a worker, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A trial that a worker has taken."""

    name: str
    """Name of its file: number and key."""
    worker: str

    @property
    def key(self) -> str:
        return self.name.partition("-")[2]


def worker_name() -> str:
    """A name of this process, different from all others."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40]
    return f"{host}-{os.getpid()}-{token_hex(4)}"


class LeaseFolder:
    """The folder, for drivers and workers alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, engine: Any) -> None:
        """A driver starts, or takes over from another: waiting trials are dropped, running and finished ones stay."""
        for part in _PARTS:
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        for file in self._files("waiting"):
            file.unlink(missing_ok=True)
        for mark in (_CLOSED, _HALT):
            (self.folder / mark).unlink(missing_ok=True)
        self.beat(self.folder / _DRIVER)
        write_atomically(self.folder / _ENGINE, dumps({"format": FORMAT, "engine": to_plain(engine)}) + "\n")

    def engine(self) -> Any:
        """What `begin` was given, as JSON values; None where no driver has begun.

        Raises `ValueError` for one of another format.
        """
        try:
            text = (self.folder / _ENGINE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        kept = parse_json(text)
        if not isinstance(kept, dict) or kept.get("format") != FORMAT:
            raise ValueError(f"its queue must be of format {FORMAT}")
        return kept["engine"]

    def close(self) -> None:
        """The study is complete: workers end, and nothing is left but the word that it is."""
        (self.folder / _CLOSED).touch()
        for file in self.folder.iterdir():
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            elif file.name != _CLOSED:
                file.unlink(missing_ok=True)

    @property
    def closed(self) -> bool:
        return (self.folder / _CLOSED).exists() or not self.folder.exists()

    def halt(self) -> None:
        """No trial is begun any more, and those that run end at their next reading without a result."""
        (self.folder / _HALT).touch()

    @property
    def halted(self) -> bool:
        return (self.folder / _HALT).exists()

    def beat(self, file: Path) -> None:
        """A sign of life: the file system's own time, which is the same for all."""
        file.touch()

    def beat_driver(self) -> None:
        self.beat(self.folder / _DRIVER)

    def beat_worker(self, worker: str) -> None:
        self.beat(self.folder / "workers" / worker)

    def stamp_of_driver(self) -> int | None:
        return _stamp(self.folder / _DRIVER)

    def stamp_of_worker(self, worker: str) -> int | None:
        return _stamp(self.folder / "workers" / worker)

    def workers(self) -> list[str]:
        """Workers that have registered and not left."""
        return [file.name for file in self._files("workers") if _WORKER.fullmatch(file.name)]

    def leave(self, worker: str) -> None:
        """A worker goes: what it has taken waits again."""
        for lease in self.running():
            if lease.worker == worker:
                self.release(lease)
        (self.folder / "workers" / worker).unlink(missing_ok=True)

    def offer(self, number: int, offer: Offer) -> None:
        """A trial waits from now on."""
        name = f"{number:06d}-{offer.trial.key}"
        write_atomically(self.folder / "waiting" / name, dumps(to_plain(offer)) + "\n")

    def waiting(self) -> list[str]:
        """Names in the order in which they are to begin."""
        return sorted(file.name for file in self._files("waiting") if _NAME.fullmatch(file.name))

    def look(self, name: str) -> Offer | None:
        """What waits under a name; None where another has taken it."""
        try:
            kept = parse_json((self.folder / "waiting" / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Offer(
            trial=Trial.from_dict(kept["trial"]),
            memory=float(kept["memory"]),
            room=float(kept["room"]),
            slots=int(kept["slots"]),
        )

    def take(self, name: str, worker: str) -> Lease | None:
        """One of all workers that try gets it. None for the others."""
        place = self.folder / "running" / f"{name}@{worker}"
        with suppress(FileNotFoundError):
            (self.folder / "waiting" / name).rename(place)
        # over a network the answer to a rename that was done may get lost, and asking again finds nothing to rename
        return Lease(name=name, worker=worker) if place.exists() else None

    def release(self, lease: Lease) -> None:
        """Let the trial wait again."""
        with suppress(FileNotFoundError):
            self._running(lease).rename(self.folder / "waiting" / lease.name)

    def withdraw(self, key: str) -> None:
        """What waits of this trial does so no more."""
        for name in self.waiting():
            if name.endswith(key):
                (self.folder / "waiting" / name).unlink(missing_ok=True)

    def running(self) -> list[Lease]:
        """All that are taken."""
        found = (file.name.partition("@") for file in self._files("running"))
        return [
            Lease(name=name, worker=worker)
            for name, _, worker in found
            if _NAME.fullmatch(name) and _WORKER.fullmatch(worker)
        ]

    def finish(self, lease: Lease, result: TrialResult, adapter: str) -> None:
        """The result is there, then the lease goes. `adapter`: of `KEPT`, where in `adapter_folder` it was kept, or
        empty.
        """
        arrays = arrays_of(result)
        place = self.folder / "done" / f"{lease.key}@{lease.worker}"
        if arrays:
            write_arrays(place.with_name(f"{place.name}.npz"), arrays)
        values = {"result": plain_result(result), "arrays": list(arrays), "adapter": adapter}
        write_atomically(place.with_name(f"{place.name}.json"), dumps(values) + "\n")
        self._running(lease).unlink(missing_ok=True)

    def done(self) -> list[tuple[str, str]]:
        """(key, worker) of all results that are there, late ones included."""
        found = (file.name.removesuffix(".json") for file in self._files("done") if file.suffix == ".json")
        return sorted(
            (key, worker)
            for key, _, worker in (name.partition("@") for name in found)
            if _WORKER.fullmatch(worker)
        )

    def result(self, key: str, worker: str) -> tuple[TrialResult, Path | None]:
        """What a worker found, and the folder of the adapter if it kept it. Raises `ValueError` where it is damaged."""
        place = self.folder / "done" / f"{key}@{worker}"
        try:
            values = parse_json(place.with_name(f"{place.name}.json").read_text(encoding="utf-8"))
            arrays = read_arrays(place.with_name(f"{place.name}.npz"), values["arrays"])
            found = result_of_plain(values["result"], arrays)
        except Exception as error:  # whatever reading makes of what is no longer what was written
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if found.asked.key != key:
            raise ValueError(f"a result of {found.asked.key}")
        kept = self.adapter_folder(worker) / values["adapter"] / key if values["adapter"] in KEPT else None
        return found, kept if kept is not None and kept.is_dir() else None

    def forget(self, key: str, worker: str) -> None:
        """A result that is recorded, or not wanted, goes with its adapter."""
        place = self.folder / "done" / f"{key}@{worker}"
        for ending in (".json", ".npz"):
            place.with_name(f"{place.name}{ending}").unlink(missing_ok=True)
        for kept in KEPT:
            shutil.rmtree(self.adapter_folder(worker) / kept / key, ignore_errors=True)

    def adapter_folder(self, worker: str) -> Path:
        """Where a worker keeps adapters, in one of `KEPT`, by key."""
        return self.folder / "adapters" / worker

    def _running(self, lease: Lease) -> Path:
        return self.folder / "running" / f"{lease.name}@{lease.worker}"

    def _files(self, part: str) -> list[Path]:
        try:
            return [file for file in (self.folder / part).iterdir() if not file.name.startswith(".")]
        except FileNotFoundError:
            return []


def _stamp(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


class Watch:
    """How long each worker has been silent, by this process's clock: time stamps are only compared with each other."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int | None, float]] = {}

    def silent(self, name: str, stamp: int | None) -> float:
        """Seconds since the stamp of this name was first seen as it is."""
        known = self._seen.get(name)
        if known is None or known[0] != stamp:
            self._seen[name] = known = (stamp, self._clock())
        return self._clock() - known[1]


@dataclass(eq=False)
class Leases:
    """A worker's share: a `runners.queue.Queue` over the folder."""

    place: LeaseFolder
    worker: str
    held: dict[str, tuple[Lease, Offer]] = field(default_factory=dict)
    """Leases and offers by key."""
    _slots: int = field(default=1, init=False)

    @property
    def slots(self) -> int:
        """Slots that the waiting trials are planned with."""
        offers = (self.place.look(name) for name in self.place.waiting())
        first = next((offer for offer in offers if offer is not None), None)
        self._slots = self._slots if first is None else first.slots
        return self._slots

    def next(self) -> Trial | None:
        """The first waiting trial that fits beside those held, where this worker has not more than its share.

        None of those held: a driver that begins again offers what is still at work here under a new name.
        """
        if self.place.halted or self.place.closed:
            return None
        waiting = self.place.waiting()
        live = max(1, len(self.place.workers()))
        share = ceil((len(waiting) + len(self.place.running())) / live)
        for name in waiting if len(self.held) < max(1, share) else ():
            offer = self.place.look(name)
            if offer is None or offer.trial.key in self.held or not self._fits(offer):
                continue
            lease = self.place.take(name, self.worker)
            if lease is not None:
                self.held[lease.key] = (lease, offer)
                return offer.trial
        return None

    def _fits(self, offer: Offer) -> bool:
        others: Sequence[Offer] = [each for _, each in self.held.values()]
        if not others:
            return True
        together = sum(each.memory for each in others) + offer.memory
        return len(others) < offer.slots and together <= min(offer.room, *(each.room for each in others))

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        """Without a result the trial waits again; with one `finish` follows."""
        if result is None and trial.key in self.held:
            self.place.release(self.held.pop(trial.key)[0])

    def finish(self, result: TrialResult, adapter: Path | None) -> None:
        """Hand the result over; `adapter`: its folder, if it was kept."""
        lease, _ = self.held.pop(result.asked.key)
        self.place.finish(lease, result, "" if adapter is None else adapter.parent.name)
