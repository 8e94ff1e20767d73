"""Devices by name, their memory, memory sizes as people write them, and the number format of a base model."""

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Literal

import torch

from loratune.errors import InputError, ResourceError

_GROUPS = Path("/sys/fs/cgroup")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`, which becomes the current device.

    Raises `InputError` for another name, `ResourceError` if it is absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(
            f"--device must be auto, cpu, cuda or cuda:N, got {name!r}; give e.g. --device auto."
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"--device {name} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices; use --device cpu."
        )
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)  # kernels of Triton and recorded graphs run on the current one
        _extend_segments()
    return device


def wake(name: str) -> None:
    """Start up a GPU in a thread, while rows are read: its context and its products' library take a second or two.

    What is wrong with it is found where it is used.
    """

    def start() -> None:
        with suppress(Exception):
            place = pick_device(name)
            if place.type == "cuda":
                numbers = torch.ones(16, 16, dtype=torch.bfloat16, device=place)
                (numbers @ numbers).sum().item()

    Thread(target=start, name="wake the device", daemon=True).start()


WORKERS = ("workers",)
"""Stands for the devices of any machine whose workers take trials from the run directory."""


def pick_devices(names: Sequence[str]) -> tuple[str, ...]:
    """The devices of `--devices` as `pick_device` takes them, or `WORKERS`; none for none.

    Raises `InputError` for one that is not here, a GPU that is named twice, and processors beside GPUs.
    """
    count = torch.cuda.device_count()
    if tuple(names) == WORKERS:
        return WORKERS
    if tuple(names) == ("all",):
        if not count:
            raise InputError(
                "--devices all needs CUDA devices, and PyTorch sees none; give --devices cpu,cpu for two processes on "
                "this processor, or leave it out."
            )
        return tuple(f"cuda:{number}" for number in range(count))
    found = tuple(name if name == "cpu" else f"cuda:{int(name.removeprefix('cuda:'))}" for name in names)
    gpus = [name for name in found if name != "cpu"]
    if absent := [name for name in gpus if int(name.removeprefix("cuda:")) >= count]:
        raise InputError(
            f"--devices must name devices of this machine, but PyTorch sees {count} CUDA devices and {absent[0]} is "
            f"none of them; give {_some_devices(count)}."
        )
    if len(set(gpus)) < len(gpus) or (gpus and len(gpus) < len(found)):
        raise InputError(
            f"--devices must be different GPUs, or cpu as often as there are to be processes, got {','.join(names)!r}; "
            f"give {_some_devices(count)}."
        )
    return found


def _some_devices(count: int) -> str:
    """A value of `--devices` that works here."""
    return f"--devices {','.join(map(str, range(count)))}" if count else "--devices cpu,cpu"


def _extend_segments() -> None:
    """Let PyTorch's allocator extend its segments, so that it holds hardly more than its tensors.

    With segments of fixed sizes it held up to 11 % more, depending on what had run before (docs/log.md): more than a
    prediction may be off by. What the user has set for the allocator stays.
    """
    if {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & os.environ.keys():
        return
    _set_allocator("expandable_segments:True")


def _set_allocator(setting: str) -> None:
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (change or torch.cuda.memory._set_allocator_settings)(setting)


@contextmanager
def shareable_segments(device: torch.device) -> Iterator[None]:
    """What is allocated in this block other processes may map: extended segments they may not everywhere."""
    if device.type != "cuda":
        yield
        return
    _set_allocator("expandable_segments:False")
    try:
        yield
    finally:
        _extend_segments()


def device_memory(device: torch.device) -> int:
    """Bytes that this process may hold: what it holds, and what is free now on a GPU, available now on a CPU.

    On a CPU never more than the limit of the container. On a GPU the context is not counted.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + int(torch.cuda.memory_reserved(device))
    held = _status("VmRSS") or 0
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *_container_rooms()]) + held


def _container_rooms() -> list[int]:
    """Bytes left under the memory limits of control groups, versions 2 and 1; none where there is no limit."""
    rooms = []
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            texts = [(_GROUPS / name).read_text().strip() for name in (limit, used)]
        except OSError:
            continue
        if all(text.isdigit() for text in texts):
            rooms.append(max(0, int(texts[0]) - int(texts[1])))
    return rooms


def _status(name: str) -> int | None:
    """A number of bytes from /proc/self/status; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def limit_memory(device: torch.device, size: int | None) -> None:
    """Limit PyTorch's allocator to `size` bytes of a GPU (None: all); a CPU has no such limit.

    What would take more is an out-of-memory error like any other, however much the device has free.
    """
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if size is None else min(1.0, max(0, size) / whole)
        torch.cuda.set_per_process_memory_fraction(share, device.index)  # takes no device without an index


def forget_peak(device: torch.device) -> bool:
    """Begin to measure `peak_memory` afresh; False where the system cannot."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return True
    trim_heap(device)  # as emptying a GPU's cache
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _status("VmHWM") is not None


def trim_heap(device: torch.device) -> None:
    """Return what a CPU's heap keeps of earlier work to the system, where the C library can.

    Some hundredths of a second, and as much again where the memory is taken again.
    """
    if device.type == "cpu":
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)


def peak_memory(device: torch.device) -> int:
    """Most bytes held since the process began or `forget_peak`.

    On a GPU what PyTorch's allocator has held (without the context), on a CPU the resident set.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_of_step(device: torch.device) -> int:
    """`peak_memory`, but on a GPU of tensors alone: what the allocator holds beyond depends on what ran before."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory(device)


def held_memory(device: torch.device) -> int:
    """Bytes held now: by PyTorch's allocator on a GPU (without the context), the resident set on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return _status("VmRSS") or 0


def parse_memory(text: str) -> int:
    """`24GiB`, `80G`, `512MiB` → bytes (powers of 1024). Raises `InputError`, also where the unit is missing."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise InputError(
            f"--device-memory must be a size such as 24GiB, got {text!r}; give e.g. --device-memory 24GiB."
        )
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < _UNITS["M"]:
        raise InputError(
            f"--device-memory must be at least 1MiB, {text!r} is {size} bytes; add the unit, as in 24GiB."
        )
    return size


DType = Literal["auto", "float32", "bfloat16", "float64", "nf4"]

_NATIVE_BFLOAT16 = ("amx_bf16", "avx512_bf16")


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """What is computed in: `auto` is bfloat16 where the device multiplies it natively, float32 elsewhere.

    Layers in 4 bits (`nf4`) are unpacked into what `auto` is.
    """
    if dtype not in ("auto", "nf4"):
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[dtype]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return cpu_dtype(processor_flags())


def cpu_dtype(flags: frozenset[str]) -> torch.dtype:
    """bfloat16 on processors with instructions for it: 8 bits of mantissa, but up to 5 times the speed."""
    return torch.bfloat16 if bfloat16_flags(flags) else torch.float32


def bfloat16_flags(flags: frozenset[str]) -> list[str]:
    """The processor's flags that stand for bfloat16 products."""
    return [flag for flag in _NATIVE_BFLOAT16 if flag in flags]


def processor_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())
