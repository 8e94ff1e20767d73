"""`loratune watch`: a live page of runs, from their directories alone; all it writes is the request to stop."""

from __future__ import annotations

import secrets
from pathlib import Path
from threading import Lock
from time import time
from typing import Any

from loratune.app.page_server import PageServer
from loratune.errors import InputError, LoratuneError, Stop
from loratune.files.lock import ask_to_stop, is_asked_to_stop, seems_held
from loratune.files.paths import real_path
from loratune.reporting.watched import HEADS, WatchedRun, claim
from loratune.study.events import FILE, EventTail

PORT = 8474


class RunFolder:
    """A run directory that is read again on every request."""

    def __init__(self, directory: Path) -> None:
        """Raises `InputError` where there is no run of tune in it."""
        if not (directory / FILE).is_file():
            raise InputError(
                f"watch needs the run directory of a tune, with its {FILE}, but {str(directory)!r} has none; "
                "give the --out of a run that has begun."
            )
        self.directory = directory
        self._tail = EventTail(directory)
        self._run = WatchedRun()
        self._end: dict[str, Any] = {}
        self._gate = Lock()

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        with self._gate:
            self._read()
            held = seems_held(self.directory)
            stopping = held and is_asked_to_stop(self.directory)
            state_now = self._run.state(time() if held else 0.0)
            return {
                **state_now,
                "title": self.directory.name,
                "status": self._status(held=held, stopping=stopping),
                "over": not held or self._run.over,
                "stopping": stopping and self._run.searching,
                "can_stop": held and self._run.searching and not stopping,
                **self._ending(held=held),
            }

    def stop(self) -> bool:
        """Ask the search to end with what is known; False where none goes on. Raises `OSError` as files do."""
        with self._gate:
            self._read()
            if not (self._run.searching and seems_held(self.directory)):
                return False
            ask_to_stop(self.directory)
            return True

    @property
    def report(self) -> Path:
        return self.directory / "report.html"

    def _read(self) -> None:
        try:
            other, events = self._tail.new()
        except OSError:  # the folder has gone: what is known stays
            return
        if other:
            self._run, self._end = WatchedRun(), {}
        for when, event in events:
            self._run.take(when, event)

    def _status(self, *, held: bool, stopping: bool) -> str:
        if self._is_finished(held=held):
            return "finished"
        if not held:
            return "ended without a result; continue with tune --resume"
        if stopping and self._run.searching:
            return "stopping when the running trials reach their next evaluation"
        return "running"

    def _is_finished(self, *, held: bool) -> bool:
        """By its events or, where they were lost, by the answer, which a run writes last and takes away to go on."""
        return self._run.over or (not held and (self.directory / "result.json").is_file())

    def _ending(self, *, held: bool) -> dict[str, Any]:
        """The verdict of a finished run, from its study; nothing before, and where it cannot be read."""
        if not self._is_finished(held=held):
            self._end = {}
        elif not self._end:
            self._end = _verdict(self.directory)
        return self._end or {"verdict": [], "details": "", "report": False}


def _verdict(directory: Path) -> dict[str, Any]:
    from loratune.app.report import facts_of  # reads the study, which takes seconds to import
    from loratune.reporting.answer import exit_sentence, verdict
    from loratune.reporting.takeaways import cost_sentence
    from loratune.reporting.wording import states, sureness

    report = (directory / "report.html").is_file()
    try:
        facts = facts_of(directory)
    except LoratuneError as error:
        return {"verdict": [], "details": str(error), "report": report}
    how_sure = sureness(facts)
    details = f"{how_sure[:1].upper()}{how_sure[1:]} {cost_sentence(facts)} Exit code {exit_sentence(facts)}"
    return {
        "verdict": verdict(facts),
        "details": details,
        "report": report,
        "evidence": [claim(state, each) for state, each in states(facts)],
    }


def watch(directories: list[Path], port: int = PORT) -> PageServer:
    """A server on loopback that is to be served; its `address` is the page's, key included.

    Raises `InputError` for a directory without a run, and for a port that is taken.
    """
    folders = list(dict.fromkeys(real_path(each) for each in directories))
    runs = [RunFolder(folder) for folder in folders]
    if not 0 <= port < 2**16:
        raise InputError(
            f"--port must be 0 (any that is free) to 65535, got {port}; give for example {PORT}."
        )
    try:
        return PageServer(runs, HEADS, port=port, token=secrets.token_urlsafe(24))
    except OSError as error:
        raise InputError(
            f"--port must be free on this machine, but {port} is not ({error.strerror}); "
            "give another, or 0 for any that is free."
        ) from None


def watch_command(directories: list[Path], port: int) -> None:
    """Serve until Ctrl-C, which ends the page and no run."""
    with watch(directories, port) as server:
        print(f"Live page: {server.address}", flush=True)
        print(
            "Only this machine can open it, with the whole address. Ctrl-C ends the page, not the run.",
            flush=True,
        )
        try:
            server.serve_forever()
        except Stop:
            raise
        except KeyboardInterrupt:
            return
