"""Base models in 4 bits: bitsandbytes' NF4, from a checkpoint in it or made of a plain one while it is read.

Linear layers but the head are held in 4 bits; embeddings, norms and biases in the type that is computed in. What is
asked about a configuration alone needs no bitsandbytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from loratune.errors import ModelError
from loratune.model.source import Source

NF4: Literal["nf4"] = "nf4"
_INSTALL = "pip install 'bitsandbytes>=0.50'"


def check_quantisation(values: dict[str, Any], name: str) -> None:
    """Raise `ModelError` where config.json says that weights are quantised in any way but bitsandbytes' NF4."""
    found = values.get("quantization_config")
    if not found:
        return
    if not isinstance(found, dict):
        found = {}
    method = str(found.get("quant_method", "unknown"))
    if method != "bitsandbytes":
        kind = method
    elif not found.get("load_in_4bit"):
        kind = "bitsandbytes, 8 bits"
    elif found.get("bnb_4bit_quant_type") != NF4:
        kind = f"bitsandbytes, {found.get('bnb_4bit_quant_type', 'fp4')}"
    else:
        return
    raise ModelError(
        f"a quantised base model must be in bitsandbytes' NF4, the weights of {name} are quantised otherwise ({kind}); "
        "give the unquantised checkpoint, with --dtype nf4 where memory is short."
    )


def is_packed(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint, or the model loaded from it, is in 4 bits."""
    return bool(_stored(config))


def is_doubly_packed(config: PreTrainedConfig) -> bool:
    """Whether scales are quantised too, as they are where this file does it."""
    stored = _stored(config)
    return not stored or bool(stored.get("bnb_4bit_use_double_quant"))


def _stored(config: PreTrainedConfig) -> dict[str, Any]:
    """bitsandbytes' part of a configuration; empty where it has none."""
    found = getattr(config, "quantization_config", None) or {}
    values = found if isinstance(found, dict) else found.to_dict()
    return values if values.get("load_in_4bit") else {}


def has_bitsandbytes() -> bool:
    """Whether 4-bit layers can run."""
    return find_spec("bitsandbytes") is not None


def check_source(source: Source, dtype: str) -> None:
    """Raise `ModelError` for a .gguf file that is to be packed."""
    if source.gguf is not None and dtype == NF4:
        raise ModelError(
            f"--dtype nf4 needs a model in safetensors, got the .gguf file {source.name}, which is unpacked when it is "
            "read; give the folder or hub name that it was made of."
        )


def check_packing(source: Source, config: PreTrainedConfig, dtype: str) -> bool:
    """Whether the layers of a model are to be in 4 bits.

    Raises `ModelError` where they cannot be, or are and something else is asked for.
    """
    if is_packed(config) and dtype not in ("auto", NF4):
        raise ModelError(
            f"{source.name} is in 4 bits, so that --dtype must be auto or nf4, got {dtype}; leave --dtype out, or give "
            "the unquantised checkpoint."
        )
    if not is_packed(config) and dtype != NF4:
        return False
    if not has_bitsandbytes():
        raise ModelError(
            f"bitsandbytes must be installed for {source.name} in 4 bits (nf4), and is not; {_INSTALL}, or give "
            "--dtype bfloat16 and an unquantised checkpoint."
        )
    return True


def quantisation(config: PreTrainedConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The argument of `from_pretrained` by which plain weights are packed as they are read; None if packed already."""
    if is_packed(config):
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def layers_to_pack(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the layers of a plain model (on the meta device) that are held in 4 bits once it is loaded."""
    skipped = _stored(model.config).get("llm_int8_skip_modules")
    kept = HfQuantizer.get_modules_to_not_convert(model, skipped, model._keep_in_fp32_modules)
    return tuple(
        name
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept)
    )


def packed_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that are held in 4 bits."""
    return tuple(
        name
        for name, module in model.named_modules()
        if hasattr(getattr(module, "weight", None), "quant_state")
    )


def adopt_layers(model: PreTrainedModel, dtype: torch.dtype, name: str) -> None:
    """Let the 4-bit layers of a loaded model compute in `dtype`, unpacked once for a micro-batch.

    Raises `ModelError` where a weight was no number: it would be one in all weights of its block.
    """
    packed = packed_layers(model)
    if not packed:
        return
    from loratune.model.four_bit import adopt

    for path in packed:
        layer = model.get_submodule(path)
        state = layer.weight.quant_state
        scales = [state.absmax] if state.state2 is None else [state.state2.absmax, state.offset]
        if not all(bool(each.isfinite().all()) for each in scales):
            raise ModelError(
                f"the weights of {name} must be finite numbers, {path}.weight holds NaN or infinity; "
                "download the model again."
            )
        adopt(layer, dtype)


@contextmanager
def as_bitsandbytes_runs(model: nn.Module) -> Iterator[None]:
    """In this block 4-bit layers run bitsandbytes' own forward pass, which a comparison with PEFT is with."""
    layers = [model.get_submodule(path) for path in packed_layers(model)]
    if not layers:
        yield
        return
    from bitsandbytes.nn import Linear4bit

    from loratune.model.four_bit import PackedLinear

    ours = [layer for layer in layers if isinstance(layer, PackedLinear)]
    for layer in ours:
        layer.__class__ = Linear4bit
    try:
        yield
    finally:
        for layer in ours:
            layer.__class__ = PackedLinear


def weight_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters by tensor, tied ones once; of layers in 4 bits as if they were plain."""
    found = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for path in packed_layers(model):
        layer: Any = model.get_submodule(path)
        found[f"{path}.weight"] = layer.in_features * layer.out_features
    return found
