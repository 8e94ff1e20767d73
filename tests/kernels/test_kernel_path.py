"""Which devices run the Triton kernels."""

import pytest
import torch

from loratune.kernels import launch
from loratune.kernels.launch import kernel_path

CUDA = torch.device("cuda")


def on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, hip: str | None = None) -> None:
    """As if there were a device like that, and the package triton."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(launch, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 5), torch.float16, "compute capability 7.5 is below 8.0"),
        ((9, 0), torch.float64, "float64"),
    ],
)
def test_what_cannot_run_them_says_why(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, reason: str
) -> None:
    on(monkeypatch, capability)
    assert kernel_path(CUDA, dtype) == (False, reason)


def test_ampere_and_later_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (8, 6))
    assert kernel_path(CUDA, torch.bfloat16).triton


def test_devices_of_other_makers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """They call themselves CUDA devices of a high capability."""
    on(monkeypatch, (9, 4), hip="6.4")
    assert not kernel_path(CUDA, torch.bfloat16).triton


def test_a_cpu_and_a_machine_without_triton_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_path(torch.device("cpu"), torch.float32) == (False, "a cpu device")
    on(monkeypatch, (9, 0))
    monkeypatch.setattr(launch, "find_spec", lambda _: None)
    assert kernel_path(CUDA, torch.float32) == (False, "the package triton is not installed")
