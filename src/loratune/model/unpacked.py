"""Copies of what a .gguf file holds in transformers' own format, as parsing one takes many seconds."""

import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from time import time
from typing import Protocol

from loratune.model.source import Source

_UNFINISHED = ".unfinished-"
_DAY = 86_400.0
"""Seconds."""


class Saveable(Protocol):
    """A model or a tokenizer."""

    def save_pretrained(self, folder: Path) -> object: ...


def find_copy(source: Source, cache: Path | None, part: str) -> Source:
    """The copy of a part (`tokenizer`, or the weights in a number format) if it exists, else the source."""
    if source.gguf is None or cache is None:
        return source
    folder = _folder(source, cache) / part
    return Source(name=source.name, folder=folder) if folder.is_dir() else source


def keep_copy(source: Source, cache: Path, part: str, content: Saveable) -> None:
    """Write under another name first, so that an interrupted run leaves no half copy.

    Of several processes that do so at once the first one's copy stays. Where nothing can be kept (no room, no
    permission) the next load takes as long as this one.
    """
    folder = _folder(source, cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        unfinished = Path(mkdtemp(dir=folder, prefix=_UNFINISHED))
    except OSError:
        return
    try:
        content.save_pretrained(unfinished)
        unfinished.rename(folder / part)  # fails where another process was faster
    except OSError:
        pass
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def drop_copy(source: Source, cache: Path, part: str) -> None:
    """Forget a copy that cannot be read; the next load makes a new one."""
    shutil.rmtree(_folder(source, cache) / part, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left a day ago or earlier."""
    for old in folder.glob(f"{_UNFINISHED}*"):
        with suppress(FileNotFoundError):  # just finished by its process
            if time() - old.stat().st_mtime > _DAY:
                shutil.rmtree(old, ignore_errors=True)


def _folder(source: Source, cache: Path) -> Path:
    """A folder of its own for every state of the file."""
    path = source.folder.resolve() / str(source.gguf)
    facts = path.stat()
    digest = sha256(f"{path}|{facts.st_size}|{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    return cache / f"{path.stem}-{digest}"
