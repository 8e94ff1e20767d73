"""Copies of .gguf files: one process unpacks, and whatever becomes of it the others have a whole copy."""

import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from loratune.model import base
from loratune.model.base import load_model
from loratune.model.copies import drop_copy, find_copy, keep_copy, one_unpacks
from loratune.model.source import Source
from tiny import byte_tokenizer
from tiny_gguf import save_tiny_gguf


def weights_of(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def whole_parts(cache: Path) -> list[str]:
    """What there is of the one model, but for its locks."""
    (folder,) = cache.iterdir()
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def unpack(file: Path, cache: Path, ready: Barrier, said: Connection) -> None:
    """A tokenizer in the place of a model, quicker written; say which parts this process has unpacked."""
    source, unpacked = Source(name="m", folder=file.parent, gguf=file.name), ""
    ready.wait()
    for part in "abcd":
        with one_unpacks(source, cache, part) as found:
            if found is source:
                unpacked += part
                keep_copy(source, cache, part, byte_tokenizer())
        check_whole(source, cache, part)
    said.send(unpacked)


def keep(file: Path, cache: Path, ready: Barrier, said: Connection) -> None:
    """The same where nothing can be locked."""
    source = Source(name="m", folder=file.parent, gguf=file.name)
    ready.wait()
    for part in "abcd":
        keep_copy(source, cache, part, byte_tokenizer())
        check_whole(source, cache, part)
    said.send("")


def stop_half_way(file: Path, cache: Path, said: Connection) -> None:
    """Unpack, and stop for good in the middle of writing."""

    class Half:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_bytes(b"half")
            said.send("half")
            signal.pause()

    source = Source(name="m", folder=file.parent, gguf=file.name)
    with one_unpacks(source, cache, "a"):
        keep_copy(source, cache, "a", Half())


def check_whole(source: Source, cache: Path, part: str) -> None:
    kept = Tokenizer.from_file(str(find_copy(source, cache, part).folder / "tokenizer.json"))
    assert kept.to_str() == byte_tokenizer().backend_tokenizer.to_str()


@pytest.mark.parametrize(("work", "expected"), [(unpack, list("abcd")), (keep, [])])
def test_eight_processes_on_a_cold_cache(
    work: Callable[..., None], expected: list[str], tmp_path: Path
) -> None:
    """One of them unpacks; without locks the first copy stays."""
    file, cache, context = tmp_path / "m.gguf", tmp_path / "cache", get_context("fork")
    file.write_bytes(b"GGUF")
    ready, (heard, said) = context.Barrier(8), context.Pipe(duplex=False)
    children = [context.Process(target=work, args=(file, cache, ready, said)) for _ in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    assert sorted("".join(heard.recv() for _ in children)) == expected
    assert whole_parts(cache) == list("abcd")


def test_kill_9_of_the_one_that_unpacks_leaves_no_half_copy(tmp_path: Path) -> None:
    file, cache, context = tmp_path / "m.gguf", tmp_path / "cache", get_context("fork")
    file.write_bytes(b"GGUF")
    ready, (heard, said) = context.Barrier(2), context.Pipe(duplex=False)
    killed = context.Process(target=stop_half_way, args=(file, cache, said))
    killed.start()
    assert heard.recv() == "half"
    other = context.Process(target=unpack, args=(file, cache, ready, said))
    other.start()
    ready.wait()
    assert not heard.poll(0.3)  # it waits
    assert len(list(cache.glob("*/.a.*.tmp"))) == 1
    killed.kill()
    assert heard.recv() == "abcd"
    other.join()
    assert whole_parts(cache) == list("abcd")


def test_a_model_is_unpacked_once(tmp_path: Path) -> None:
    model = save_tiny_gguf(tmp_path / "m.gguf")
    with patch.object(base, "keep_copy", wraps=keep_copy) as spy:
        for _ in range(2):
            loaded = load_model(
                str(tmp_path / "m.gguf"), dtype="float32", device="cpu", cache=tmp_path / "cache"
            )
            assert torch.equal(weights_of(loaded.model), weights_of(model))
    assert spy.call_count == 1
    assert whole_parts(tmp_path / "cache") == ["float32", "tokenizer"]


class Full:
    """A disk that is full, as tokenizers says it."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(b"half")
        raise Exception("No space left on device (os error 28)")


def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    source = Source(name="m", folder=tmp_path, gguf="m.gguf")
    keep_copy(source, tmp_path / "cache", "tokenizer", Full())
    assert whole_parts(tmp_path / "cache") == []
    assert find_copy(source, tmp_path / "cache", "tokenizer") is source


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    model = save_tiny_gguf(tmp_path / "m.gguf")
    (tmp_path / "file").write_text("")
    loaded = load_model(
        str(tmp_path / "m.gguf"), dtype="float32", device="cpu", cache=tmp_path / "file" / "cache"
    )
    assert torch.equal(weights_of(loaded.model), weights_of(model))


def test_a_copy_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    source = Source(name="m", folder=tmp_path, gguf="m.gguf")
    keep_copy(source, tmp_path / "cache", "tokenizer", byte_tokenizer())
    assert find_copy(source, tmp_path / "cache", "tokenizer") is not source
    drop_copy(source, tmp_path / "cache", "tokenizer")
    assert find_copy(source, tmp_path / "cache", "tokenizer") is source
