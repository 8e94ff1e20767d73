"""Thousands of trials in one process: memory, open files and threads must stay as they are.

    python bench/faults/soak.py --trials 5000

The driver, packs on a tiny model, and the study, as `tune` puts them together; `--storage sqlite` is its usual file,
in which Optuna takes some 50 statements and .1 s a trial, several times what its training takes. What a search keeps
of each trial for its decisions (a result, its row in Optuna's cache) is no leak: it is told per trial.
"""

from __future__ import annotations

import argparse
import gc
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from place import keep  # isort: skip  (puts the tests' folder on the path)

import torch

from engine_fixture import VOCABULARY, engine, tiny_llama
from loratune.costs.execution import ON_CPU
from loratune.costs.limits import Limits
from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.engine.selfcheck import random_table
from loratune.runners.largest import LargestAdapter
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.study.record import Study
from loratune.tuning.driver import Driver
from loratune.values import Trial, TrialResult, default_recipe

_WAVE = 50
_LOOKS = 10


def state() -> dict[str, int]:
    """Memory in KiB, open files and threads of this process, now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "kernel_threads": len(os.listdir("/proc/self/task")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--storage", choices=["journal", "sqlite"], default="journal")
    arguments = parser.parse_args()
    tables = [random_table(VOCABULARY, rows=rows, longest=8, seed=seed) for rows, seed in ((16, 1), (4, 2))]
    subject = engine(tiny_llama(torch.float32), *tables, max_tokens_per_micro_batch=1024)
    recipe = replace(default_recipe(), r=2, lora_alpha=4.0, batch_size=8, learning_rate=1e-3)
    looks: list[dict[str, int]] = []

    def ask(history: Sequence[TrialResult], running: Sequence[Trial]) -> list[Trial]:
        begun = len(history) + len(running)
        if running or begun >= arguments.trials:
            return []
        if begun >= len(looks) * arguments.trials / _LOOKS:
            looks.append(state())
            print(begun, looks[-1], flush=True)
        return [Trial(hyper_parameters=recipe, seed=begun + each) for each in range(_WAVE)]

    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        storage = f"journal:///{folder / 'study.log'}" if arguments.storage == "journal" else None
        study = Study.open(folder, storage=storage, fingerprint={})
        limits = Limits(
            model=subject.base.profile,
            max_length=8,
            micro_batch_tokens=1024,
            device_bytes=2**34,
            execution=ON_CPU,
        )
        times = StepTime(points=((100.0, 0.01), (1000.0, 0.05)), micro_batch_tokens=1024)
        plans = Planner(limits=limits, times=times, rows=16, tokens=96, slots=16)
        runner = LocalRunner(
            engine=subject, options=RunnerOptions(planner=plans, largest=LargestAdapter(folder, []))
        )
        Driver(ask=ask, runner=runner, record=study.record).search()
        looks.append(state())
        found = len(study.results())
        study.close()
    first, last = looks[1], looks[-1]  # the first tenth warms caches up
    counted = arguments.trials * (len(looks) - 2) / _LOOKS
    keep(
        f"soak ({arguments.storage})",
        count=found,
        kilobytes_per_trial=round((last["memory"] - first["memory"]) / counted, 2),
        memory_mib=last["memory"] // 1024,
        files_more=last["files"] - first["files"],
        threads_more=last["kernel_threads"] - first["kernel_threads"],
    )


if __name__ == "__main__":
    main()
