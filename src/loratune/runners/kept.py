"""The one adapter of a search that outlives its trial: the best on all rows of the largest rank.

A PEFT folder `largest/<key of the trial>` in the run directory; found again by a resumed run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from loratune.lora.layout import Adapter, find_targets
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.model.base import BaseModel
from loratune.search.compare import FULL
from loratune.values import Stage, TrialResult

if TYPE_CHECKING:  # only named here: importing it imports Optuna
    from loratune.study.record import Study


class LargestAdapter:
    """Offered every adapter of the search, it keeps the one that the truncation curve is measured on."""

    def __init__(self, study: Study, base: BaseModel) -> None:
        self._folder = study.directory / "largest"
        self._base = base
        self._result = max(
            (each for each in study.results() if self._path(each).is_dir()), key=_merit, default=None
        )

    def _path(self, result: TrialResult) -> Path:
        return self._folder / result.asked.key

    def offer(self, result: TrialResult, adapter: Adapter) -> None:
        """Keep the adapter if it is of a larger rank than the kept one, or as large and better.

        To be called before the result is recorded: a folder without a result means nothing.
        """
        eligible = result.finished and result.asked.stage is Stage.RANK and result.asked.fraction >= FULL
        if not eligible or (self._result is not None and _merit(result) <= _merit(self._result)):
            return
        save_adapter(adapter, self._path(result), self._base.model)
        for other in self._folder.iterdir():
            if other != self._path(result):
                shutil.rmtree(other)
        self._result = result

    def load(self) -> tuple[TrialResult, Adapter] | None:
        """The trial and its adapter; None where no trial of the rank stage has finished on all rows."""
        if self._result is None:
            return None
        setting = self._result.asked.hyper_parameters
        targets = find_targets(self._base.profile.targets, setting.target_modules)
        return self._result, load_adapter(
            self._path(self._result), setting, targets, device=self._base.device
        )


def _merit(result: TrialResult) -> tuple[int, float]:
    return result.asked.hyper_parameters.r, -result.nll
