"""Whether transformers can build a model and loratune can train on it, decided before weights are read."""

from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from loratune.errors import ModelError
from loratune.model.nf4 import check_quantisation, is_packed
from loratune.model.quiet import first_sentence, quiet
from loratune.model.source import Source, read_json

_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 10_000),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner", "head_dim"), 2**24
    ),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 2**16),
    "vocab_size": 2**28,
    "max_position_embeddings": 2**40,
}
"""Sizes in a configuration, with the largest value that is believed."""
_NEEDED = {
    "vocab_size": (),
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size"),
}
"""What a memory model must know, with other names of it."""
_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "data2vec-text",
    "roberta-prelayernorm",
)
"""Architectures whose positions begin after the padding's number: they have fewer places than their table."""
_RECURRENT = frozenset({"linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding"})
"""Recurrent kinds of layers, by transformers' names."""
_DEEPEST = 8


def read_config(source: Source, *, classifies: bool = False) -> PreTrainedConfig:
    """The configuration of a model that LoRA can be trained on: a causal language model, or with `classifies` one
    with a class for sequences.

    Raises `ModelError` for code of the model's own, unknown architectures, checkpoints
    quantised otherwise than in NF4, encoders where their task is not named, sequence-to-sequence models, and models
    without attention.
    """
    if source.gguf is None:
        _check_raw(read_json(source.folder / "config.json"), source.name)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source.folder, **source.arguments)
        if classifies:
            _check_classifier(config, source)
        else:
            _check_kind(config, source.name)
        longest_row(config)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the configuration of {source.name} cannot be read: {first_sentence(error)}; "
            f"check the file or choose another model."
        ) from None
    return config


def check_sizes(config: PreTrainedConfig, values: dict[str, Any], name: str) -> None:
    """Raise `ModelError` where config.json (`values`) leaves a size to its architecture's default.

    Shapes that come from it alone would be those of another model. Parts of it are written without what is a default.
    """
    if config.get_text_config() is not config:
        return
    usual = type(config)()
    names = config.attribute_map
    missing = []
    for size, others in _NEEDED.items():
        given = any(values.get(each) is not None for each in (size, names.get(size, size), *others))
        if (
            not given
            and isinstance(getattr(config, size, None), int)
            and getattr(config, size) == getattr(usual, size)
        ):
            missing.append(size)
    if missing:
        raise ModelError(
            f"config.json of {name} must have the model's sizes, but lacks {', '.join(missing)}; download it again."
        )


def longest_row(config: PreTrainedConfig) -> int | None:
    """The longest row in tokens that a model takes, of any trial beside any other; None where it sets no limit.

    Where the angles of all rows depend on the longest one in a forward pass (rope type `longrope`), the length up to
    which they are the same: beyond it one trial's rows would change another's results.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    limits = [getattr(text, "max_position_embeddings", None)]
    kinds = [part for part in rope.values() if isinstance(part, dict)]  # of layers, where they differ
    for each in (rope, *kinds):
        if each.get("rope_type") == "longrope":
            limits.append(each.get("original_max_position_embeddings"))
    longest = min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
    if longest is None or text.model_type not in _AFTER_PADDING:
        return longest
    return max(1, longest - (text.pad_token_id or 0) - 1)


def _check_raw(values: dict[str, Any], name: str) -> None:
    """What can be said from config.json before transformers reads it."""
    family = values.get("model_type")
    if not isinstance(family, str) or not family:
        raise ModelError(
            f"config.json of {name} must name a model_type, got {family!r}; download the model again."
        )
    _check_values(values, name)
    if family not in CONFIG_MAPPING:
        if "auto_map" in values:
            raise ModelError(
                f"{name} ({family}) needs code of its own (trust_remote_code), which loratune never runs; "
                f"choose a model that transformers knows."
            )
        raise ModelError(
            f"{name} is of architecture {family}, unknown to transformers {transformers.__version__}; "
            f"upgrade transformers or choose another model."
        )
    check_quantisation(values, name)


def _check_values(values: dict[str, Any], name: str, depth: int = 0) -> None:
    """Sizes that a model can have, names that are names, and no implementation from elsewhere; parts of it as well."""
    for key, value in values.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            _check_values(value, name, depth + 1)
        if key in _SIZES and value is not None:
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, bool) or not isinstance(each, int) or not 0 < each <= _SIZES[key]:
                    raise ModelError(
                        f"{key} in config.json of {name} must be a whole number of 1 to {_SIZES[key]}, got "
                        f"{str(each)[:40]!r}; download the model again."
                    )
        if key == "architectures" and value is not None and not _are_names(value):
            raise ModelError(
                f"architectures in config.json of {name} must be a list of names, got {repr(value)[:40]}; "
                "download the model again."
            )
        if key.endswith("_implementation") and not _is_known(value):
            raise ModelError(
                f"{key} in config.json of {name} must be one of transformers' own, got {str(value)[:80]!r}, which is "
                "code from elsewhere and never run; remove the line."
            )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_known(implementation: Any) -> bool:
    """transformers takes a name with a slash or a bar for a kernel on the hub; parts may have one each."""
    if isinstance(implementation, dict):
        return all(_is_known(each) for each in implementation.values())
    return implementation is None or (isinstance(implementation, str) and implementation.isidentifier())


def _check_kind(config: PreTrainedConfig, name: str) -> None:
    known = _causal_class(config)
    claimed = [str(architecture) for architecture in config.architectures or ()]
    accepted = {known.__name__} if known else set()
    if config.get_text_config() is not config:  # of an image-and-text model the text part is loaded
        accepted.update(
            architecture for architecture in claimed if architecture.endswith("ForConditionalGeneration")
        )
    if known is None or config.is_encoder_decoder or (claimed and not accepted & set(claimed)):
        what = claimed[0] if claimed else type(config).__name__
        other = "choose another model"
        if _class_of(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING) and not config.is_encoder_decoder:
            other = "add --task classification to train it on labels, or choose another model"
        raise ModelError(f"a base model must be a causal language model, {name} is a {what}; {other}.")
    if is_recurrent(config) and not hasattr(config.get_text_config(), "num_attention_heads"):
        raise ModelError(
            f"a base model must have attention layers, {name} is a {known.__name__}, made of recurrent ones alone; "
            "choose a model with attention, or a hybrid such as Qwen3-Next, Bamba or LFM2."
        )


def _check_classifier(config: PreTrainedConfig, source: Source) -> None:
    """Raise `ModelError` where no classifier can be made of it."""
    known = _class_of(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    what = "--task classification must have a base model of which transformers makes a sequence classifier"
    if known is None or config.is_encoder_decoder:
        raise ModelError(
            f"{what}, an encoder or decoder; {source.name} is a {type(config).__name__.removesuffix('Config')}, choose "
            "for example a BERT, RoBERTa, DeBERTa, ModernBERT or Llama."
        )
    if source.gguf is not None or is_packed(config):
        raise ModelError(
            f"{what} in safetensors, got {source.name} in another format; give the original checkpoint."
        )
    if is_recurrent(config, known):
        raise ModelError(
            f"{known.__name__} ({source.name}) keeps a recurrent state between tokens, which --task classification "
            "does not support; choose a model made of attention layers."
        )


def auto_class(config: PreTrainedConfig, *, classifies: bool = False) -> Any:
    """transformers' door to the class of a base model: of an image-and-text model without one for text, the whole."""
    if classifies:
        return AutoModelForSequenceClassification
    alone = _class_of(config, MODEL_FOR_CAUSAL_LM_MAPPING)
    return AutoModelForImageTextToText if alone is None else AutoModelForCausalLM


def name_body(model: PreTrainedModel) -> PreTrainedModel:
    """The same, whose `get_decoder` finds its body: Llama 4's text model stands under another name than it says."""
    if model.get_decoder() is model and isinstance(getattr(model, "model", None), PreTrainedModel):
        model.base_model_prefix = "model"
    return model


def is_recurrent(config: PreTrainedConfig, known: type[PreTrainedModel] | None = None) -> bool:
    """Whether tokens reach later ones by more than attention: a state, or a convolution, of some or all layers.

    In one line rows would see the rows before them, and padding on the left would be seen.
    """
    known = _causal_class(config) if known is None else known
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    return not _RECURRENT.isdisjoint(kinds) or (known is not None and known._is_stateful)


def _causal_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    alone = _class_of(config, MODEL_FOR_CAUSAL_LM_MAPPING)
    if alone is not None or config.get_text_config() is config:
        return alone
    return _class_of(config, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)


def _class_of(config: PreTrainedConfig, mapping: Any) -> type[PreTrainedModel] | None:
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    first: type[PreTrainedModel] = found[0] if isinstance(found, list | tuple) else found
    return first
