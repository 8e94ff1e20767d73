"""The trackers of `--report-to`, by name, and whether their libraries are here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from loratune.errors import InputError
from loratune.trackers.libraries import Mlflow, TensorBoard, Trackio, WeightsAndBiases
from loratune.trackers.tracker import Tracker

TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
TRACKER_NAMES = tuple(TRACKERS)


def make_tracker(name: str) -> Tracker:
    """Raises `InputError` where its library is not installed; imports nothing of it."""
    if find_spec(name) is None:
        raise InputError(
            f"--report-to {name} needs the package {name}, which is not installed; "
            f"run `pip install 'loratune[{name}]'`, or leave it out."
        )
    return TRACKERS[name]()
