"""One thread per test process (two 2-thread processes on two cores slow each other many times), no network."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module's own ledger and calibrations, for its fixtures too; the user's are never touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORATUNE_LEDGER", str(tmp_path_factory.mktemp("ledger") / "ledger.db"))
        patch.setenv("LORATUNE_CALIBRATIONS", str(tmp_path_factory.mktemp("calibrations")))
        yield


@pytest.fixture(scope="session")
def _ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder each: `mktemp` looks through all that there are, which are thousands in the end."""
    folder = tmp_path_factory.mktemp("ledgers")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def ledger(_ledgers: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test begins without earlier studies."""
    path = next(_ledgers) / "ledger.db"
    monkeypatch.setenv("LORATUNE_LEDGER", str(path))
    return path


_SEARCHES = [
    "tuning",
    "runners",
    "app",
    "search",
    "engine",
    "study",
    "analysis",
    "costs",
    "tests",
    "docs",
    "reporting",
]
"""Folders with files that take half a minute and more, those with the longest first: whole searches, processes that are
killed, exactness."""


def _place(item: pytest.Item) -> int:
    if item.get_closest_marker("real") is not None:
        return 0
    folder = item.path.parent.name
    return 1 + _SEARCHES.index(folder) if folder in _SEARCHES else 1 + len(_SEARCHES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is left with them; a missing GPU skips unless it was asked for."""
    items.sort(key=_place)
    if torch.cuda.is_available() or os.environ.get("LORATUNE_REQUIRE_GPU"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        elif item.get_closest_marker("kernels") and os.environ.get("TRITON_INTERPRET") != "1":
            item.add_marker(pytest.mark.skip(reason="no CUDA device, and Triton's interpreter not asked for"))


def pytest_collection_finish() -> None:
    """What the imports have made stays: without this every search for cycles, and there are many, goes through it."""
    gc.collect()
    gc.freeze()
