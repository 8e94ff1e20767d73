"""Processes that begin with all imports made: forked from one server that has made them, once for many tests.

Torch, transformers and what stands on them take a new interpreter ten seconds of a processor. That a process from
nothing works as well is shown by the tests that start one: of closed descriptors, a full disk, a pool's whole search.
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, TextIO

from loratune.cli.main import entry
from loratune.costs import measuring

_IMPORTED = ["loratune.cli.commands", "loratune.app.tune", "loratune.runners.processes", "matplotlib.figure"]


def warm_context(method: str = "") -> ForkServerContext:
    """In the place of `multiprocessing.get_context`."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


class WarmCommand:
    """`loratune …` in a process of its own, as `subprocess.Popen` would start it, stdout and stderr in pipes. Only its
    calibration is shorter.

    `handlers`: of signals, as whoever starts it has left them; `terminal`: the device in the place of the pipes.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        handlers: Mapping[int, Any] | None = None,
        terminal: str | None = None,
    ) -> None:
        context = warm_context()
        pipes = [context.Pipe(duplex=False) for _ in range(3)]
        (began, _), *written = pipes
        given = (
            [str(word) for word in words],
            {**os.environ, **(environment or {})},
            {signal.SIGINT: signal.default_int_handler, **(handlers or {})},
            [theirs for _, theirs in pipes],
            terminal,
        )
        self._process = context.Process(target=_run, args=given)
        self._process.start()
        for _, theirs in pipes:
            theirs.close()
        self.stdout, self.stderr = (_text(ours) for ours, _ in written)
        began.recv()
        began.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None as long as it runs; negative where a signal ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise TimeoutExpired("loratune", timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it still prints; little enough for the pipes, which are read when it has ended."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _text(pipe: Connection) -> TextIO:
    copy = os.dup(pipe.fileno())
    pipe.close()
    return os.fdopen(copy, encoding="utf-8")


def _run(
    words: list[str],
    environment: dict[str, str],
    handlers: dict[int, Any],
    pipes: list[Connection],
    terminal: str | None,
) -> None:
    gc.freeze()  # as in conftest.py
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    began, *written = pipes
    if terminal is None:
        for number, pipe in enumerate(written, start=1):
            os.dup2(pipe.fileno(), number)
    else:
        device = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
        for number in range(3):
            os.dup2(device, number)
        os.close(device)
    for pipe in written:
        pipe.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["loratune", *words]
    measuring.SECONDS = 0.05
    began.send(None)
    began.close()
    try:
        entry()
    finally:
        atexit._run_exitfuncs()
