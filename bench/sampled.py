"""A command of loratune with its main thread sampled: where its seconds go, and what PyTorch's caches had.

    python bench/sampled.py OUT.txt tune --model M --data D --out RUN

Samples every 10 ms from a thread, which costs a few per cent. Writes OUT.txt when the command ends: the tree of frames
that took at least `_SHOWN` seconds (loratune's own, and those of others where time is spent), the counters of
torch.compile, and the seconds of its parts.
"""

import os
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, sleep
from types import FrameType

_EVERY = 0.01
_SHOWN = 0.25
_DEPTH = 40
_KEPT = ("loratune", "_dynamo", "_inductor", "_functorch", "triton", "optuna", "matplotlib", "sqlalchemy")


def _name(frame: FrameType) -> str:
    code = frame.f_code
    path = code.co_filename.split("site-packages/")[-1].split("/src/")[-1]
    if "torchinductor" in path:
        path = "generated"
    return f"{code.co_qualname}  {path}:{code.co_firstlineno}"


def _kept(frame: FrameType) -> bool:
    """Whether a frame tells something: our own, and what compiles, records or waits."""
    path = frame.f_code.co_filename
    return any(part in path for part in _KEPT)


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    """Kept frames, outermost first, and the innermost whatever it is; frames one below another of a library once."""
    found: list[str] = []
    innermost = frame
    while frame is not None:
        if frame is innermost or _kept(frame):
            found.append(_name(frame))
        frame = frame.f_back
    found.reverse()
    short = [
        each
        for place, each in enumerate(found)
        if "loratune" in each or place == len(found) - 1 or place % 4 == 0
    ]
    return tuple(short[:_DEPTH])


class Sampler:
    """Seconds of the main thread by stack."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], float] = defaultdict(float)
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last = perf_counter()
        while not self._ended.is_set():
            sleep(_EVERY)
            now = perf_counter()
            stack = _stack(sys._current_frames().get(self._main or 0))
            self._seconds[stack] += now - last
            last = now

    def end(self) -> str:
        """The tree, as text."""
        self._ended.set()
        self._thread.join()
        totals: dict[tuple[str, ...], float] = defaultdict(float)
        for stack, seconds in self._seconds.items():
            for depth in range(len(stack)):
                totals[stack[: depth + 1]] += seconds
        shown = sorted(
            (stack for stack, seconds in totals.items() if seconds >= _SHOWN), key=lambda s: _order(s, totals)
        )
        return "\n".join(f"{totals[stack]:8.2f} {' ' * len(stack)}{stack[-1]}" for stack in shown)


def _order(stack: tuple[str, ...], totals: Mapping[tuple[str, ...], float]) -> list[tuple[float, str]]:
    return [(-totals[stack[: depth + 1]], stack[depth]) for depth in range(len(stack))]


def _compiling() -> str:
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return "nothing was compiled"
    counters = {name: dict(found) for name, found in utils.counters.items()}
    spent = {name: round(sum(each), 2) for name, each in utils.compilation_time_metrics.items()}
    times = {name: len(each) for name, each in utils.compilation_time_metrics.items()}
    longest = sorted(spent, key=lambda name: -spent[name])[:30]
    return "\n".join(
        [*(f"{name}: {found}" for name, found in counters.items())]
        + [f"{spent[name]:8.2f} s {times[name]:5} x {name}" for name in longest]
    )


def main() -> None:
    out, sys.argv = Path(sys.argv[1]), ["loratune", *sys.argv[2:]]
    sampler = Sampler()
    from loratune.cli.main import main as command

    code: object = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code
    out.write_text(f"{sampler.end()}\n\n{_compiling()}\n", encoding="utf-8")
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)  # as `cli.main.entry` ends


if __name__ == "__main__":
    main()
