"""Which number format a base model is loaded in."""

from pathlib import Path
from typing import Literal

import torch

DType = Literal["auto", "float32", "bfloat16", "float64"]

_NATIVE_BFLOAT16 = ("amx_bf16", "avx512_bf16")


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, float32 elsewhere."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[dtype]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return cpu_dtype(processor_flags())


def cpu_dtype(flags: frozenset[str]) -> torch.dtype:
    """bfloat16 on processors with instructions for it: 8 bits of mantissa, but up to 5 times the speed."""
    return torch.bfloat16 if bfloat16_flags(flags) else torch.float32


def bfloat16_flags(flags: frozenset[str]) -> list[str]:
    """Those of a processor's flags that stand for bfloat16 products."""
    return [flag for flag in _NATIVE_BFLOAT16 if flag in flags]


def processor_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())
