"""Packing plans on generated studies: how far above the proven bound they end, and how long planning takes.

The studies are those of tests/costs/test_packing.py: batches 4…64, fractions, epochs, ranks 1…128 of a 1B model, with
step times measured on a GPU (a tenth of a second to launch) and on a CPU (nothing). Prints one line per kind and
appends it to bench/results/packing.csv.
"""

import argparse
from pathlib import Path
from time import process_time

import numpy as np

from loratune.costs.packing import TrialLoad, plan_packs
from loratune.costs.step_time import StepTime
from record import append, circumstances

RESULTS = Path(__file__).parent / "results" / "packing.csv"
TIMES = {
    # an 8B shape with banking77's lengths on an H200, measured by bench/workflow.py
    "gpu": StepTime(
        points=((1599, 0.194), (4054, 0.336), (8106, 0.569), (16056, 1.043)),
        micro_batch_tokens=16384,
    ),
    "cpu": StepTime(points=((256, 1.4), (512, 2.6), (1024, 5.1)), micro_batch_tokens=1024),
}
MEMORY = {"tight": 6e9, "usual": 20e9, "ample": 50e9}
"""Bytes for adapters; one of rank 128 takes 5.1 GB."""


def study(random: np.random.Generator, trials: int) -> list[TrialLoad]:
    """Trials of one dataset."""
    length, rows = int(random.choice([24, 100, 190])), int(random.choice([500, 2000, 10_000]))
    loads = []
    for _ in range(trials):
        batch, fraction = int(random.choice([4, 8, 16, 32, 64])), random.choice([0.1, 0.25, 0.5, 1.0])
        steps = max(1, int(-(-rows * fraction // batch) * random.choice([1, 2, 3])))
        rank = int(random.choice([1, 2, 4, 8, 16, 32, 64, 128]))
        loads.append(TrialLoad(steps=steps, tokens=batch * length, memory=rank * 40_000_000))
    return loads


def main() -> None:
    """Print and record every kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100, help="of each kind")
    arguments = parser.parse_args()
    for device, times in TIMES.items():
        for room, memory in MEMORY.items():
            for trials in (5, 20, 100, 1000):
                random = np.random.default_rng(trials)
                gaps, seconds = [], []
                for _ in range(arguments.studies if trials < 1000 else 10):
                    loads, slots = study(random, trials), int(random.choice([4, 8, 32, 64]))
                    started = process_time()
                    gaps.append(plan_packs(loads, slots=slots, memory=memory, times=times).gap)
                    seconds.append(process_time() - started)
                row = {
                    **circumstances(),
                    "step_times": device,
                    "memory": room,
                    "trials": trials,
                    "studies": len(gaps),
                    "mean_gap": round(float(np.mean(gaps)), 4),
                    "gap_95": round(float(np.quantile(gaps, 0.95)), 4),
                    "worst_gap": round(max(gaps), 4),
                    "within_ten_per_cent": round(float(np.mean(np.array(gaps) <= 0.1)), 4),
                    "median_cpu_seconds": round(float(np.median(seconds)), 3),
                }
                print({name: row[name] for name in list(row)[6:]}, flush=True)
                append(RESULTS, row)


if __name__ == "__main__":
    main()
