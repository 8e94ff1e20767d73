"""What a process does to files under one folder: counted, killed at a change, logged, or under a clock that jumps.

Import it first and call `preload()`: the process begins anew with `operations.c` loaded before the C library.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from struct import Struct
from tempfile import mkdtemp

_HEAD = Struct("<cqQQ")


def preload() -> None:
    """Compile `operations.c` (any C compiler called `cc`) and begin this process again with it."""
    if "operations.so" in os.environ.get("LD_PRELOAD", ""):
        return
    library = Path(mkdtemp(prefix="loratune-faults-")) / "operations.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl", "-lpthread"], check=True)
    os.environ |= {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    os.execv(sys.executable, [sys.executable, *sys.argv])


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def watch(folder: Path, *, kill_at: int = 0, log: int = -1) -> None:
    """Count the changes under a folder; end before that one, 0: never; write them to a descriptor, -1: to none."""
    _library().faults_watch(str(folder).encode(), ctypes.c_long(kill_at), log)


def count() -> int:
    """Changes since `watch`."""
    library = _library()
    library.faults_count.restype = ctypes.c_long
    return int(library.faults_count())


def mark(text: str) -> None:
    """A line of the caller's among the changes in the log."""
    _library().faults_mark(text.encode())


def jump(on: bool) -> None:
    """Whether the wall clock is another one at every look; the monotonic one stays."""
    _library().faults_clock(int(on))


@dataclass(frozen=True, slots=True)
class Change:
    """kind: c(reate), w(rite), t(runcate), s(ync), f(older synced), k (a folder), d(elete), r(ename), m(ark)."""

    kind: str
    path: str
    offset: int
    data: bytes


def read(log: Path) -> list[Change]:
    """All changes in the order in which they happened."""
    content, place, found = log.read_bytes(), 0, []
    while place < len(content):
        kind, offset, length, size = _HEAD.unpack_from(content, place)
        place += _HEAD.size
        path = content[place : place + length].decode()
        place += length
        found.append(Change(kind.decode(), path, offset, content[place : place + size]))
        place += size
    return found


class _File:
    def __init__(self) -> None:
        self.durable, self.waiting = b"", list[Callable[[bytearray], None]]()

    def content(self, keep: Callable[[], bool]) -> bytes:
        found = bytearray(self.durable)
        for change in self.waiting:
            if keep():
                change(found)
        return bytes(found)


class _Folder:
    def __init__(self) -> None:
        self.durable: dict[str, _File | _Folder] = {}
        self.now: dict[str, _File | _Folder] = {}

    def sync(self) -> None:
        self.durable = dict(self.now)


class Disk:
    """What a loss of power leaves: of a file what was synced, of a folder the names that were synced in it.

    That is what POSIX promises, and less than common file systems keep. The rest may be there or not.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._top = root, _Folder()

    def apply(self, change: Change) -> None:
        """One change of the log."""
        if change.kind == "m":
            return
        *above, name = Path(change.path).relative_to(self._root).parts or ("",)
        if not name:
            self._top.sync()
            return
        folder = self._folder(above)
        if change.kind == "c":
            folder.now[name] = _File()
        elif change.kind == "k":
            folder.now[name] = _Folder()
        elif change.kind == "d":
            folder.now.pop(name, None)
        elif change.kind == "r":
            *others, target = Path(change.data.decode()).relative_to(self._root).parts
            self._folder(others).now[target] = folder.now.pop(name)
        elif change.kind == "f":
            self._folder([*above, name]).sync()
        else:
            file = folder.now.setdefault(name, _File())
            assert isinstance(file, _File)
            self._change(file, change)

    @staticmethod
    def _change(file: _File, change: Change) -> None:
        if change.kind == "s":
            file.durable, file.waiting = change.data, []
            return

        def write(content: bytearray) -> None:
            if len(content) < change.offset:
                content.extend(bytes(change.offset - len(content)))
            content[change.offset : change.offset + len(change.data)] = change.data

        def truncate(content: bytearray) -> None:
            content[change.offset :] = bytes(max(0, change.offset - len(content)))

        file.waiting.append(write if change.kind == "w" else truncate)

    def _folder(self, parts: list[str]) -> _Folder:
        found = self._top
        for name in parts:
            inner = found.now[name]
            assert isinstance(inner, _Folder)
            found = inner
        return found

    def leave(self, out: Path, random: Random | None) -> None:
        """Write what is left into a new folder; of what was not synced nothing, or with `random` each with one half."""

        def keep() -> bool:
            return random is not None and random.random() < 0.5

        out.mkdir()
        for path, content in self._left(self._top, out, keep):
            path.write_bytes(content)

    def _left(self, folder: _Folder, out: Path, keep: Callable[[], bool]) -> Iterator[tuple[Path, bytes]]:
        names = folder.durable.keys() | folder.now.keys()
        for name in sorted(names):
            entries = folder.now if keep() else folder.durable
            entry = entries.get(name)
            if isinstance(entry, _Folder):
                (out / name).mkdir()
                yield from self._left(entry, out / name, keep)
            elif entry is not None:
                yield out / name, entry.content(keep)
