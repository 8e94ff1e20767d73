"""One GPU against two (or more) on a wave that fills all: trained tokens per second, and whether results agree.

    python bench/gpus.py --devices 0,1
    python bench/gpus.py --devices cpu,cpu --shape tiny --slots 2 --rows 200

A base of a known shape with random weights is saved with a byte tokenizer; a worker process for each device builds
its engine from it and from the same tokenised rows. The wave has `slots` trials for each device; one device trains
them in as many packs. Every side trains the wave twice and the second time counts: kernels are compiled and graphs
recorded by then. Appends a row for each side to bench/results/gpus.csv.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from transformers import AutoModelForCausalLM

from loratune.costs.planner import Planner
from loratune.costs.spread import SpreadPlan
from loratune.costs.step_time import StepTime
from loratune.data.sources import DataOptions
from loratune.data.stored import write_rows
from loratune.model.device import pick_devices
from loratune.runners.options import RunnerOptions
from loratune.runners.processes import ProcessRunner, WorkerPool
from loratune.runners.runner import TrialDone, TrialJob
from loratune.runners.spec import Built, EngineSpec, build
from loratune.values import Trial, TrialResult, default_recipe
from record import append, circumstances
from shapes import SHAPES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny import byte_tokenizer

RESULTS = Path(__file__).parent / "results" / "gpus.csv"
RECORDED = tuple(
    (16 * 25.4 * trials, 16 * 25.4 * trials / rate)
    for trials, rate in ((1, 31_549), (4, 95_977), (16, 217_445), (32, 283_268), (64, 339_000))
)
"""(tokens, seconds) of steps of SmolLM2-135M on an H200; what matters here is their shape alone."""
KINDS = ("meow", "woof", "moo", "baa", "oink")


def save_base(shape: str, folder: Path) -> Path:
    """A model folder with random weights, drawn on a GPU where there is one: a CPU takes minutes for 32B."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    del model
    torch.cuda.empty_cache()
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_rows(count: int, path: Path) -> Path:
    """Labelled rows of about 25 tokens."""
    random = Random(0)
    rows = [
        {"text": f"{random.choice(KINDS)} {random.getrandbits(56):014x}", "label": random.choice(KINDS)}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def wave(trials: int, batch: int) -> list[Trial]:
    """Of one step count each, ranks mixed; at rates that do not diverge, since chaos says nothing of equality."""
    recipe = replace(default_recipe(), batch_size=batch)
    return [
        Trial(
            hyper_parameters=replace(recipe, r=r, lora_alpha=2.0 * r, learning_rate=2e-4 * (1 + number % 4)),
            seed=number,
        )
        for number, r in zip(range(trials), [4, 8, 16, 32] * trials, strict=False)
    ]


def planner(built: Built, slots: int, devices: int) -> Planner:
    times = StepTime(points=RECORDED, micro_batch_tokens=65536.0)
    train = built.data.train
    return Planner(
        limits=replace(built.limits, device_bytes=2**40),  # slots alone limit a pack
        times=times,
        rows=len(train),
        tokens=int(train.lengths.sum()),
        slots=slots,
        devices=devices,
    )


def trained(
    spec: EngineSpec, built: Built, devices: Sequence[str], trials: Sequence[Trial], slots: int, folder: Path
) -> tuple[list[TrialResult], float, float, SpreadPlan]:
    """Results of the second time; its seconds; the seconds until the workers were ready; the plan."""
    plans = planner(built, slots, len(devices))
    started = perf_counter()
    with WorkerPool(spec, devices, folder) as pool:
        ready = perf_counter() - started
        results: list[TrialResult] = []
        for _ in range(2):
            started = perf_counter()
            done = ProcessRunner(pool=pool, options=RunnerOptions(planner=plans)).run(
                [TrialJob(trial=trial) for trial in trials]
            )
            results = [each.result for each in done if isinstance(each, TrialDone)]
            seconds = perf_counter() - started
    return results, seconds, ready, plans.plan(trials)


def largest_difference(found: Sequence[TrialResult], expected: Sequence[TrialResult]) -> float:
    """Of the losses of the same trials, relative."""
    of = {each.asked.key: each.nll for each in expected}
    assert {each.asked.key for each in found} == set(of)
    return max(abs(each.nll / of[each.asked.key] - 1) for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="0,1")
    parser.add_argument("--shape", default="smollm2-135m", choices=SHAPES)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4000)
    given = parser.parse_args()
    places = pick_devices(given.devices.split(","))
    trials = wave(given.slots * len(places), given.batch)
    alone: tuple[list[TrialResult], float] | None = None
    with TemporaryDirectory(prefix="loratune-") as name:
        folder = Path(name)
        model = save_base(given.shape, folder / "model")
        spec = EngineSpec(
            model=str(model),
            data=DataOptions(data=str(save_rows(given.rows, folder / "train.jsonl"))),
            device="cpu",  # here for its sizes and rows only
        )
        built = build(spec, folder / "cache")
        rows = write_rows(built.data, folder / "rows")
        sealed = replace(spec.sealed(built.data), rows=str(rows), dtype="bfloat16")
        tokens = len(trials) * int(built.data.train.lengths.sum())
        for devices in (places[:1], places):
            results, seconds, ready, plan = trained(sealed, built, devices, trials, given.slots, folder)
            if alone is None:
                alone = results, seconds
            speedup, differs = alone[1] / seconds, largest_difference(results, alone[0])
            print(
                f"{len(devices)} x {given.shape}: {tokens / seconds:,.0f} trained tokens/s, {speedup:.2f} x of one, "
                f"losses differ by {differs:.1e} at most; ready after {ready:.0f} s",
                flush=True,
            )
            row = {
                "devices": len(devices),
                "shape": given.shape,
                "trials": len(trials),
                "slots": given.slots,
                "batch": given.batch,
                "seconds": round(seconds, 2),
                "tokens_per_second": round(tokens / seconds),
                "speedup": round(speedup, 3),
                "planned_speedup": round(_planned(plan, built, trials, given.slots), 3),
                "largest_difference": f"{differs:.1e}",
                "ready_seconds": round(ready, 1),
            }
            append(RESULTS, circumstances() | row)


def _planned(plan: SpreadPlan, built: Built, trials: Sequence[Trial], slots: int) -> float:
    one = planner(built, slots, 1).plan(trials).seconds
    return one / plan.seconds


if __name__ == "__main__":
    main()
