"""The worker's side of a study that runs elsewhere: the run and its engine, signs of life, and trials by leases.

The driver's side is `runners/shared.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep

from loratune.errors import InputError, OutputError, interrupted, printable
from loratune.metrics import is_address
from loratune.runners.engines import LocalEngines
from loratune.runners.finalists import Finalists
from loratune.runners.largest import LargestAdapter
from loratune.runners.leases import BEAT, FOLDER, LeaseFolder, Leases, Watch
from loratune.runners.options import RunnerOptions
from loratune.runners.spec import Built, EngineSpec
from loratune.values.events import Note, Tell
from loratune.values.plain import from_plain

_LOOK = 1.0
"""Seconds between two checks for waiting trials."""


def folder_of(storage: str | None, patience: float) -> Path:
    """The directory of the run whose study is in a storage and takes workers. Raises `InputError`, `OutputError`."""
    if storage is None:
        raise InputError(
            "A worker needs a run: give the run directory, or --storage with the URL of its study."
        )
    from loratune.study.database import shared_folders, storage_errors

    until = monotonic() + patience
    while True:
        found = []
        try:
            with storage_errors(Path(), storage):
                folders = shared_folders(storage)
            found = [each for each in folders if not LeaseFolder(Path(each) / FOLDER).closed]
        except OutputError:  # a server that is not up yet, tables that a driver is just making
            if monotonic() >= until:
                raise
        if found or monotonic() >= until:
            break
        sleep(min(_LOOK, max(0.0, until - monotonic())))
    if len(found) != 1:
        named = (
            f", but it has {len(found)}: {', '.join(map(printable, found))}" if found else ", but it has none"
        )
        raise OutputError(
            f"--storage must hold one study that takes workers (tune --devices workers){named}; give the run directory."
        )
    return Path(found[0])


def spec_of(place: LeaseFolder, folder: Path, patience: float, metric: str | None) -> EngineSpec | None:
    """What to build, once a driver has begun; None where the run is complete."""
    until = monotonic() + patience
    while True:
        if place.folder.exists() and place.closed:
            return None
        try:
            values = place.engine()
            spec = None if values is None else from_plain(EngineSpec, values)
        except ValueError as error:
            reason = printable(str(error).partition("\n")[0])[:200]
            raise OutputError(
                f"The run in {str(folder)!r} must be of this version of loratune, but {reason}; use the driver's."
            ) from None
        if spec is not None:
            break
        if monotonic() >= until:
            raise OutputError(
                f"A worker needs a run directory whose study takes workers, but {str(folder)!r} has none; begin it "
                f"with loratune tune --devices workers --out {folder}, or give --wait 30m to wait for it."
            )
        sleep(min(_LOOK, max(0.0, until - monotonic())))
    if is_address(spec.metric) and metric != spec.metric:
        raise InputError(
            f"The run in {str(folder)!r} names code, the metric {printable(spec.metric)}, which only runs if you "
            f"name it too; add --metric {printable(spec.metric)}."
        )
    return spec


@contextmanager
def present(place: LeaseFolder, name: str) -> Iterator[None]:
    """Heartbeats while the block runs; however it ends, unfinished trials wait again."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            if place.closed:
                return
            place.beat_worker(name)

    place.beat_worker(name)
    pulse = threading.Thread(target=beat, daemon=True)
    pulse.start()
    try:
        yield
    except KeyboardInterrupt as error:
        raise interrupted(error, "Interrupted; what was unfinished is trained by other workers.") from None
    finally:
        over.set()
        pulse.join()
        place.leave(name)


def work(place: LeaseFolder, name: str, built: Built, patience: float, tell: Tell) -> int:
    """Train what waits until the run is complete, or its driver silent for `patience` seconds; returns the trials."""
    leases, driver, trained = Leases(place, name), Watch(), 0
    folder, compared = place.adapter_folder(name), built.engine.scoring.generates
    runner = LocalEngines(built).runner(
        built.spec,
        RunnerOptions(
            # the best of the largest rank is among the finalists
            largest=None if compared else LargestAdapter(folder, (), alone=False),
            finalists=Finalists(folder, (), alone=False) if compared else None,
            tell=tell,
            stopped=lambda: place.halted or place.closed,
        ),
    )
    while not place.closed:
        if place.waiting() and not place.halted:
            with closing(runner.search(leases)) as results:
                for done in results:
                    leases.finish(done.result, done.adapter)
                    trained += 1
        elif driver.silent("driver", place.stamp_of_driver()) >= patience:
            tell(Note(text=f"The driver has been silent for {patience:.0f} s; this worker ends."))
            break
        sleep(_LOOK)
    return trained
