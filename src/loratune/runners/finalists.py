"""The adapters of a search that may be compared by the text that they write, kept in folders while it lasts.

Which of them are compared is decided when the search has ended. Knows neither metrics nor strategies.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from loratune.files.write import new_folder
from loratune.lora.layout import Adapter
from loratune.lora.peft_io import save_adapter
from loratune.runners.runner import AdapterFile
from loratune.search.compare import FULL
from loratune.values import HyperParameters, Stage, TrialResult

FOLDER = "finalists"
KEPT = 8
"""Settings with the lowest NLL whose adapters are kept, beside the best one of each rank."""


class Finalists:
    """Offered every adapter of a search, it keeps those of the best whole runs, one for each setting."""

    def __init__(self, directory: Path, results: Iterable[TrialResult], *, alone: bool = True) -> None:
        """`results`: those of the search so far; `alone`: whether folders of others are removed."""
        self._folder, self._alone = directory / FOLDER, alone
        self._kept = {each.asked.key: each for each in results if self._path(each).is_dir()}

    def _path(self, result: TrialResult) -> Path:
        return self._folder / result.asked.key

    def offer(self, result: TrialResult, adapter: Adapter, model: nn.Module) -> Path | None:
        """Keep an adapter of `model` if it is among the best, and delete one that no longer is; returns where.

        To be called before the result is recorded: a folder without a result means nothing.
        """
        best = self._with(result)
        if result.asked.key not in best:
            return None
        save_adapter(adapter, self._path(result), model)
        return self._keep(result, best)

    def copy(self, result: TrialResult, folder: Path) -> Path | None:
        """`offer` of an adapter in a folder, which stays."""
        best = self._with(result)
        if result.asked.key not in best:
            return None
        with new_folder(self._path(result)) as fresh:
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
        return self._keep(result, best)

    def _with(self, result: TrialResult) -> Mapping[str, TrialResult]:
        """The best of those that are kept and this one, by key."""
        whole = result.finished and result.asked.fraction >= FULL and result.asked.stage is not Stage.FINAL
        return _best([*self._kept.values(), result]) if whole else {}

    def _keep(self, result: TrialResult, best: Mapping[str, TrialResult]) -> Path:
        self._kept = dict(best)
        for other in self._folder.iterdir() if self._alone else ():
            if other.name not in best:
                shutil.rmtree(other)
        return self._path(result)

    def files(self) -> list[tuple[TrialResult, AdapterFile]]:
        """Each run with its adapter, the lowest NLL first."""
        return [
            (each, AdapterFile(folder=self._path(each), hyper_parameters=each.asked.hyper_parameters))
            for each in sorted(self._kept.values(), key=_order)
        ]

    def forget(self) -> None:
        """Remove all folders."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _order(result: TrialResult) -> tuple[float, str]:
    return result.nll, result.asked.key


def _best(results: Iterable[TrialResult]) -> dict[str, TrialResult]:
    """Results by key: of each setting its best run, of these the best `KEPT` and the best of each rank."""
    settings: dict[HyperParameters, TrialResult] = {}
    ranks: dict[int, TrialResult] = {}
    for each in sorted(results, key=_order):
        setting = each.asked.hyper_parameters
        if settings.setdefault(setting, each) is each:
            ranks.setdefault(setting.r, each)
    chosen = {*list(settings)[:KEPT], *(each.asked.hyper_parameters for each in ranks.values())}
    return {each.asked.key: each for setting, each in settings.items() if setting in chosen}
