"""Which devices run our Triton kernels, and launching them with little work on the host.

Triton looks at every argument of every launch to find the right compiled kernel (27 us measured); here the
kernel is remembered by what can change it, and launched by its handle (10 us). Knows no kernel in particular.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from loratune.kernels.first_use import first_use


class KernelPath(NamedTuple):
    """Whether a device runs the kernels, and why (not)."""

    triton: bool
    reason: str


def kernel_path(device: torch.device, dtype: torch.dtype) -> KernelPath:
    """Triton on CUDA devices from compute capability 8.0 on, in every type but float64; else PyTorch."""
    if device.type != "cuda":
        return KernelPath(False, f"a {device.type} device")
    if torch.version.hip is not None:  # less shared memory, other instructions: nobody has tried
        return KernelPath(False, "ROCm, on which the kernels have not been tried")
    if find_spec("triton") is None:
        return KernelPath(False, "the package triton is not installed")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return KernelPath(False, f"compute capability {major}.{minor} is below 8.0")
    if dtype == torch.float64:
        return KernelPath(False, "float64")
    return KernelPath(True, f"compute capability {major}.{minor}")


_MUCH_SHARED_MEMORY = 160 * 2**10


@cache
def much_shared_memory(device: torch.device) -> bool:
    """Whether a multiprocessor has as much of it as an A100's; consumers' devices have 100 KiB."""
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_multiprocessor", 0)) >= _MUCH_SHARED_MEMORY


_handles: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[torch.Tensor | int, ...],
    **constants: Any,
) -> None:
    """`kernel[grid](*arguments, **constants)`; tensors must begin at multiples of 16 bytes."""
    key = (
        kernel.fn, *constants.values(),
        *(a if isinstance(a, int) else (a.dtype, a.device.index) for a in arguments),
    )  # fmt: skip
    handle = _handles.get(key)
    if handle is None:
        with first_use("kernels"):
            handle = kernel[grid](*arguments, **constants)
        _handles[key] = handle if _launchable(handle) else kernel
    elif handle is kernel:
        kernel[grid](*arguments, **constants)
    else:
        ordered = (constants[name] for name in kernel.arg_names[len(arguments) :])
        handle[(*grid, 1, 1)[:3]](*arguments, *ordered)


def _launchable(handle: Any) -> bool:
    """Whether this Triton takes a compiled kernel's arguments with its constants (3.3 and later)."""
    import triton

    major, minor = (int(part) for part in triton.__version__.split(".")[:2])
    return hasattr(handle, "function") and (major, minor) >= (3, 3)
