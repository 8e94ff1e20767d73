"""How fast the Triton kernels of the low-rank products are, against a plain copy on the same device.

A layer's widths and a pack's ranks; each kernel is timed through a CUDA graph of many launches, over inputs that do
not fit into the cache. Told are GB/s of the activations that a kernel must read and write once (the adapters' own
numbers are not counted), and their share of what a copy reaches. `--tune` tries other block sizes. Prints as it goes
and appends a row for each kernel to bench/results/low_rank.csv.

PYTHONPATH=src:bench python bench/low_rank.py [--tokens 15360] [--tune]
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from loratune.kernels import low_rank as kernels
from loratune.lora import fused
from loratune.lora.layout import Adapter, AdapterLayout, Target
from loratune.lora.packed import PackedAdapters
from loratune.lora.segments import PackMember, Segment
from loratune.values import HyperParameters
from record import append, circumstances

RESULTS = Path(__file__).parent / "results" / "low_rank.csv"
RANKS = {"16": (16,), "64": (64,), "128": (128,), "mixed": (4, 8, 16, 32, 64, 128)}
WIDTHS = ((896, 4864), (4864, 896), (2048, 8192), (8192, 2048))
"""(inputs, outputs) of a module."""
TUNED = {
    "_SHRINK": [
        {"BLOCK_K": k, "STAGES": s, "num_warps": w} for k, s, w in product((128, 256), (3, 4), (4, 8))
    ],
    "_EXPAND": [
        {"BLOCK_M": m, "BLOCK_N": n, "PARTS": 64 // m, "num_warps": w}
        for m, n, w in ((32, 64, 4), (32, 256, 4), (64, 64, 4), (64, 128, 4), (64, 128, 8), (64, 256, 8))
    ],
    "_GRADIENT": [
        {"BLOCK_M": m, "BLOCK_N": n, "STAGES": s, "num_warps": w}
        for m, n, s, w in (
            (64, 128, 2, 4),
            (64, 128, 4, 4),
            (64, 64, 3, 4),
            (128, 128, 3, 8),
            (64, 128, 3, 8),
            (32, 128, 4, 4),
        )
    ],
}


class Bench:
    """One adapted module, its pack and a micro-batch."""

    def __init__(self, inputs: int, outputs: int, ranks: tuple[int, ...], tokens: int, trials: int) -> None:
        self.tokens, self.inputs, self.outputs = tokens, inputs, outputs
        model = nn.Sequential(nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.bfloat16))
        self.packed = PackedAdapters(model, ["0"], triton=True)
        target = (Target("0", inputs, outputs),)
        self.members = []
        for i in range(trials):
            rank = ranks[i % len(ranks)]
            recipe = HyperParameters(r=rank, lora_alpha=rank, learning_rate=1e-4, batch_size=1, epochs=1.0)
            layout = AdapterLayout.of(recipe, target)
            weights = torch.randn(layout.size, device="cuda")
            self.members.append(
                PackMember(Adapter(hyper_parameters=recipe, layout=layout, weights=weights), trainable=True)
            )
        edges = [tokens * i // trials for i in range(trials + 1)]
        self.segments = [
            Segment(member=member, start=edges[i], stop=edges[i + 1]) for i, member in enumerate(self.members)
        ]

    def kernels(self) -> Iterator[tuple[str, Callable[[], None], int]]:
        """(name, a launch of it, bytes of activations) of each, inside a route."""
        module = self.packed.model[0]  # type: ignore[index]
        now = fused._current
        assert now is not None
        table: torch.Tensor = module.loratune_table
        x, y, out = (
            torch.randn(self.tokens, width, device="cuda", dtype=torch.bfloat16)
            for width in (self.inputs, self.outputs, self.outputs)
        )
        h = torch.randn(now.inner.shape, device="cuda", dtype=torch.bfloat16)
        yield "shrink", lambda: fused._shrink(x, h, table, kernels.COLUMN_A), 2 * x.numel()
        yield "shrink B", lambda: fused._shrink(y, h, table, kernels.COLUMN_B), 2 * y.numel()
        yield "expand", lambda: fused._expand(h, y, out, table, kernels.COLUMN_B), 4 * y.numel()
        yield "expand A", lambda: fused._expand(h, x, x, table, kernels.COLUMN_A), 2 * x.numel()
        yield "gradient A", lambda: fused._gradient(x, h, table, kernels.COLUMN_GRADIENT_A), 2 * x.numel()
        yield "gradient B", lambda: fused._gradient(y, h, table, kernels.COLUMN_GRADIENT_B), 2 * y.numel()


def seconds(launch: Callable[[], None], count: int = 20) -> float:
    """Of one launch, the median over graphs of many; the cache is overwritten between them."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            launch()
    spoil = torch.empty(2**26, device="cuda")
    times = []
    for _ in range(5):
        spoil.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / count)
    return float(median(times))


def copy_rate() -> float:
    """Bytes per second, read and written, of a large copy."""
    source, target = (torch.empty(2**28, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 4 * 2**28 / seconds(lambda: [target.copy_(source)].clear())


def main() -> None:
    """All kernels at all widths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=15360)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--ranks", default=",".join(RANKS))
    parser.add_argument("--tune", action="store_true", help="try other block sizes; append nothing")
    given = parser.parse_args()
    limit = copy_rate()
    print(f"{torch.cuda.get_device_name()}: a copy {limit / 1e12:.2f} TB/s", flush=True)
    for name in given.ranks.split(","):
        for inputs, outputs in WIDTHS:
            bench = Bench(inputs, outputs, RANKS[name], given.tokens, given.trials)
            with bench.packed.attached(), bench.packed.route(bench.segments, given.tokens):
                for kernel, launch, amount in bench.kernels():
                    if given.tune:
                        _tune(
                            f"rank {name:5} {inputs:5} -> {outputs:5} {kernel:10}",
                            kernel,
                            launch,
                            amount,
                            limit,
                        )
                        continue
                    took = seconds(launch)
                    facts: dict[str, Any] = {
                        "ranks": name,
                        "inputs": inputs,
                        "outputs": outputs,
                        "kernel": kernel,
                    }
                    facts |= {"tokens": given.tokens, "trials": given.trials, "us": round(1e6 * took, 1)}
                    facts |= {"share_of_copy": round(amount / took / limit, 3)}
                    print(facts, flush=True)
                    append(RESULTS, circumstances() | facts)


def _tune(label: str, kernel: str, launch: Callable[[], None], amount: int, limit: float) -> None:
    """Print the fastest settings of a kernel beside the one in use."""
    place = "_" + kernel.split()[0].upper()
    usual = getattr(fused, place)
    found = []
    for setting in [usual, *TUNED[place]]:
        setattr(fused, place, setting)
        try:
            found.append((seconds(launch), setting))
        except Exception as error:  # too much shared memory, say: not a candidate
            print(f"{label} {setting}: {str(error)[:60]}", flush=True)
    setattr(fused, place, usual)
    own = found[0][0]
    best = sorted(found[1:], key=lambda each: each[0])[:4]
    told = "; ".join(f"{1e6 * took:.1f} us {setting}" for took, setting in best)
    print(f"{label} now {1e6 * own:.1f} us ({amount / own / limit:.0%} of a copy), best {told}", flush=True)


if __name__ == "__main__":
    main()
