"""Where a base model's files lie: a folder, a .gguf file (kept unpacked), or a hub name brought to a folder.

Knows files only. Everything later reads the local folder, so one set of checks serves all.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from loratune.errors import ModelError
from loratune.files.paths import user_path

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model's local files."""

    name: str
    """The name that the user gave."""
    folder: Path
    gguf: str | None = None
    """Name of the .gguf file in `folder`, where the model comes from one."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of any `from_pretrained`: local files only, and never the model's own code."""
        common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        return common if self.gguf is None else {**common, "gguf_file": self.gguf}

    @property
    def has_tokenizer(self) -> bool:
        return self.gguf is not None or any((self.folder / name).is_file() for name in _TOKENIZER_FILES)


def locate(name: str, *, weights: bool = True) -> Source:
    """Find (for a hub name: download) the files of a base model; with `weights=False` all but the weights.

    Raises `ModelError` where they are missing, incomplete or not in a format that can be loaded safely.
    """
    path = user_path(name)
    if path.is_file() and path.name == "config.json" and not weights:
        path = path.parent
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                f"a model must be a folder, a .gguf file or a hub name, got the file {name}; "
                f"give the folder that holds it."
            )
        return Source(name=name, folder=path.parent, gguf=path.name)
    if path.is_dir():
        folder = path
    elif _looks_like_a_path(name):
        raise ModelError(f"model folder {name} does not exist; check --model.")
    else:
        folder = _download(name, weights)
    source = Source(name=name, folder=folder, gguf=_only_gguf(folder, name))
    if source.gguf is None:
        _check_folder(folder, name, weights)
    return source


def portable_name(name: str) -> str:
    """What others find the base model by: the hub name of a path into the hub's cache, else `name` itself."""
    parts = user_path(name).parts
    for part, following in pairwise(parts):
        if part.startswith("models--") and following == "snapshots":
            return part.removeprefix("models--").replace("--", "/")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder; `ModelError` where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path} must be readable JSON: {error}; download the model again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(content).__name__}; download it again.")
    return content


def _looks_like_a_path(name: str) -> bool:
    """Hub names are `model` or `owner/model`."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def _only_gguf(folder: Path, name: str) -> str | None:
    """The .gguf file of a folder that is not a transformers folder, if it is the only one."""
    if (folder / "config.json").is_file():
        return None
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(
            f"{name} must hold one .gguf file, found {len(files)} ({', '.join(files[:4])}); "
            f"give the path of one."
        )
    return files[0] if files else None


def _check_folder(folder: Path, name: str, weights: bool) -> None:
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        raise ModelError(
            f"{name} holds an adapter (adapter_config.json), not a base model; give its base model ({base})."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {name} holds no config.json; save the model there with save_pretrained."
        )
    if weights:
        _check_weights(folder, name)


def _check_weights(folder: Path, name: str) -> None:
    """Safetensors only: a pickle can run code when it is read."""
    if (folder / WEIGHTS).is_file():
        return
    if (folder / WEIGHTS_INDEX).is_file():
        shards = _shards(folder / WEIGHTS_INDEX)
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise ModelError(
                f"{name} lacks {len(missing)} of its {len(shards)} weight files, {missing[0]} first; "
                f"download the model again."
            )
        return
    pickles = sorted(
        path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)
    )
    if pickles:
        raise ModelError(
            f"weights must be safetensors, {name} has only pickled ones ({pickles[0]}), which can run code "
            f"when read; convert a copy that you trust with "
            f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    raise ModelError(
        f"{name} has a config.json but no weights: {WEIGHTS} is missing; download the model again."
    )


def _shards(index: Path) -> set[str]:
    """The weight files that an index names: safetensors files beside it and nothing else."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{index} must have a weight_map from tensors to files; download the model again.")
    for name in files.values():
        plain = isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors")
        if not plain:
            raise ModelError(
                f"{index} must name safetensors files beside it, got {name!r}, which could be a pickle and run code "
                "when read; download the model again."
            )
    return set(files.values())


def _download(name: str, weights: bool) -> Path:
    """A snapshot of a hub model's top-level files, from the local cache where it is complete."""
    allowed = [*_SMALL_FILES, "*.safetensors"] if weights else list(_SMALL_FILES)
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=allowed, ignore_patterns=["*/*", "consolidated*.safetensors"]
            )
        )
    except HFValidationError:
        raise ModelError(f"{name!r} is neither an existing folder nor a hub name; check --model.") from None
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated on the hub; accept its licence there and log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name} is neither a local folder nor a model on the hub that you may read; check --model."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise ModelError(
            f"{name} was not found locally and the hub cannot be reached; "
            f"give a folder, or go online to download it."
        ) from None
