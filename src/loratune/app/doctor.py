"""What this machine offers: versions, device, memory, processor features."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from json import dumps
from typing import Any

import torch
from rich.table import Table

import loratune
from loratune.costs.threads import cores, is_shared, load_per_core
from loratune.kernels.launch import kernel_path
from loratune.model.device import bfloat16_flags, device_memory, pick_device, processor_flags, resolve_dtype
from loratune.reporting.screen import Screen

_PACKAGES = ("torch", "transformers", "peft", "datasets", "optuna", "safetensors", "matplotlib", "gguf")


def doctor() -> dict[str, Any]:
    """Facts by name: versions, device, memory in bytes, processor features, engine path."""
    return {
        "loratune": loratune.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_per_core": round(load_per_core(), 2),
        "warnings": _warnings(),
        "processor_bf16": bfloat16_flags(processor_flags()),
        "engine_path": _engine_path(),
    }


def _warnings() -> list[str]:
    """What would make a search slower than it has to be."""
    if not is_shared():
        return []
    threads, there = torch.get_num_threads(), cores()
    if there < threads:
        return [
            f"PyTorch would run {threads} threads where this process may use {there:g} cores; tune measures how many "
            f"are fastest, OMP_NUM_THREADS={max(1, int(there))} sets it for every command."
        ]
    return [
        f"Other programs use this processor ({load_per_core():.1f} programs a core in the last minute), so searches "
        "take longer than they would alone; tune measures how many threads are fastest."
    ]


def _engine_path() -> str:
    """How packs run on the device that `auto` picks, and why; rows and layers also depend on the model."""
    device = pick_device("auto")
    path = kernel_path(device, resolve_dtype("auto", device))
    fast = "Triton kernels for adapters and attention, compiled layers, CUDA graphs"
    return (
        f"{fast if path.triton else 'plain PyTorch'} ({path.reason}); rows in one line without padding where the model "
        "allows it (`loratune selfcheck --model M` says)"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    found = [{"name": "cpu", "memory_bytes": device_memory(torch.device("cpu"))}]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": f"cuda:{index} {facts.name}",
                "memory_bytes": facts.total_memory,
                "capability": f"{facts.major}.{facts.minor}",
                "bf16": torch.cuda.is_bf16_supported(),
            }
        )
    return found


def doctor_command(*, as_json: bool) -> None:
    """Print `doctor()` as a table or as JSON."""
    facts = doctor()
    if as_json:
        print(dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if name == "packages":
            value = ", ".join(f"{k} {v or 'not installed'}" for k, v in value.items())
        elif name == "devices":
            value = "\n".join(f"{d['name']}, {d['memory_bytes'] / 2**30:.1f} GiB" for d in value)
        elif isinstance(value, list):
            value = "\n".join(value) if name == "warnings" else ", ".join(value)
            value = value or "none"
        table.add_row(name, str(value))
    Screen().print(table)
