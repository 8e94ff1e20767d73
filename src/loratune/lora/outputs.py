"""The last layer of a classifier's head, which gives its number; and how it gives it in another unit."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from loratune.errors import ModelError


def has_bias(model: PreTrainedModel) -> bool:
    """Whether that layer can add a constant."""
    return model.get_submodule(output_layer(model)).bias is not None


def output_layer(model: PreTrainedModel) -> str:
    """Its name: the last linear layer outside of the body that has an output for each answer."""
    body = f"{model.base_model_prefix}."
    found: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == model.config.num_labels
        and not name.startswith(body)
    ]
    if not found:
        raise ModelError(
            f"a classifier must end in a linear layer, {type(model).__name__} does not; choose another model."
        )
    return found[-1]


def in_own_unit(
    tensors: Mapping[str, torch.Tensor], layer: str, centre: float, scale: float
) -> dict[str, torch.Tensor]:
    """An adapter's tensors by name, whose head gives centre + scale · number where that of `tensors` gives number.

    `layer`: as `output_layer` names it.
    """
    found = dict(tensors)
    for name, value in tensors.items():
        if name.endswith(f".{layer}.weight"):
            found[name] = value * scale
        elif name.endswith(f".{layer}.bias"):
            found[name] = value * scale + centre
    return found
