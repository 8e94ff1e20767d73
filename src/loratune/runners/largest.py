"""The best adapter of the largest rank of a search, on which the truncation curve is measured."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from loratune.lora.layout import Adapter
from loratune.lora.peft_io import save_adapter
from loratune.runners.runner import AdapterFile
from loratune.search.compare import FULL
from loratune.values import Stage, TrialResult


class LargestAdapter:
    """Offered every adapter of the search, it keeps the one that the truncation curve is measured on."""

    def __init__(self, directory: Path, results: Iterable[TrialResult], *, alone: bool = True) -> None:
        """`results`: those of the search so far; `alone`: whether the folders of earlier ones are removed."""
        self._folder = directory / "largest"
        self._alone = alone
        self._result = max(
            (each for each in results if self._path(each).is_dir()), key=_rank_then_loss, default=None
        )

    def _path(self, result: TrialResult) -> Path:
        return self._folder / result.asked.key

    def offer(self, result: TrialResult, adapter: Adapter, model: nn.Module) -> Path | None:
        """Keep an adapter of `model` if its rank is larger than the kept one's, or as large and better; returns where.

        To be called before the result is recorded: a folder without a result means nothing.
        """
        if not self._wanted(result):
            return None
        save_adapter(adapter, self._path(result), model)
        return self._kept(result)

    def take(self, result: TrialResult, folder: Path) -> Path | None:
        """`offer` of an adapter in a folder of the same file system, which is moved or removed."""
        if not self._wanted(result):
            shutil.rmtree(folder)
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._path(result).exists():  # of a run that was killed before it recorded the trial
            shutil.rmtree(self._path(result))
        folder.rename(self._path(result))
        return self._kept(result)

    def _wanted(self, result: TrialResult) -> bool:
        eligible = result.finished and result.asked.stage is Stage.RANK and result.asked.fraction >= FULL
        return eligible and (self._result is None or _rank_then_loss(result) > _rank_then_loss(self._result))

    def _kept(self, result: TrialResult) -> Path:
        for other in self._folder.iterdir() if self._alone else ():
            if other != self._path(result):
                shutil.rmtree(other)
        self._result = result
        return self._path(result)

    def file(self) -> tuple[TrialResult, AdapterFile] | None:
        """The trial and where its adapter is; None where no trial of the rank stage has finished on all rows."""
        if self._result is None:
            return None
        setting = self._result.asked.hyper_parameters
        return self._result, AdapterFile(folder=self._path(self._result), hyper_parameters=setting)


def _rank_then_loss(result: TrialResult) -> tuple[int, float]:
    return result.asked.hyper_parameters.r, -result.nll
