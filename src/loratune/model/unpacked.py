"""Copies of what a .gguf file holds in transformers' own format, as parsing one takes many seconds."""

import shutil
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

from loratune.model.source import Source


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
    """Write under another name first, so that an interrupted run leaves no half copy."""
    folder = _folder(source, cache)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(dir=folder))
    try:
        content.save_pretrained(unfinished)
        unfinished.rename(folder / part)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _folder(source: Source, cache: Path) -> Path:
    """A folder of its own for every state of the file."""
    path = source.folder.resolve() / str(source.gguf)
    facts = path.stat()
    digest = sha256(f"{path}|{facts.st_size}|{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    return cache / f"{path.stem}-{digest}"
