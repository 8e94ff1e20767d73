"""A worker of a study that runs elsewhere: trains trials that it takes from the run's folder, until nothing is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loratune.app.watching import watching
from loratune.costs.budget import Budget
from loratune.errors import BudgetError, InputError
from loratune.files.paths import check_own, user_path
from loratune.runners.lease_worker import folder_of, present, spec_of, work
from loratune.runners.leases import FOLDER, LeaseFolder, worker_name
from loratune.runners.spec import build
from loratune.values.events import Note, Tell

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
    folder = user_path(directory) if directory is not None else folder_of(storage, patience or 0.0)
    check_own(folder)
    place = LeaseFolder(folder / FOLDER)
    spec = spec_of(place, folder, patience or 0.0, metric)
    if spec is None:
        tell(Note(text=f"{folder} is complete; nothing to do."))
        return 0
    spec = replace(spec, device=device, device_memory=device_memory, rows=str(place.folder / "rows"))
    name = worker_name()
    with TemporaryDirectory(prefix="loratune-") as rows, present(place, name):
        built = build(spec, Path(rows))
        return work(place, name, built, _DRIVER_AWAY if patience is None else patience, tell)


def _seconds(wait: str) -> float:
    try:
        seconds = Budget.parse(wait).seconds
    except BudgetError:
        seconds = None
    if seconds is None:
        raise InputError(f"--wait must be a time such as 30m or 2h, got {wait!r}; give e.g. --wait 30m.")
    return seconds


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
