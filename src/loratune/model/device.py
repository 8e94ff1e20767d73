"""Devices by name, their memory, and memory sizes as people write them."""

import os
import re

import torch

from loratune.errors import InputError, ResourceError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises `InputError` for another name, `ResourceError` if it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}; change --device.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"--device {name} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices; use --device cpu."
        )
    return device


def device_memory(device: torch.device) -> int:
    """Bytes that a process may use: what is free now on a GPU, what is available now on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + int(torch.cuda.memory_reserved(device))
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            facts = dict(line.split(":", 1) for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_memory(text: str) -> int:
    """`24GiB`, `80G`, `512MiB` → bytes (powers of 1024). Raises `InputError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise InputError(
            f"--device-memory must be a size such as 24GiB, got {text!r}; change --device-memory."
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])
