"""DoRA: each output of an adapted layer keeps a trained magnitude, whatever the length of its row of weights.

With W the base's weights [O, D] and m the magnitudes [O] a layer gives bias + m / ‖W + s·B·A‖ · ((W + s·B·A) x), the
norm by rows. As in PEFT the norm counts as a constant where gradients are taken. Plain PyTorch only.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Magnitude(NamedTuple):
    """One module's, of one adapter."""

    factor: torch.Tensor
    """[O] m / ‖W + s·B·A‖."""
    norm: torch.Tensor
    """[O]"""
    bias: torch.Tensor | None
    """[O] the base layer's, which is not scaled."""
    gradient: torch.Tensor | None
    """[O] where the gradient of m is collected."""

    def apply(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """y [n, O] of the base with its bias becomes the layer's; returns its directed part [n, O], not yet scaled.

        `update` [n, O] is s·B·A x. Rounded once to the base's type.
        """
        directed = update + y
        if self.bias is not None:
            directed -= self.bias
        y.copy_(directed * self.factor if self.bias is None else directed * self.factor + self.bias)
        return directed

    def backward(self, grad_y: torch.Tensor, directed: torch.Tensor) -> torch.Tensor:
        """Gradient of the directed part [n, O]; that of m is added to its buffer."""
        assert self.gradient is not None
        self.gradient.add_((grad_y * directed).sum(0) / self.norm)
        return grad_y * self.factor


def weight_of(module: nn.Module) -> torch.Tensor:
    """[O, D] a view of a layer's weights."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()


def initial_magnitude(module: nn.Module) -> torch.Tensor:
    """[O] with which training begins, B being zero: lengths of the rows, in the base's type as PEFT has them."""
    length: torch.Tensor = torch.linalg.vector_norm(weight_of(module), dim=1)
    return length


def row_norms(module: nn.Module, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """[O] ‖W + s·B·A‖ by rows in the adapter's type, without that sum: its square is a quadratic form of B's rows."""
    weight = weight_of(module)
    square: torch.Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=a.dtype).square()
    across = 2 * (weight.to(a.dtype) @ a.T) + scaling * (b @ (a @ a.T))
    square += scaling * (across * b).sum(1)
    return square.clamp(min=0).sqrt()
