"""How fast the base's matrix products alone are: a bound for every engine that computes them one after the other.

The seven products of a decoder layer, forward and for the gradient of the input (a frozen base needs no other), at the
tokens of a micro-batch; times the layers, nothing else: no attention, no adapter, no element-wise work, no head.
Prints tokens/s and the share of the measured ceiling, and appends them to bench/results/products.csv.

PYTHONPATH=src:bench python bench/products.py
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from record import append, circumstances
from shapes import SHAPES
from throughput import ceiling

RESULTS = Path(__file__).parent / "results" / "products.csv"
TOKENS = {"qwen2-0.5b": 16384, "llama3-1b": 32768, "llama3-8b": 8192}
"""Of a micro-batch, as in bench/throughput.py."""


def layer(shape: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of a layer's linear modules."""
    config = SHAPES[shape]
    hidden, wide = config.hidden_size, config.intermediate_size
    head = hidden // config.num_attention_heads
    keys = head * config.num_key_value_heads
    sides = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden)]
    return [*sides, (hidden, wide), (hidden, wide), (wide, hidden)]


def seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """Of one call, the median of five times `repeats`."""
    work()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / repeats)
    return float(median(times))


def main() -> None:
    """All shapes."""
    if not torch.cuda.is_available():
        raise SystemExit("This needs a CUDA device: the ceiling is a GPU's.")
    limit = ceiling()
    print(f"{torch.cuda.get_device_name()}: ceiling {limit / 1e12:.0f} TFLOP/s", flush=True)
    for shape, tokens in TOKENS.items():
        took, flops = 0.0, 0.0
        for inputs, outputs in layer(shape):
            weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
            x, slope = (
                torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16) for width in (inputs, outputs)
            )
            took += seconds(partial(torch.matmul, x, weight.T)) + seconds(
                partial(torch.matmul, slope, weight)
            )
            flops += 4.0 * tokens * inputs * outputs
        layers = SHAPES[shape].num_hidden_layers
        facts: dict[str, Any] = {"shape": shape, "micro_batch_tokens": tokens}
        facts |= {
            "tokens_per_s": round(tokens / (layers * took)),
            "share_of_ceiling": round(flops / took / limit, 3),
        }
        print(facts, flush=True)
        append(RESULTS, circumstances() | facts)


if __name__ == "__main__":
    main()
