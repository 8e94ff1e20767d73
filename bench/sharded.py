"""A base model spread over several processes against the whole one in each: tokens per second, memory, equal results.

    python bench/sharded.py --devices 0,1 --shape qwen2-32b --slots 4 --rows 64
    python bench/sharded.py --devices 0,1 --shape llama3-70b --dtype nf4 --slots 2 --rows 32 --skip-whole
    python bench/sharded.py --devices cuda:0,cuda:0 --shape llama3-8b --slots 4 --rows 128    # two processes on one GPU
    python bench/sharded.py --devices cpu,cpu --shape tiny --dtype float32 --slots 2 --rows 64

The model has random weights and is saved first (two bytes a parameter on disk). Every side trains its wave twice and
the second time counts. Appends a row for each side to bench/results/sharded.csv.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from transformers import LlamaConfig, Qwen2Config

from gpus import largest_difference, save_base, save_rows, wave
from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.data.prepare import PreparedData
from loratune.data.sources import DataOptions
from loratune.data.stored import write_rows
from loratune.model.tokenizer import load_tokenizer
from loratune.runners.options import RunnerOptions
from loratune.runners.processes import ProcessRunner, WorkerPool
from loratune.runners.runner import TrialDone, TrialJob
from loratune.runners.spec import EngineSpec, read_rows
from loratune.values import Trial, TrialResult
from record import append, circumstances
from shapes import SHAPES

RESULTS = Path(__file__).parent / "results" / "sharded.csv"
SHAPES |= {
    "qwen2-32b": Qwen2Config(
        vocab_size=152064, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=8, tie_word_embeddings=False,
    ),
    "llama3-70b": LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8,
    ),
}  # fmt: skip


def trained(
    spec: EngineSpec,
    data: PreparedData,
    devices: Sequence[str],
    trials: Sequence[Trial],
    slots: int,
    folder: Path,
    *,
    sharded: bool,
) -> tuple[list[TrialResult], float, list[int]]:
    """Results of the second time, its seconds, and the most bytes that each process held."""
    with WorkerPool(spec, devices, folder, sharded=sharded) as pool:
        plans = Planner(
            limits=replace(pool.facts.limits, device_bytes=2**40),  # slots alone limit a pack
            times=StepTime(points=((1000.0, 1.0), (10000.0, 10.0)), micro_batch_tokens=1e9),
            rows=len(data.train),
            tokens=int(data.train.lengths.sum()),
            slots=slots,
            devices=len(devices),
        )
        results: list[TrialResult] = []
        seconds = 0.0
        for _ in range(2):
            started = perf_counter()
            runner = ProcessRunner(pool=pool, options=RunnerOptions(planner=plans))
            done = runner.run([TrialJob(trial=trial) for trial in trials])
            results = [each.result for each in done if isinstance(each, TrialDone)]
            seconds = perf_counter() - started
        return results, seconds, list(pool.peaks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", default="0,1")
    parser.add_argument("--shape", default="qwen2-32b", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--skip-whole", action="store_true", help="where the whole base fits on no device")
    given = parser.parse_args()
    devices = [f"cuda:{name}" if name.isdigit() else name for name in given.devices.split(",")]
    trials = wave(given.slots * len(devices), given.batch)
    with TemporaryDirectory(prefix="loratune-") as name:
        folder = Path(name)
        model = str(save_base(given.shape, folder / "model"))
        options = DataOptions(data=str(save_rows(given.rows, folder / "train.jsonl")))
        data = read_rows(model, options, load_tokenizer(model), folder / "cache")
        rows = write_rows(data, folder / "rows")
        spec = replace(EngineSpec(model=model, data=options).sealed(data), rows=str(rows), dtype=given.dtype)
        tokens = len(trials) * int(data.train.lengths.sum())
        other: list[TrialResult] | None = None
        for sharded in (True,) if given.skip_whole else (True, False):
            results, seconds, peaks = trained(
                spec, data, devices, trials, given.slots, folder, sharded=sharded
            )
            differs = 0.0 if other is None else largest_difference(results, other)
            other = results
            row = {
                "devices": given.devices, "shape": given.shape, "dtype": given.dtype, "sharded": int(sharded),
                "trials": len(trials), "slots": given.slots, "batch": given.batch, "seconds": round(seconds, 2),
                "tokens_per_second": round(tokens / seconds), "peak_gib": round(max(peaks) / 2**30, 2),
                "largest_difference": f"{differs:.1e}",
            }  # fmt: skip
            print(row, flush=True)
            append(RESULTS, circumstances() | row)


if __name__ == "__main__":
    main()
