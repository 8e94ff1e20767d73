"""CUDA graphs of whole micro-batches: one launch where a small model's thousands cost more than their work.

A graph is recorded the second time a shape is seen (the first pass compiles and counts as any other), reads
its inputs from buffers of its own, and survives refilled slots: what it does to which adapter stands in the
tables that its kernels read. Knows nothing of what it records.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from loratune.engine.resources import Failure, attempt

_LARGEST_FLOPS = 40e12
"""Of a micro-batch's products: above, launching costs less than the work (measured on an H100)."""
_LARGEST_TOKENS = 16384
"""A graph keeps its activations' memory for good."""
_LARGEST_COUNT = 24


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor


Body = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class Graphs:
    """Runs bodies on tensors, from a graph where there is one for the key."""

    def __init__(self, parameters: int) -> None:
        self._tokens = int(min(_LARGEST_TOKENS, _LARGEST_FLOPS / (4 * max(1, parameters))))
        self._recorded: dict[Hashable, _Recorded | None] = {}
        self._given_up: set[Hashable] = set()
        self._pool: Any = None

    def takes(self, tokens: int) -> bool:
        """Whether micro-batches of so many tokens are recorded."""
        return tokens <= self._tokens

    def run(self, key: Hashable, body: Body, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """`body(inputs)`; equal keys promise equal shapes and a body that differs in `inputs` only.

        The result is valid until the next call.
        """
        if key in self._given_up:
            return body(inputs)
        if key not in self._recorded:
            if len(self._recorded) < _LARGEST_COUNT:
                self._recorded[key] = None
            return body(inputs)
        recorded = self._recorded[key]
        if recorded is None:
            found = attempt(partial(self._record, body, inputs), inputs[0].device)
            if isinstance(found, Failure):  # nothing has run: what is recorded is not executed
                self._given_up.add(key)
                return body(inputs)
            recorded = self._recorded[key] = found
        for own, given in zip(recorded.inputs, inputs, strict=True):
            own.copy_(given)
        recorded.graph.replay()
        return recorded.output

    def _record(self, body: Body, inputs: Sequence[torch.Tensor]) -> _Recorded:
        own = tuple(each.clone() for each in inputs)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with (
            torch.cuda.stream(
                torch.cuda.current_stream()
            ),  # left as it was even where the recording breaks off
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            output = body(own)
        return _Recorded(graph, own, output)

    def forget(self) -> bool:
        """Give the graphs' memory back; False where there were none."""
        found = any(recorded is not None for recorded in self._recorded.values())
        self._recorded.clear()
        self._given_up.clear()
        self._pool = None
        torch.cuda.empty_cache()
        return found
