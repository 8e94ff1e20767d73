"""What the layers of a hybrid keep that pass a state from token to token: counted by running them without numbers.

Their arithmetic differs by architecture, so that no formula of shapes would do. On the meta device a layer runs in
milliseconds and holds nothing; what autograd would keep for its backward pass is counted. That is of PyTorch's own
operations: with kernels of their own (mamba_ssm, flash-linear-attention) they keep less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from loratune.model.architecture import auto_class, name_body
from loratune.model.quiet import quiet

_TOKENS = 256
"""Tokens of the row that is run: some layers work in chunks of 64, others keep a state a row besides."""


def recurrent_layers(
    config: PreTrainedConfig, dtype: torch.dtype, adapted: Iterable[str]
) -> tuple[tuple[str, float], ...]:
    """(full name, bytes kept of a token) of the layers that mix tokens by a state or a convolution.

    A layer before the first adapted one keeps nothing, as no gradient reaches it. Empty where one of them cannot be run
    so: an architecture whose layers want more than the hidden states.

    Args:
        adapted: full names of adapted linear layers, whose inputs are kept too.
    """
    try:
        with torch.device("meta"), quiet():
            model = name_body(auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False))
    except Exception:  # whatever an architecture raises, its weights may be there already
        return ()
    model.requires_grad_(False).eval()
    names = set(adapted)
    for name in names:
        model.get_submodule(name).get_parameter("weight").requires_grad_(True)
    order = [name for name, _ in model.named_modules()]
    first = min(order.index(name) for name in names)
    inner = {id(part) for part in model.get_decoder().modules() if isinstance(part, nn.Conv1d)}
    mixers = [name.rpartition(".")[0] for name, part in model.named_modules() if id(part) in inner]
    found: list[tuple[str, float]] = []
    of_kind: dict[tuple[Any, ...], int] = {}  # most layers are alike, and some take a step a token
    for name in mixers:
        inside = any(other.startswith(f"{name}.") for other in names)
        if order.index(name) < first and not inside:
            continue
        try:
            layer = model.get_submodule(name)
            kind = (
                type(layer),
                *((own, each.shape, each.requires_grad) for own, each in layer.named_parameters()),
            )
            if kind not in of_kind:
                of_kind[kind] = _kept(layer, config.get_text_config().hidden_size)
        except (RuntimeError, TypeError, NotImplementedError):
            return ()
        found.append((name, of_kind[kind] / _TOKENS))
    return tuple(found)


def _kept(layer: nn.Module, hidden_size: int) -> int:
    """Bytes that autograd keeps of a row of `_TOKENS` tokens, weights left out."""
    weights = {tensor.untyped_storage()._cdata for tensor in [*layer.parameters(), *layer.buffers()]}
    kept: dict[int, int] = {}
    alive: list[torch.UntypedStorage] = []  # or another storage would get its number

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    dtype = next(layer.parameters()).dtype
    row = torch.empty(1, _TOKENS, hidden_size, device="meta", dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(row)
    return sum(kept.values())
