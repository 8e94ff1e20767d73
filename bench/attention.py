"""How fast attention within rows is, ours against torch's variable-length flash attention, on the same line of tokens.

Heads of three architectures, rows of one length and real ones; each side is timed through a CUDA graph of many
launches, over inputs that do not fit into the cache. Deviations are against float32, so that both sides' rounding
shows. `--tune` tries other tiles. Prints as it goes and appends a row for each to bench/results/attention.csv.

Needs a CUDA device: PYTHONPATH=src:bench python bench/attention.py [--tokens 16384] [--tune]
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from loratune.model import long_attention
from loratune.model import row_attention as ours
from loratune.model.rows import bounds_of
from low_rank import seconds
from record import append, circumstances
from rows import rows_of

RESULTS = Path(__file__).parent / "results" / "attention.csv"
HEADS = {
    "qwen2-0.5b": (14, 2, 64),
    "llama3-1b": (32, 8, 64),
    "llama3-8b": (32, 8, 128),
    "gemma3-1b": (4, 1, 256),
}
"""(of queries, of keys, features) of each shape."""
LENGTHS = ("banking77", "32", "128", "gsm8k", "512", "1024", "4096", "16384")
SQUARE = [(64, 64, warps, stages) for warps, stages in product((4, 8), (1, 2, 3))]
TILES = {
    "_ATTEND_LARGE": [*SQUARE, (128, 64, 8, 2), (32, 32, 2, 2), (32, 64, 4, 2), (64, 32, 8, 1)],
    "_BACKWARD_QUERY_LARGE": [*SQUARE, (128, 64, 8, 2), (32, 32, 2, 2), (64, 32, 4, 2), (64, 32, 8, 1)],
    "_BACKWARD_KEY": [
        *SQUARE,
        (32, 64, 4, 2),
        (32, 64, 4, 1),
        (64, 128, 8, 2),
        (32, 32, 2, 2),
        (32, 32, 4, 1),
    ],
}
"""BLOCK_M, BLOCK_N, warps, stages."""

Forward = Callable[[], Any]
"""Output, and what the backward pass needs beside it."""
Backward = Callable[[torch.Tensor, torch.Tensor], Any]
"""Gradients of query, key and value."""


class PackedRows(NamedTuple):
    """Inputs of an attention, [N, heads, D] each, and where rows begin [rows + 1]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    grad: torch.Tensor
    starts: np.ndarray


def line_of(length: str, heads: tuple[int, int, int], tokens: int) -> PackedRows:
    """Rows of these lengths up to `tokens`, the last one cut."""
    lengths = rows_of(length, 1000).lengths
    ends = np.cumsum(np.tile(lengths, -(-tokens // int(lengths.sum()))))
    starts = np.concatenate([[0], ends[ends < tokens], [tokens]])
    queries, groups, dim = heads

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(count, tokens, dim, device="cuda").to(torch.bfloat16).transpose(0, 1)

    return PackedRows(drawn(queries), drawn(groups), drawn(groups), drawn(queries), starts)


def flash(line: PackedRows) -> tuple[Forward, Backward]:
    """torch's own."""
    q, k, v, grad, starts = line
    ends = torch.from_numpy(starts.astype(np.int32)).cuda()
    longest = int(np.diff(starts).max())
    state = torch.zeros(2, dtype=torch.uint64, device="cuda")
    scale = q.shape[-1] ** -0.5
    settings = ends, ends, longest, longest, 0.0, True

    def forward() -> Any:
        return torch.ops.aten._flash_attention_forward(q, k, v, *settings, False, scale=scale)[:2]

    def backward(out: torch.Tensor, found: torch.Tensor) -> Any:
        kept = out, found, *settings, state, grad.new_empty(0)
        return torch.ops.aten._flash_attention_backward(grad.contiguous(), q, k, v, *kept, scale=scale)

    return forward, backward


def own(line: PackedRows) -> tuple[Forward, Backward]:
    """Ours."""
    bounds = bounds_of(line.starts, line.query.device)
    assert isinstance(bounds, torch.Tensor)
    return _operators(line, lambda: ours.set_bounds(bounds))


def taken(line: PackedRows) -> tuple[Forward, Backward]:
    """What training takes for these rows: ours, or one of torch's."""
    bounds = bounds_of(line.starts, line.query.device)
    assert isinstance(bounds, torch.Tensor)
    known = long_attention.PackedRows(line.starts, len(line.starts) - 1)
    return _operators(line, lambda: ours.set_bounds(bounds, known))


def _operators(line: PackedRows, ready: Callable[[], None]) -> tuple[Forward, Backward]:
    q, k, v, grad, _ = line
    scale = q.shape[-1] ** -0.5

    def forward() -> Any:
        ready()
        return ours.row_attention(q, k, v, scale, -1)

    def backward(out: torch.Tensor, found: torch.Tensor) -> Any:
        ready()
        return ours.row_attention_backward(grad, q, k, v, out, found, scale, -1)

    return forward, backward


def results(side: tuple[Forward, Backward]) -> list[torch.Tensor]:
    """Output and gradients."""
    out, found = side[0]()
    return [out, *side[1](out, found)]


def exact(line: PackedRows) -> list[torch.Tensor]:
    """The same in float32, row by row."""
    q, k, v = (each.detach().float().requires_grad_() for each in line[:3])
    parts = []
    for start, stop in zip(line.starts[:-1], line.starts[1:], strict=True):
        query, key, value = (each[start:stop].transpose(0, 1)[None] for each in (q, k, v))
        # torch has no kernel for heads that share keys in float32: it would hold the square of a row's length
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
        found = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        parts.append(found[0].transpose(0, 1))
    out = torch.cat(parts)
    out.backward(line.grad.float())  # type: ignore[no-untyped-call]
    return [out.detach(), *(each.grad for each in (q, k, v) if each.grad is not None)]


def deviation(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest norm of a difference relative to what is expected."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def _seconds(run: Callable[[], Any]) -> float:
    def launch() -> None:
        run()

    return seconds(launch)


def measure(shape: str, length: str, line: PackedRows) -> None:
    """Print and append one row."""
    facts: dict[str, Any] = {"shape": shape, "length": length, "tokens": len(line.query)}
    expected = exact(line)
    for name, side in (("ours", own(line)), ("taken", taken(line)), ("flash", flash(line))):
        out, found = side[0]()
        forward, backward = _seconds(side[0]), _seconds(partial(side[1], out, found))
        facts |= {
            f"{name}_forward_us": round(1e6 * forward, 1),
            f"{name}_backward_us": round(1e6 * backward, 1),
        }
        facts[f"{name}_deviation"] = round(deviation(results(side), expected), 5)
    print(facts, flush=True)
    append(RESULTS, circumstances() | facts)


def tune(shape: str, length: str, line: PackedRows) -> None:
    """Print each kernel's fastest tiles beside the ones in use."""
    side = own(line)
    out, found = side[0]()
    dim = line.query.shape[-1]
    for place, tiles in TILES.items():
        table = getattr(ours, place)
        usual, times = table[dim], []
        run = side[0] if place == "_ATTEND_LARGE" else partial(side[1], out, found)
        for tile in [None, *tiles]:
            if tile is not None:
                table[dim] = dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), tile, strict=True))
            try:
                times.append((_seconds(run), tuple(table[dim].values())))
            except Exception as error:  # too much shared memory, say: not a candidate
                print(f"{place} {table[dim]}: {str(error)[:60]}", flush=True)
        table[dim] = usual
        best = sorted(times[1:])[:4]
        told = "; ".join(f"{1e6 * took:.1f} {setting}" for took, setting in best)
        print(f"{shape} {length} {place} now {1e6 * times[0][0]:.1f} us, best {told}", flush=True)


def main() -> None:
    """All heads at all lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--shapes", default=",".join(HEADS))
    parser.add_argument("--lengths", default=",".join(LENGTHS))
    parser.add_argument("--tune", action="store_true", help="try other tiles; append nothing")
    given = parser.parse_args()
    if unknown := set(given.shapes.split(",")) - set(HEADS):
        parser.error(f"--shapes must be of {', '.join(HEADS)}, got {', '.join(sorted(unknown))}.")
    for shape in given.shapes.split(","):
        for length in given.lengths.split(","):
            line = line_of(length, HEADS[shape], given.tokens)
            (tune if given.tune else measure)(shape, length, line)


if __name__ == "__main__":
    main()
