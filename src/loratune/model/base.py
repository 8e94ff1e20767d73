"""A frozen base model with its tokenizer and shapes, loaded from a folder, a hub name or a .gguf file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GgufConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from loratune.errors import ModelError, ResourceError
from loratune.maths.targets import NEW_WEIGHTS
from loratune.model.architecture import auto_class, name_body, read_config
from loratune.model.copies import drop_copy, keep_copy, one_unpacks
from loratune.model.device import DType, pick_device, resolve_dtype
from loratune.model.nf4 import NF4, adopt_layers, check_packing, check_source, quantisation
from loratune.model.profile import profile_of
from loratune.model.quiet import first_sentence, quiet
from loratune.model.sharded import Shard, shard, shardable
from loratune.model.source import Source, locate
from loratune.model.tokenizer import open_tokenizer
from loratune.values import Classifier, ModelProfile


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """What the engine trains adapters on. `model` is in eval mode and no parameter requires a gradient."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    profile: ModelProfile

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        dtype: torch.dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        return dtype

    @property
    def weight_format(self) -> str:
        """How its linear layers are held: `plain`, or `nf4`."""
        return self.profile.weight_format


def load_model(
    name: str,
    *,
    dtype: DType = "auto",
    device: str = "auto",
    cache: Path | None = None,
    classifier: Classifier | None = None,
    share: Shard | None = None,
) -> BaseModel:
    """The frozen base model in eval mode, with its tokenizer (None where the folder holds none).

    `dtype` `nf4` packs linear layers into 4 bits while they are read; a checkpoint in NF4 is so with `auto` too.
    `classifier`: with a head that gives these answers, in place of a language model's.
    `share`: with the part of the linear layers that this process holds; it waits for those that hold the others.
    `cache` is a folder that keeps .gguf weights unpacked as safetensors, so that later loads are fast.
    Raises `ModelError` for what cannot be used, `ResourceError` for a device that is absent or too small.
    """
    place = pick_device(device)
    kind = resolve_dtype(dtype, place)
    original = locate(name)
    check_source(original, dtype)
    with one_unpacks(original, cache, _label(kind)) as source:
        try:
            model, tokenizer = _read(source, original, dtype, place, cache, classifier)
        except ModelError:
            if source is original or cache is None:
                raise
            drop_copy(original, cache, _label(kind))
            source = original
            model, tokenizer = _read(source, original, dtype, place, cache, classifier)
        if source.gguf is not None and cache is not None:
            with quiet():
                keep_copy(source, cache, _label(kind), model)
    if tokenizer is not None:
        _check_vocabulary(model, tokenizer, name)
    _freeze(model)
    if share is None:
        _move(model, place, name)
        adopt_layers(model, kind, name)
        profile = profile_of(model, name)
    else:  # the whole need not fit there
        adopt_layers(model, kind, name)
        profile = _spread(model, profile_of(model, name), place, share)
        _move(model, place, name)
    _check_numbers(model, name)
    return BaseModel(model=model, tokenizer=tokenizer, profile=profile)


def _move(model: PreTrainedModel, place: torch.device, name: str) -> None:
    try:
        model.to(place)
    except torch.OutOfMemoryError:
        raise _too_large(name, place, sum(each.nbytes for each in model.parameters())) from None


def _spread(model: PreTrainedModel, profile: ModelProfile, place: torch.device, share: Shard) -> ModelProfile:
    """Leave this process its part of the layers; the profile says so."""
    names = [name for name, _, _ in profile.targets]
    chosen = set(shardable(model, names))
    sizes = [inputs * outputs for name, inputs, outputs in profile.targets if name in chosen]
    try:
        own = shard(model, names, place, share)
    except torch.OutOfMemoryError:
        raise _too_large(profile.name, place) from None
    for i, tensor in enumerate(own):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _not_finite(profile.name, f"a linear layer ({i})")
    return replace(
        profile, shards=share.of, sharded_parameters=sum(sizes), largest_sharded=max(sizes, default=0)
    )


def _read(
    source: Source,
    original: Source,
    dtype: DType,
    place: torch.device,
    cache: Path | None,
    classifier: Classifier | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Configuration, tokenizer, weights: what is quickly read is checked first."""
    classifies = classifier is not None
    config = read_config(source, classifies=classifies)
    if classifier is not None and dtype == NF4:
        raise ModelError(
            f"--task classification must have plain weights, got --dtype {NF4}; leave it out, or give bfloat16."
        )
    packs = check_packing(original, config, dtype)
    tokenizer = open_tokenizer(original, cache, classifies=classifies) if original.has_tokenizer else None
    model = _load_weights(source, config, resolve_dtype(dtype, place), place if packs else None, classifier)
    if classifier is not None and tokenizer is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # without it a head takes no two rows at once
    return model, tokenizer


def _label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _load_weights(
    source: Source,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    packing: torch.device | None,
    classifier: Classifier | None,
) -> PreTrainedModel:
    """Every tensor from the checkpoint: transformers would fill missing ones with random numbers.

    A classifier's head and pooler may be missing; each trial draws its own.

    `packing`: where layers are packed into 4 bits one by one, so that the plain ones are never all in memory.
    """
    options: dict[str, Any] = {**source.arguments, "config": config, "dtype": dtype}
    if packing is not None:
        options |= {"quantization_config": quantisation(config, dtype), "device_map": {"": packing}}
    auto = auto_class(config, classifies=classifier is not None)
    if classifier is not None:
        for name, value in classifier.options.items():
            setattr(config, name, value)
        options["ignore_mismatched_sizes"] = True
    if source.gguf is None:
        options["use_safetensors"] = True
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        with quiet():
            model, report = auto.from_pretrained(source.folder, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise _too_large(source.name, packing) from None
    except MemoryError:
        raise ResourceError(
            f"the weights of {source.name} do not fit in memory; use a larger machine."
        ) from None
    except Exception as error:
        raise ModelError(
            f"the weights of {source.name} cannot be loaded: {first_sentence(error)}; "
            f"download the model again."
        ) from None
    missing = sorted({*report["missing_keys"], *(each[0] for each in report["mismatched_keys"])})
    if classifier is not None:
        new = frozenset(name for name in missing if _is_head(name, model))
        setattr(model, NEW_WEIGHTS, new)
        missing = [name for name in missing if name not in new]
    if missing:
        raise ModelError(
            f"the weights of {source.name} lack {len(missing)} tensors that its configuration asks for, "
            f"{missing[0]} first; download the model again."
        )
    return name_body(model)


def _is_head(parameter: str, model: PreTrainedModel) -> bool:
    """Whether it stands outside of the body, or is the body's pooler's."""
    prefix = f"{model.base_model_prefix}."
    return not parameter.startswith(prefix) or parameter.startswith(f"{prefix}pooler.")


def _too_large(name: str, place: torch.device | None, size: int | None = None) -> ResourceError:
    needed = "" if size is None else f" {size / 2**30:.1f} GiB,"
    return ResourceError(
        f"the weights of {name} need{needed} more than {place} has free; use a larger device, or --dtype nf4, which "
        "takes about a third of bfloat16's memory."
    )


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Tokenizers may know a few more tokens than the model (Gemma 3 does), but not these."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.vocab_size - 1, tokenizer.eos_token_id or 0, tokenizer.pad_token_id)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer of {name} uses token {largest}, but the model has {rows} embeddings; "
            f"give the tokenizer that belongs to it."
        )


def _check_numbers(model: PreTrainedModel, name: str) -> None:
    """One weight that is no number makes every loss one that is none."""
    for tensor, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.sum(dtype=torch.float32).isfinite():
            continue
        if not weight.isfinite().all():
            raise _not_finite(name, tensor)


def _not_finite(name: str, tensor: str) -> ModelError:
    return ModelError(
        f"the weights of {name} must be finite numbers, {tensor} holds NaN or infinity; download the model again."
    )


def _freeze(model: PreTrainedModel) -> None:
    model.requires_grad_(False)
    model.eval()
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = False
