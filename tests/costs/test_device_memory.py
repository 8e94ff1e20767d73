"""What a process holds on a CPU, as the system sees it: freed memory that the heap keeps, and peaks measured anew."""

import ctypes

import pytest
import torch

from loratune.model.device import forget_peak, held_memory, peak_memory, trim_heap

CPU = torch.device("cpu")
MIB = 2**20
pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the heap of the GNU C library only"
)


def riddled_heap(blocks: int = 200) -> list[torch.Tensor]:
    """Half of many blocks freed, the others between them kept: the heap keeps the holes."""
    torch.ones(31 * MIB, dtype=torch.uint8)  # freed: blocks up to this size come from the heap from now on
    taken = [torch.ones(MIB, dtype=torch.uint8) for _ in range(2 * blocks)]
    return taken[::2]


def test_holes_of_the_heap_go_back() -> None:
    kept = riddled_heap()
    held = held_memory(CPU)
    trim_heap(CPU)
    assert held - held_memory(CPU) > 150 * MIB
    assert all(bool(each.all()) for each in kept), "nothing in use has gone"


def test_a_peak_is_measured_anew() -> None:
    large = torch.ones(300 * MIB, dtype=torch.uint8)
    assert peak_memory(CPU) >= large.numel()
    before = peak_memory(CPU)
    del large
    if not forget_peak(CPU):
        pytest.skip("this system does not forget peaks")
    forgotten = peak_memory(CPU)
    assert forgotten < before - 250 * MIB
    another = torch.ones(100 * MIB, dtype=torch.uint8)
    assert peak_memory(CPU) > forgotten + 0.9 * another.numel()
