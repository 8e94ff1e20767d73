"""Which of the engine's paths a model and a device take, and why. Decides once, when a model is first used."""

from dataclasses import dataclass

from loratune.kernels.launch import KernelPath, kernel_path
from loratune.model.base import BaseModel
from loratune.model.rows import FlatPath, flat_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """The reference, plain PyTorch on padded rectangles, where nothing faster is known to be right."""

    low_rank: KernelPath
    rows: FlatPath
    compiled: bool
    """Whether the layers are compiled: with flat rows and Triton."""

    def lines(self) -> tuple[str, ...]:
        """One line per choice, for people."""
        low_rank = "Triton kernels" if self.low_rank.triton else "PyTorch, segment by segment"
        rows = "flat, without padding" if self.rows.flat else "padded, sorted by length"
        return (
            f"low-rank products: {low_rank} ({self.low_rank.reason})",
            f"rows: {rows} ({self.rows.reason})",
            f"layers: {'compiled' if self.compiled else 'as transformers runs them'}",
        )


def choose_paths(base: BaseModel, *, longest: int, compiled: bool = True) -> Paths:
    """What is fast and checked on this model and device, for rows of at most `longest` tokens.

    `compiled=False` leaves the layers as they are.
    """
    low_rank = kernel_path(base.device, base.dtype)
    layers = (base.model.get_submodule(name) for name, _, _ in base.profile.targets)
    if len({parameter.dtype for layer in layers for parameter in layer.parameters()}) > 1:
        low_rank = KernelPath(False, "layers of several types of numbers")
    rows = flat_path(base.model, longest=longest)
    works = compiled and low_rank.triton and rows.flat
    return Paths(low_rank=low_rank, rows=rows, compiled=works)


REFERENCE = Paths(low_rank=KernelPath(False, "asked for"), rows=FlatPath(False, "asked for"), compiled=False)
