"""Adapters as PEFT folders: `adapter_model.safetensors` and `adapter_config.json`, written and read.

The config goes through `peft.LoraConfig`, so that the folder is what the installed PEFT itself writes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from loratune.errors import ModelError
from loratune.files.read_json import parse_json
from loratune.files.write import new_folder
from loratune.lora.layout import Adapter, AdapterLayout, Target
from loratune.values import HyperParameters

if TYPE_CHECKING:  # PEFT brings bitsandbytes along, and that the compiler: seconds before a first step
    from peft import LoraConfig

_PREFIX = "base_model.model."
_CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAGNITUDE = "lora_magnitude_vector"
"""DoRA's, under the name that PEFT saves it by."""


class Tokenizer(Protocol):
    """What a complete folder needs of one."""

    def save_pretrained(self, folder: str) -> object:
        """Writes its files."""


def _target_names(model: nn.Module, targets: Sequence[Target]) -> list[str]:
    """The shortest endings of the names that select exactly `targets` in the model, else the full names."""
    wanted = {target.name for target in targets}
    names = [name for name, _ in model.named_modules()]
    for parts in (1, 2, 3):  # BERT's layers are called dense, as is its pooler
        endings = {_ending(name, parts) for name in wanted}
        if {name for name in names if any(f".{name}".endswith(f".{each}") for each in endings)} == wanted:
            return sorted(endings)
    return sorted(wanted)


def _ending(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])


def modules_to_save(model: nn.Module, head: Iterable[str]) -> list[str]:
    """PEFT's name for the modules that hold a head's parameters and no others: the outermost ones, by their full names.

    A pooler within the body is one, as PEFT would leave it behind under any other name.
    """
    own, rest = set(head), {name for name, _ in model.named_parameters()}
    rest -= own
    found: set[str] = set()
    for name in own:
        parts = name.split(".")
        ways = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        found.add(next(way for way in ways if not any(each.startswith(f"{way}.") for each in rest)))
    return sorted(found)


def lora_config(
    hyper_parameters: HyperParameters,
    model: nn.Module,
    targets: Sequence[Target],
    *,
    base_name: str = "",
    head: Iterable[str] = (),
) -> "LoraConfig":
    """The `peft.LoraConfig` under which PEFT builds the same adapter on `model`; `head`: its parameters' names."""
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    from peft import LoraConfig

    return LoraConfig(
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
        modules_to_save=modules_to_save(model, head) or None,
        r=hyper_parameters.r,
        lora_alpha=_whole(hyper_parameters.lora_alpha),
        use_rslora=hyper_parameters.use_rslora,
        use_dora=hyper_parameters.use_dora,
        rank_pattern=dict(hyper_parameters.rank_pattern),
        alpha_pattern={name: _whole(alpha) for name, alpha in hyper_parameters.alpha_pattern.items()},
        lora_dropout=hyper_parameters.lora_dropout,
        target_modules=_target_names(model, targets),
        fan_in_fan_out=any(isinstance(model.get_submodule(target.name), Conv1D) for target in targets),
        base_model_name_or_path=base_name or None,
    )


def _whole(alpha: float) -> float | int:
    """8.0 as 8: PEFT declares a whole alpha, and takes any."""
    return int(alpha) if alpha == int(alpha) else alpha


def save_adapter(
    adapter: Adapter,
    folder: Path,
    model: nn.Module,
    *,
    base_name: str = "",
    tokenizer: Tokenizer | None = None,
    card: str = "",
) -> None:
    """Write `adapter` as a PEFT folder; the folder appears whole or not at all, and replaces an older one.

    `tokenizer` and `card` (the text of README.md) make it one that can be used and handed on by itself.
    """
    tensors = {}
    for name, (a, b) in adapter.views().items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.detach().cpu().contiguous().clone()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
    for name, magnitude in adapter.layout.magnitude_views(adapter.weights).items():
        tensors[f"{_PREFIX}{name}.{_MAGNITUDE}"] = magnitude.detach().cpu().clone()
    head = adapter.head()
    tensors |= {f"{_PREFIX}{name}": value.detach().cpu().contiguous().clone() for name, value in head.items()}
    config = lora_config(
        adapter.hyper_parameters, model, adapter.layout.targets, base_name=base_name, head=head
    )
    config.inference_mode = True
    _write(tensors, config, folder, tokenizer, card)


def saved_config(folder: Path) -> "LoraConfig":
    """PEFT's configuration of an adapter that `save_adapter` wrote."""
    from peft import LoraConfig

    config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    return config


def described(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """An adapter folder's configuration, and the names of its tensors, of which none is loaded.

    Raises `ModelError` where one of the two files is missing or not what was written.
    """
    for name in (_CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder.parent} must hold {folder.name}/{name}, but does not; tune --resume trains a lost adapter "
                "again, or train another."
            )
    path = folder / _CONFIG
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
        if not config["peft_type"] or not config["target_modules"]:
            raise ValueError("it names no modules")
        path = folder / WEIGHTS
        with safe_open(path, framework="pt") as file:
            return config, tuple(file.keys())
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{path} must be what tune or train wrote, but is not readable as such ({error}); delete the folder "
            f"{folder} and go on with tune --resume, which trains a lost adapter again, or train another."
        ) from None


def publish_adapter(
    source: Path,
    folder: Path,
    *,
    base_name: str,
    tokenizer: Tokenizer | None,
    card: str,
    changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda tensors: tensors,
) -> None:
    """Write the adapter in `source`, of `save_adapter`, as a folder that can be used and handed on; see there.

    `changed`: what becomes of its tensors, by their names.
    """
    config = saved_config(source)
    config.base_model_name_or_path = base_name
    _write(changed(load_file(source / WEIGHTS)), config, folder, tokenizer, card)


def _write(
    tensors: dict[str, torch.Tensor],
    config: "LoraConfig",
    folder: Path,
    tokenizer: Tokenizer | None,
    card: str,
) -> None:
    with new_folder(folder, replace=True) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(fresh))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(fresh))
        if card:
            (fresh / "README.md").write_text(card, encoding="utf-8")


def load_adapter(
    folder: Path, hyper_parameters: HyperParameters, targets: Sequence[Target], *, device: torch.device
) -> Adapter:
    """Read what `save_adapter` wrote, a head included; `targets` are the modules that the hyper-parameters select.

    Raises `ModelError` where the file is missing, broken, or holds other modules or shapes.
    """
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"an adapter folder must hold a readable {path.name}, {folder} has none.") from error
    head = _head_of(folder, tensors)
    layout = AdapterLayout.of(hyper_parameters, targets, [(name, tuple(t.shape)) for name, t in head.items()])
    dtype = next(iter(tensors.values())).dtype if tensors else torch.float32
    weights = torch.zeros(layout.size, dtype=dtype)
    views = {
        (name, f"lora_{letter}", f"lora_{letter}.weight"): view
        for name, pair in layout.views(weights).items()
        for letter, view in zip("AB", pair, strict=True)
    }
    magnitudes = layout.magnitude_views(weights).items()
    views |= {(name, _MAGNITUDE, _MAGNITUDE): view for name, view in magnitudes}
    for (name, what, ending), view in views.items():
        stored = tensors.pop(f"{_PREFIX}{name}.{ending}", None)
        if stored is None or stored.shape != view.shape:
            found = "nothing" if stored is None else f"shape {tuple(stored.shape)}"
            raise ModelError(
                f"{path} must hold {what} of {name} with shape {tuple(view.shape)}, found {found}."
            )
        view.copy_(stored)
    for name, view in layout.head_views(weights).items():
        view.copy_(tensors.pop(_PREFIX + name))
    if tensors:
        raise ModelError(f"{path} must hold the targeted modules only, found also {min(tensors)}.")
    return Adapter(hyper_parameters=hyper_parameters, layout=layout, weights=weights.to(device))


def _head_of(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the modules that the folder's configuration names as saved whole, by parameter name."""
    if all(".lora_" in name for name in tensors):
        return {}
    try:
        config = parse_json((folder / _CONFIG).read_text(encoding="utf-8"))
        modules = {str(name) for name in config.get("modules_to_save") or ()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            f"an adapter folder must hold a readable adapter_config.json, {folder} has none."
        ) from error
    names = {name: name.removeprefix(_PREFIX) for name in tensors}
    inside = tuple(f"{module}." for module in modules)
    return {names[name]: value for name, value in tensors.items() if names[name].startswith(inside)}
