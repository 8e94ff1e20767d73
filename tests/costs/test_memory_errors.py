"""What is a memory error and what it tells; tensors whose memory is given back meanwhile."""

import pytest
import torch

from failing import failing, out_of_memory
from loratune.engine import memory as parking
from loratune.engine.memory import Failure, Parked, is_memory_error
from loratune.errors import ResourceError
from loratune.model.device import held_memory


def test_what_counts_as_a_memory_error() -> None:
    def wrapped(inner: Exception, outer: Exception) -> Exception:
        try:
            try:
                raise inner
            except type(inner):
                raise outer  # noqa: B904
        except type(outer) as error:
            return error

    assert is_memory_error(out_of_memory())
    assert is_memory_error(MemoryError())
    assert is_memory_error(RuntimeError("CUDA error: out of memory"))
    assert is_memory_error(wrapped(out_of_memory(), RuntimeError("operation failed during capture")))
    assert not is_memory_error(RuntimeError("shape mismatch"))
    assert not is_memory_error(wrapped(out_of_memory(), ResourceError("does not fit")))
    assert not is_memory_error(wrapped(out_of_memory(), ValueError("something else")))


def test_a_failure_tells_what_was_needed() -> None:
    held = held_memory(torch.device("cpu"))
    for text, asked in (
        ("Tried to allocate 3.50 GiB. GPU", 3.5 * 2**30),
        ("you tried to allocate 64 bytes", 64),
    ):
        failure = Failure.of(RuntimeError(text), torch.device("cpu"))
        assert failure.needed - asked == pytest.approx(held, rel=0.2)


def test_parked_tensors_come_back_in_place() -> None:
    """Their memory is given back, views included; they return at any address, or stay away as a whole."""
    first, second, zeros = (torch.randn(50, dtype=torch.float64) for _ in range(3))
    view, before = second[10:20].view(2, 5), torch.tensor([first.tolist(), second.tolist()])
    parked = Parked([first, second], zeros=[zeros])
    assert [each.untyped_storage().nbytes() for each in (first, second, zeros)] == [0, 0, 0]
    with failing(parking, "_resize", 0, after=True), pytest.raises(torch.OutOfMemoryError):
        parked.restore()
    assert first.untyped_storage().nbytes() == 0
    parked.restore()
    assert torch.equal(torch.stack([first, second]).float(), before)
    assert torch.equal(view.flatten(), second[10:20])
    assert not zeros.any()
