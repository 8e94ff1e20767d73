"""The shapes of a base model and the linear layers that LoRA can adapt, from it or from its configuration."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loratune.errors import ModelError
from loratune.maths.targets import NEW_WEIGHTS, Shape
from loratune.model.architecture import auto_class, check_sizes, is_recurrent, name_body, read_config
from loratune.model.device import DType, pick_device, resolve_dtype
from loratune.model.nf4 import (
    NF4,
    check_source,
    is_doubly_packed,
    is_packed,
    layers_to_pack,
    packed_layers,
    weight_parameters,
)
from loratune.model.quiet import first_sentence, quiet
from loratune.model.recurrent import recurrent_layers
from loratune.model.rows import body_of
from loratune.model.source import locate, read_json
from loratune.values import Classifier, ModelProfile

_ATTENTION = ("attn", "attention")
_REFUSED_BY_PEFT = dict.fromkeys(("falcon_h1", "nemotron_h"), ("out_proj",))
"""Last names of layers, by architecture."""


def adaptable_layers(model: PreTrainedModel) -> tuple[Shape, ...]:
    """Every nn.Linear and Conv1D of the text decoder but the head, in `named_modules` order.

    Without output embeddings (a classifier) all that stands outside of the body is head, and its pooler sees one token
    alone; DeBERTa projects positions, which are no trial's own (`positional_layers`); PEFT refuses Mamba's last layer,
    whose weight kernels read past it. Else the same as PEFT's `all-linear` on dense text models. Of a mixture of
    experts only the attention projections: a token passes few of the experts, whose weights are often no linear
    modules at all.
    Raises `ModelError` where nothing is left.
    """
    head = model.get_output_embeddings()
    composite = model.config.get_text_config() is not model.config
    whole = model.base_model if head is None else model
    inside = {id(module) for module in (model.get_decoder() if composite else whole).modules()}
    left_out = (*positional_layers(model.config), *_REFUSED_BY_PEFT.get(model.config.model_type, ()))
    linears = [
        (name, *_shape(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and id(module) in inside
        and "pooler" not in name.split(".")
        and name.rpartition(".")[2] not in left_out
    ]
    if is_mixture_of_experts(model):
        attention = [shape for shape in linears if any(word in shape[0].lower() for word in _ATTENTION)]
        linears = attention or [shape for shape in linears if "expert" not in shape[0].lower()]
    if not linears:
        raise ModelError(
            f"a base model must have linear layers that LoRA can adapt, {type(model).__name__} has none; "
            f"choose another model."
        )
    return tuple(linears)


def positional_layers(config: PreTrainedConfig) -> tuple[str, ...]:
    """Last names of the layers that see the table of relative positions, in place of tokens or beside them."""
    if config.model_type not in ("deberta", "deberta-v2") or not getattr(config, "relative_attention", False):
        return ()
    if config.model_type == "deberta":
        return "pos_proj", "pos_q_proj"
    shared = ("query_proj", "key_proj") if getattr(config, "share_att_key", False) else ()
    return "pos_key_proj", "pos_query_proj", *shared


def head_parameters(model: PreTrainedModel) -> int:
    """A classifier's parameters outside of its body, and those in it that no checkpoint gave."""
    body = f"{model.base_model_prefix}."
    new: frozenset[str] = getattr(model, NEW_WEIGHTS, frozenset())
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name in new or not name.startswith(body)
    )


def is_mixture_of_experts(model: PreTrainedModel) -> bool:
    """Whether a layer holds several experts: a list of modules named `experts`, or stacked 3-D weights."""
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def expert_parameters(model: PreTrainedModel) -> int:
    """Parameters of all experts, shared ones included, whether they are modules or stacked weights; 0 if dense."""
    if not is_mixture_of_experts(model):
        return 0
    return sum(
        count
        for name, count in weight_parameters(model).items()
        if any("expert" in part and "gate" not in part for part in name.lower().split(".")[:-1])
    )


def _shape(module: nn.Module) -> tuple[int, int]:
    """(in, out); Conv1D keeps its weight transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.get_parameter("weight")
    return int(weight.shape[0]), int(weight.shape[1])


def profile_of(model: PreTrainedModel, name: str, packed: Sequence[str] | None = None) -> ModelProfile:
    """Shapes of a model (its weights may be on the meta device) under the name that the user gave.

    `packed`: layers that will be in 4 bits; None: those that are.
    """
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    if head is not None:
        tables.append(head.weight)
    unique = {id(table): table for table in tables}
    counts = weight_parameters(model)
    in_four_bits = [counts[f"{path}.weight"] for path in (packed_layers(model) if packed is None else packed)]
    plain = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    targets, recurrent = adaptable_layers(model), is_recurrent(model.config, type(model))
    return ModelProfile(
        name=name,
        family=text.model_type,
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        attention_heads=text.num_attention_heads,
        vocabulary=model.get_input_embeddings().weight.shape[0],
        parameters=sum(counts.values()),
        embedding_parameters=sum(table.numel() for table in unique.values()),
        targets=targets,
        intermediate_size=intermediate_size(text),
        experts_per_token=experts_per_token(text),
        expert_parameters=expert_parameters(model),
        head_parameters=0 if head is not None else head_parameters(model),
        outputs=0 if head is not None else int(model.config.num_labels),
        recurrent=recurrent,
        recurrent_layers=recurrent_layers(model.config, plain.dtype, [name for name, _, _ in targets])
        if recurrent
        else (),
        norm_features=norm_features(model),
        cached_features=cached_features(text),
        bytes_per_parameter=float(plain.element_size()),
        packed_parameters=sum(in_four_bits),
        largest_packed=max(in_four_bits, default=0),
        doubly_packed=is_doubly_packed(model.config),
    )


def profile_from_config(
    name: str,
    *,
    dtype: DType = "auto",
    device: str = "auto",
    packs: bool = False,
    classifier: Classifier | None = None,
) -> ModelProfile:
    """The same from `config.json` (or a .gguf header) alone, in seconds and without memory for weights.

    `dtype` and `device` say how the weights would be loaded; `packs`: with linear layers in 4 bits, as `nf4` does,
    and `dtype` what is computed in. `classifier`: with its head. Raises `ModelError`.
    """
    source = locate(name, weights=False)
    check_source(source, NF4 if packs else dtype)
    config = read_config(source, classifies=classifier is not None)
    if classifier is not None:
        if packs or dtype == NF4:
            raise ModelError(
                f"--task classification must have plain weights, got --dtype {NF4}; give bfloat16 or float32."
            )
        for option, value in classifier.options.items():
            setattr(config, option, value)
    if source.gguf is None:
        check_sizes(config, read_json(source.folder / "config.json"), name)
    kind = resolve_dtype(dtype, pick_device(device))
    try:
        with quiet(), torch.device("meta"):
            auto = auto_class(config, classifies=classifier is not None)
            model = name_body(auto.from_config(config, dtype=kind, trust_remote_code=False))
    except Exception as error:
        raise _unbuildable(name, error) from None
    packs = packs or dtype == NF4 or is_packed(config)
    return profile_of(model, name, layers_to_pack(model) if packs else ())


def family_and_size(name: str, *, classifies: bool = False) -> tuple[str, int]:
    """(transformers' `model_type` of its text, parameters) from the configuration of a model whose weights are there.

    Raises `ModelError`.
    """
    config = read_config(locate(name), classifies=classifies)
    try:
        with quiet(), torch.device("meta"):
            model = auto_class(config, classifies=classifies).from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _unbuildable(name, error) from None
    return config.get_text_config().model_type, sum(each.numel() for each in model.parameters())


def _unbuildable(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name} cannot be built from its configuration: {first_sentence(error)}; check config.json."
    )


def intermediate_size(config: PreTrainedConfig) -> int:
    """Width of the MLP that one token passes through: of a mixture, all the experts that it is sent to."""
    for attribute in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"):
        width = getattr(config, attribute, None)
        if isinstance(width, int):
            break
    else:
        width = 4 * config.hidden_size
    chosen = experts_per_token(config)
    if not chosen:
        return width
    expert = getattr(config, "moe_intermediate_size", None) or width
    shared = getattr(config, "shared_expert_intermediate_size", None)
    if shared is None:
        shared = expert * (getattr(config, "n_shared_experts", None) or 0)
    return int(chosen * expert + shared)


def experts_per_token(config: PreTrainedConfig) -> int:
    """How many experts of a mixture a token is sent to; 0 for dense models."""
    return int(getattr(config, "num_experts_per_tok", None) or 0)


def cached_features(config: PreTrainedConfig) -> int:
    """Keys and values of one token, of all layers together, windows not counted."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    each = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * each)


def norm_features(model: PreTrainedModel) -> int:
    """Features per token that the decoder's normalisation layers see; those of single heads count per head."""
    linears = {name: outputs for name, _, outputs in adaptable_layers(model)}
    total = 0
    for name, module in body_of(model).named_modules():
        weight = getattr(module, "weight", None)
        if "norm" not in type(module).__name__.lower() or not isinstance(weight, torch.Tensor):
            continue
        path = name.removesuffix("_norm") + "_proj"
        total += max(
            [weight.numel(), *(size for linear, size in linears.items() if linear.endswith("." + path))]
        )
    return total
