"""The linear layers of a model that LoRA can adapt. Knows modules, not adapters."""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loratune.errors import ModelError
from loratune.maths.targets import Shape

_ATTENTION = ("attn", "attention")


def adaptable_layers(model: PreTrainedModel) -> tuple[Shape, ...]:
    """Every nn.Linear and Conv1D of the text decoder but the head, in `named_modules` order.

    The same as PEFT's `all-linear` on dense text models. Of a mixture of experts only the attention
    projections: a token passes few of the experts, whose weights are often no linear modules at all.
    Raises `ModelError` where nothing is left.
    """
    head = model.get_output_embeddings()
    composite = model.config.get_text_config() is not model.config
    inside = {id(module) for module in (model.get_decoder() if composite else model).modules()}
    linears = [
        (name, *_shape(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and id(module) in inside
    ]
    if is_mixture_of_experts(model):
        linears = [shape for shape in linears if any(word in shape[0].lower() for word in _ATTENTION)]
    if not linears:
        raise ModelError(
            f"a base model must have linear layers that LoRA can adapt, {type(model).__name__} has none; "
            f"choose another model."
        )
    return tuple(linears)


def is_mixture_of_experts(model: PreTrainedModel) -> bool:
    """Whether a layer holds several experts: a list of modules named `experts`, or stacked 3-D weights."""
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def expert_parameters(model: PreTrainedModel) -> int:
    """Parameters of all experts, shared ones included, whether they are modules or stacked weights; 0 if dense."""
    if not is_mixture_of_experts(model):
        return 0
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if any("expert" in part and "gate" not in part for part in name.lower().split(".")[:-1])
    )


def _shape(module: nn.Module) -> tuple[int, int]:
    """(in, out); Conv1D keeps its weight transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.get_parameter("weight")
    return int(weight.shape[0]), int(weight.shape[1])
