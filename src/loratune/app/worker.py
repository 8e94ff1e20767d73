"""A worker of a study that runs elsewhere: trains trials that it takes from the run's folder, until nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from loratune.app.watching import watching
from loratune.costs.budget import Budget
from loratune.errors import BudgetError, InputError, OutputError, interrupted, printable
from loratune.files.paths import check_own, user_path
from loratune.metrics import is_address
from loratune.runners.engines import LocalEngines
from loratune.runners.finalists import Finalists
from loratune.runners.largest import LargestAdapter
from loratune.runners.leases import BEAT, FOLDER, LeaseFolder, Leases, Watch, worker_name
from loratune.runners.options import RunnerOptions
from loratune.runners.spec import Built, EngineSpec, build
from loratune.values.events import Note, Tell
from loratune.values.plain import from_plain

_LOOK = 1.0
"""Seconds between two checks for waiting trials."""
_DRIVER_AWAY = 600.0
"""Seconds without a driver after which a worker goes."""


def run_worker(
    directory: str | Path | None,
    *,
    storage: str | None = None,
    device: str = "auto",
    device_memory: str | None = None,
    metric: str | None = None,
    wait: str | None = None,
    tell: Tell,
) -> int:
    """Train what the run in `directory` (or the one in `storage`) gives away; returns how many trials.

    Args:
        directory: The run's; on a file system that the driver and all workers share.
        storage: Its Optuna storage, where that is to say which directory it is.
        device, device_memory: Where to train, and what may be taken.
        metric: The run's, where it is code, which is only run if it is named here.
        wait: How long to wait for a run that has not begun ("30m"; by default not at all), and for one whose driver is
            silent (by default ten minutes).

    Returns when the run is complete, or its driver has been silent for `wait`. Raises `InputError` or `OutputError`
    where there is no such run.
    """
    patience = None if wait is None else _seconds(wait)
    folder = user_path(directory) if directory is not None else _folder_of(storage, patience or 0.0)
    check_own(folder)
    place = LeaseFolder(folder / FOLDER)
    spec = _spec(place, folder, patience or 0.0, metric)
    if spec is None:
        tell(Note(text=f"{folder} is complete; nothing to do."))
        return 0
    spec = replace(spec, device=device, device_memory=device_memory, rows=str(place.folder / "rows"))
    name = worker_name()
    with TemporaryDirectory(prefix="loratune-") as rows, _present(place, name):
        built = build(spec, Path(rows))
        return _work(place, name, built, _DRIVER_AWAY if patience is None else patience, tell)


def _seconds(wait: str) -> float:
    try:
        seconds = Budget.parse(wait).seconds
    except BudgetError:
        seconds = None
    if seconds is None:
        raise InputError(f"--wait must be a time such as 30m or 2h, got {wait!r}; give e.g. --wait 30m.")
    return seconds


def _folder_of(storage: str | None, patience: float) -> Path:
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


def _spec(place: LeaseFolder, folder: Path, patience: float, metric: str | None) -> EngineSpec | None:
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
def _present(place: LeaseFolder, name: str) -> Iterator[None]:
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


def _work(place: LeaseFolder, name: str, built: Built, patience: float, tell: Tell) -> int:
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


def worker_command(
    directory: Path | None,
    *,
    storage: str | None,
    device: str,
    device_memory: str | None,
    metric: str | None,
    wait: str | None,
) -> None:
    """Run with progress on stderr."""
    with watching(as_json=False) as bus:
        trained = run_worker(
            directory,
            storage=storage,
            device=device,
            device_memory=device_memory,
            metric=metric,
            wait=wait,
            tell=bus,
        )
    print(f"{trained} trials trained.")
