"""The one adapter of a search that outlives its trial: the best on all rows of the largest rank.

A PEFT folder `largest/<key of the trial>` in the run directory; found again by a resumed run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from loratune.lora.layout import Adapter, find_targets
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.model.base import BaseModel
from loratune.runners.runner import AdapterFile
from loratune.search.compare import FULL
from loratune.values import Stage, TrialResult


class LargestAdapter:
    """Offered every adapter of the search, it keeps the one that the truncation curve is measured on."""

    def __init__(self, directory: Path, base: BaseModel, results: Iterable[TrialResult]) -> None:
        """`results`: those of the search so far."""
        self._folder = directory / "largest"
        self._base = base
        self._result = max((each for each in results if self._path(each).is_dir()), key=_merit, default=None)

    def _path(self, result: TrialResult) -> Path:
        return self._folder / result.asked.key

    def offer(self, result: TrialResult, adapter: Adapter) -> Path | None:
        """Keep the adapter if it is of a larger rank than the kept one, or as large and better; returns where.

        To be called before the result is recorded: a folder without a result means nothing.
        """
        eligible = result.finished and result.asked.stage is Stage.RANK and result.asked.fraction >= FULL
        if not eligible or (self._result is not None and _merit(result) <= _merit(self._result)):
            return None
        save_adapter(adapter, self._path(result), self._base.model)
        for other in self._folder.iterdir():
            if other != self._path(result):
                shutil.rmtree(other)
        self._result = result
        return self._path(result)

    def load(self) -> tuple[TrialResult, Adapter] | None:
        """The trial and its adapter; None where no trial of the rank stage has finished on all rows."""
        if self._result is None:
            return None
        setting = self._result.asked.hyper_parameters
        file = AdapterFile(folder=self._path(self._result), hyper_parameters=setting)
        return self._result, read_adapter(file, self._base)


def read_adapter(file: AdapterFile, base: BaseModel) -> Adapter:
    """An adapter from its folder. Raises `ModelError` where it is missing or broken."""
    targets = find_targets(base.profile.targets, file.hyper_parameters.target_modules)
    return load_adapter(file.folder, file.hyper_parameters, targets, device=base.device)


def _merit(result: TrialResult) -> tuple[int, float]:
    return result.asked.hyper_parameters.r, -result.nll
