"""CUDA graphs of whole micro-batches: one launch where a small model's thousands cost more than their work.

A graph is recorded the second time a shape is seen (the first pass compiles and counts as any other), reads
its inputs from buffers of its own, and survives refilled slots: what it does to which adapter stands in the
tables that its kernels read. Knows nothing of what it records.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

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
        self._pool: tuple[int, int] | None = None

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
            try:
                recorded = self._recorded[key] = self._record(body, inputs)
            except torch.OutOfMemoryError:
                self._given_up.add(key)
                return body(inputs)
        for own, given in zip(recorded.inputs, inputs, strict=True):
            own.copy_(given)
        recorded.graph.replay()
        return recorded.output

    def _record(self, body: Body, inputs: Sequence[torch.Tensor]) -> _Recorded:
        own = tuple(each.clone() for each in inputs)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = body(own)
        return _Recorded(graph, own, output)

    def forget(self) -> None:
        """Give the graphs' memory back."""
        self._recorded.clear()
        self._given_up.clear()
        self._pool = None

