"""Copies of what was read from a .gguf file, as transformers saves it, so that it is unpacked once.

Several processes may want the same copy at once: one unpacks, the others wait for what it keeps.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from loratune.files.write import make_folder, new_folder
from loratune.model.source import Source

_PATIENCE = 1800.0
"""Seconds to wait for a process that unpacks; then it may hang, and this one unpacks for itself."""


class Saveable(Protocol):
    """A model or a tokenizer."""

    def save_pretrained(self, folder: Path) -> object: ...


@contextmanager
def one_unpacks(source: Source, cache: Path | None, part: str) -> Iterator[Source]:
    """`find_copy`, where a file without a copy of this part is given to one process at a time.

    To be held until `keep_copy` is done. It lets go however the process ends; where nothing can be locked (no
    permission, a file system without locks) each process unpacks.
    """
    found = find_copy(source, cache, part)
    if found.gguf is None or cache is None:
        yield found
        return
    folder = _folder(source, cache)
    lock = FileLock(folder / f".{part}.lock")
    with suppress(OSError, NotImplementedError):
        make_folder(folder)
        lock.acquire(timeout=_PATIENCE)
    try:
        found = find_copy(source, cache, part)
        if lock.is_locked and found.gguf is not None:
            _remove_unfinished(folder, part)
        if found.gguf is None:
            lock.release()
        yield found
    finally:
        lock.release()


def find_copy(source: Source, cache: Path | None, part: str) -> Source:
    """The copy of a part (`tokenizer`, or the weights in a number format) if it exists, else the source."""
    if source.gguf is None or cache is None:
        return source
    folder = _folder(source, cache) / part
    return Source(name=source.name, folder=folder) if folder.is_dir() else source


def keep_copy(source: Source, cache: Path, part: str, content: Saveable) -> None:
    """Save a part; whoever is interrupted leaves no half copy.

    If several processes do so at once, the first one's copy stays. Where nothing can be kept (no room, no
    permission) the next load takes as long as this one.
    """
    # A full disk is an error of its own kind to each of the libraries that write.
    with suppress(Exception), new_folder(_folder(source, cache) / part) as unfinished:
        content.save_pretrained(unfinished)


def drop_copy(source: Source, cache: Path, part: str) -> None:
    """Forget a copy that cannot be read; the next load makes a new one."""
    shutil.rmtree(_folder(source, cache) / part, ignore_errors=True)


def _remove_unfinished(folder: Path, part: str) -> None:
    """What killed processes left, as nobody else is at this part."""
    for left in folder.glob(f".{part}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _folder(source: Source, cache: Path) -> Path:
    """A folder of its own for every state of the file."""
    path = source.folder.resolve() / str(source.gguf)
    facts = path.stat()
    digest = sha256(f"{path}|{facts.st_size}|{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    return cache / f"{path.stem}-{digest}"
