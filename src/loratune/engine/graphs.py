"""CUDA graphs of whole micro-batches: one launch where a small model's thousands cost more than their work.

A graph is recorded when its shape is first seen, after one ordinary pass of its kind, which compiles; it reads its
inputs from buffers of its own, and survives refilled slots: what it does to which adapter stands in the tables
that its kernels read. Knows nothing of what it records.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from loratune.data.batches import Rows
from loratune.engine.memory import attempt
from loratune.kernels.first_use import count_broken_off, first_use
from loratune.maths.planned_sizes import planned_sizes
from loratune.maths.sizes import MetSizes, few_sizes, filler, line_tokens, recorded_tokens

_LARGEST_COUNT = 32
_MULTIPLE = 128
"""Tokens of a line are a multiple of this: what matrix products like."""
_POSITIONS = 64
"""Predicting positions are a multiple of this."""
_PRICE = 0.5
"""What recording a size costs, in tokens: a share of the largest micro-batch that is recorded, which takes the device
about as long to compute as the host to launch once."""
_MOST_PLANNED = 12
"""Sizes that are planned at most. Over tens of thousands of steps nearly each multiple of 128 tokens is worth a
recording, and with all trials on one seed that is more than are kept: each would be recorded again and again."""
_FILLED_POSITIONS = 0.5
"""Share by which the predicting positions may be filled up to fit a recording: they cost little beside the layers."""
_SHORTAGES = 8
"""Shortages after which nothing is recorded: recording again takes up to a second."""
_ATTEMPTS = 2
"""The first may fail because a library loads its kernels while recording."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor


Body = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class Graphs:
    """Runs bodies on tensors, from a graph where there is one for the key."""

    def __init__(self, parameters: int) -> None:
        self.largest = recorded_tokens(parameters)
        """Tokens of the largest micro-batch that is recorded."""
        self._lines = MetSizes(
            partial(line_tokens, multiple=_MULTIPLE, recorded=self.largest), filler, most=self.largest
        )
        self._positions = MetSizes(
            partial(few_sizes, multiple=_POSITIONS, parts=2), lambda _: _FILLED_POSITIONS, most=self.largest
        )
        self._planned: dict[int, int] = {}
        """Tokens of lines that are expected, and the positions that predict of each."""
        self._sizes: set[int] = set()
        """Tokens of the micro-batches that have been recorded."""
        self._recorded: dict[Hashable, _Recorded] = {}
        """The one used last is last."""
        self._warm: set[Hashable] = set()
        self._failures: Counter[Hashable] = Counter()
        self._largest = 0
        self._shortages = 0
        self._waits = False
        self._pool: Any = None

    def takes(self, tokens: int) -> bool:
        """Whether micro-batches of `tokens` tokens are recorded."""
        return not self._waits and self._shortages < _SHORTAGES and tokens <= self.largest

    def expect(self, tokens: Rows, positions: Rows) -> None:
        """Plan the sizes of coming micro-batches of those tokens and positions that predict.

        As many as cost least in all: each is recorded, and what fills micro-batches up is computed.
        """
        here = (tokens > 0) & (tokens <= self.largest)
        tokens, positions = tokens[here], positions[here]
        free = [size for size in self._planned if size in self._sizes]
        price = _PRICE * self.largest
        while len(sizes := planned_sizes(tokens, multiple=_MULTIPLE, price=price, free=free)) > _MOST_PLANNED:
            price, free = 2 * price, []  # what is recorded already may be too much by itself
        most = np.zeros(len(sizes), np.int64)
        np.maximum.at(most, np.searchsorted(sizes, tokens), positions)
        needed = zip(sizes, (-(-most // _POSITIONS) * _POSITIONS).tolist(), strict=True)
        before = {size: count for size, count in self._planned.items() if size in self._sizes}
        self._planned = {size: max(count, before.get(size, 0)) for size, count in needed}

    def line(self, count: int) -> int:
        """Tokens of the line that holds `count`."""
        holding = [size for size in self._planned if size >= count]
        if not holding:
            return self._lines.of(count)
        largest = max(holding)
        # recorded first, as a larger one than those before makes all of them again; unless memory is short
        return largest if self._largest < largest and not self._shortages else min(holding)

    def positions(self, count: int, line: int) -> int:
        """Positions that predict, of a line of `line` tokens that has `count`."""
        planned = self._planned.get(line, 0)
        return planned if planned >= count else self._positions.of(count)

    def run(
        self, key: Hashable, body: Body, inputs: Sequence[torch.Tensor], *, kind: Hashable, tokens: int
    ) -> torch.Tensor:
        """`body(inputs)`; equal keys promise equal shapes and a body that differs in `inputs` only.

        Bodies of one `kind` run the same compiled code. The result is valid until the next call.
        """
        recorded = self._recorded.pop(key, None) or self._new(key, body, inputs, kind, tokens)
        if recorded is None:
            return body(inputs)
        self._recorded[key] = recorded
        if len(self._recorded) > _LARGEST_COUNT:
            del self._recorded[next(iter(self._recorded))]
        for own, given in zip(recorded.inputs, inputs, strict=True):
            own.copy_(given)
        recorded.graph.replay()
        return recorded.output

    def _new(
        self, key: Hashable, body: Body, inputs: Sequence[torch.Tensor], kind: Hashable, tokens: int
    ) -> _Recorded | None:
        """A graph for a key that has none; None where the body must run as it is."""
        if kind not in self._warm:
            self._warm.add(kind)
            return None
        if self._failures[key] >= _ATTEMPTS:
            return None
        if tokens > self._largest:
            # the pool's blocks serve smaller graphs too, but no larger ones
            self.forget()
            self._largest = tokens
        try:
            with first_use("recordings"):
                found = attempt(partial(self._record, body, inputs), inputs[0].device)
        except RuntimeError as error:  # nothing has run: what is recorded is not executed
            _log.info("a micro-batch runs without a CUDA graph: %s", error)
            found = None
        if isinstance(found, _Recorded):
            self._sizes.add(tokens)
            return found
        self._failures[key] += 1
        count_broken_off()
        _end_broken_off(inputs[0].device, self._pool)
        self._pool = None
        return None

    def _record(self, body: Body, inputs: Sequence[torch.Tensor]) -> _Recorded:
        own = tuple(each.clone() for each in inputs)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with (
            torch.cuda.stream(
                torch.cuda.current_stream()
            ),  # left as it was even where the recording breaks off
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=_recording_stream(own[0].device),
                # libraries load a kernel when it is first launched, which a stricter mode refuses
                capture_error_mode="relaxed",
            ),
        ):
            with torch.cuda.device(own[0].device):
                if not torch.cuda.is_current_stream_capturing():
                    raise RuntimeError("what runs on its device is not recorded")
            output = body(own)
        return _Recorded(graph, own, output)

    def forget(self) -> bool:
        """Give the graphs' memory back; False where there were none."""
        found = bool(self._recorded)
        self._recorded.clear()
        self._sizes.clear()
        self._largest = 0
        self._pool = None
        torch.cuda.empty_cache()
        return found

    def give_way(self) -> bool:
        """`forget` because memory ran out, and record nothing until `go_on`; False where there was nothing.

        A larger step may not come again, and small ones without graphs would take several times as long; where it
        happens again and again nothing is recorded any more.
        """
        found = self.forget()
        self._shortages += found
        self._waits = True
        self._failures.clear()
        return found

    def go_on(self) -> None:
        """Record again: the step for which the graphs gave way has been taken."""
        self._waits = False


def _end_broken_off(device: torch.device, pool: Any) -> None:
    """Let go of the memory of a recording that CUDA broke off, for which PyTorch goes on to hold it.

    Of any other that has ended, and whose memory went with it, PyTorch says that there is nothing to end.
    """
    if device.type != "cuda" or pool is None:
        return
    with suppress(RuntimeError, AttributeError):  # a version of PyTorch without these: as before
        torch._C._cuda_endAllocateToPool(device.index or 0, pool)
        torch._C._cuda_releasePool(device.index or 0, pool)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """PyTorch's own default is of the device that the process recorded on first; on another nothing is recorded."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
