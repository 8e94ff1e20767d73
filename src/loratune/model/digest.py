"""Whether a base model is still the one that a study was started with: digests of its files. Loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from loratune.files.read_json import parse_json
from loratune.model.source import WEIGHTS_INDEX, Source

_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*",
    "*.model",
    "*.jinja",
    "chat_template*",
    "additional_chat_templates/*",
)
"""Files that decide what tokens a row becomes; a chat template may stand in the tokenizer's or in its own."""
_BLOCK = 16 * 1024
_STRIDE = 16 * 2**20
"""Distance of the blocks that are read within a large tensor."""
_HEADER = 32 * 2**20
"""Longest header that is read whole; of a .gguf file it holds the vocabulary."""
_PIECE = 2**22


def tokenizer_digest(source: Source) -> str:
    """16 hex digits over all files of the tokenizer and its chat templates; a .gguf file has its own in its header."""
    whole = blake2b(digest_size=8)
    if source.gguf is not None:
        with (source.folder / source.gguf).open("rb") as file:
            whole.update(file.read(_HEADER))
        return whole.hexdigest()
    found = {path for pattern in _TOKENIZER for path in source.folder.glob(pattern) if path.is_file()}
    for path in sorted(found):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(source.folder).as_posix()} {len(content)} ".encode())
        whole.update(content)
    return whole.hexdigest()


def weights_digest(source: Source, *, every_byte: bool = False) -> str:
    """16 hex digits over names, sizes and headers of the weight files and a block of every tensor, large ones several.

    Some seconds for the largest models; `every_byte` reads all of them, about a second for each GB.
    """
    whole = blake2b(digest_size=8)
    for path in weight_files(source):
        with path.open("rb") as file:
            size = path.stat().st_size
            whole.update(f"{path.name} {size} ".encode())
            pieces = _all(file) if every_byte else _sample(file, size)
            for piece in pieces:
                whole.update(piece)
    return whole.hexdigest()


def weights_times(source: Source) -> dict[str, int]:
    """When each weight file was last written, in nanoseconds of its file system."""
    return {path.name: path.stat().st_mtime_ns for path in weight_files(source)}


def weight_files(source: Source) -> list[Path]:
    """Files in the order of their names, the index of several first."""
    if source.gguf is not None:
        return [source.folder / source.gguf]
    index = source.folder / WEIGHTS_INDEX
    return [*([index] if index.is_file() else []), *sorted(source.folder.glob("*.safetensors"))]


def _all(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _sample(file: BinaryIO, size: int) -> Iterator[bytes]:
    header = _header_length(file, size)
    file.seek(0)
    content = file.read(header)
    yield content
    tensors = {place for place in _tensors(content) if header <= place < size}
    for place in sorted({*range(header, size, _STRIDE), *tensors, max(header, size - _BLOCK)}):
        file.seek(place)
        yield file.read(_BLOCK)


def _header_length(file: BinaryIO, size: int) -> int:
    """Length of a safetensors file's header, which its first 8 bytes give."""
    length = 8 + int.from_bytes(file.read(8), "little")
    return length if length <= _HEADER else min(size, _HEADER)


def _tensors(header: bytes) -> Iterable[int]:
    """Where the tensors of a safetensors file begin; none where this is no such header."""
    try:
        entries = parse_json(header[8:])
        return [
            len(header) + int(each["data_offsets"][0])
            for name, each in entries.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return []
