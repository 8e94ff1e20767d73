"""Model, data and engine put together from the options: what every command that trains starts with.

Everything that can be wrong with the user's input is found here, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from loratune.app.options import CommonOptions
from loratune.data.options import DataOptions
from loratune.data.prepare import PreparedData, prepare
from loratune.engine.pack import PackEngine
from loratune.errors import OutputError
from loratune.lora.layout import find_targets
from loratune.maths.memory import MemoryEstimate, estimate_pack
from loratune.maths.targets import check_rank
from loratune.model.architecture import read_config
from loratune.model.base import BaseModel
from loratune.model.device import device_memory, parse_memory
from loratune.model.load import load_model
from loratune.model.source import locate
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.values import HyperParameters, SearchContext, default_recipe

MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
PACK_SIZE = {"cpu": 8, "cuda": 32}
"""Beyond these a pack gains little: on two cores a pack of 8 has reached the speed of the base's products."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """Ready to train."""

    options: CommonOptions
    data: PreparedData
    base: BaseModel
    engine: PackEngine
    memory: int
    """Bytes to plan with."""

    def pack_size(self, hyper_parameters: HyperParameters, wanted: int | None = None) -> int:
        """How many such trials fit beside each other in memory, at most `wanted` or what suits the device."""
        limit = wanted or PACK_SIZE[self.base.device.type]
        while limit > 1 and not self.memory_of([hyper_parameters] * limit).fits(self.memory):
            limit -= 1
        return limit

    def memory_of(self, pack: list[HyperParameters]) -> MemoryEstimate:
        """Predicted peak of a pack on this data."""
        return estimate_pack(
            self.base.profile,
            pack,
            max_length=int(self.data.train.lengths.max()),
            micro_batch_tokens=self.engine.max_tokens_per_micro_batch,
        )


def check_out(directory: Path) -> None:
    """Raise `OutputError` where a run directory is not new or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(
            f"--out must be a new or empty folder, but {directory} is not; go on with its study by --resume, "
            "or choose another --out."
        )


def model_cache() -> Path:
    """Where unpacked .gguf weights are kept: $LORATUNE_CACHE, else the user's cache folder."""
    return Path(os.environ.get("LORATUNE_CACHE") or Path.home() / ".cache" / "loratune")


def context_length(model: str) -> int | None:
    """The longest row in tokens that the model's configuration allows; None where it sets no limit.

    A .gguf file's configuration takes as long to read as its weights, so its limit is left to the user.
    """
    source = locate(model, weights=False)
    if source.gguf is not None:
        return None
    limit = getattr(read_config(source).get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def data_options(options: CommonOptions) -> DataOptions:
    return DataOptions(**{each.name: getattr(options, each.name) for each in fields(DataOptions)})


def _micro_batch_tokens(base: BaseModel, longest: int, memory: int) -> int:
    """The device's usual micro-batch, halved until one trial fits in memory, but at least the longest row."""
    recipe = default_recipe()
    tokens = MICRO_BATCH_TOKENS[base.device.type]
    while tokens > longest and not estimate_pack(
        base.profile, [recipe], max_length=longest, micro_batch_tokens=tokens
    ).fits(memory):
        tokens //= 2
    return max(tokens, longest)


def device_bytes(options: CommonOptions, base: BaseModel) -> int:
    """What the user allows, else what the device has free (the loaded weights counted in)."""
    if options.device_memory is not None:
        return parse_memory(options.device_memory)
    weights = sum(int(parameter.nbytes) for parameter in base.model.parameters())
    return int(device_memory(base.device)) + weights


@contextmanager
def open_workbench(
    options: CommonOptions, *, targets: tuple[str, ...], ranks: tuple[int, ...], epochs: float
) -> Iterator[Workbench]:
    """Load and check everything; the tokens of large data live in a temporary folder that goes in the end.

    Raises `InputError` of all kinds for wrong input, `ResourceError` for a device that is absent or too small.
    """
    cache = model_cache()
    tokenizer = load_tokenizer(options.model, cache=cache)
    with TemporaryDirectory(prefix="loratune-") as folder:
        data = prepare(
            data_options(options),
            tokenizer,
            end_of_turn=end_of_turn_id(tokenizer),
            model_limit=context_length(options.model),
            cache=Path(folder),
        )
        base = load_model(options.model, dtype=options.dtype, device=options.device, cache=cache)  # type: ignore[arg-type]
        for rank in ranks:
            check_rank(find_targets(base.profile.targets, targets), rank)
        facts = SearchContext(
            rows=len(data.train),
            tokens=int(data.train.lengths.sum()),
            supervised_tokens=int(data.train.supervised_counts.sum()),
            validation_tokens=int(data.validation.lengths.sum()),
            epochs=epochs,
        )
        memory = device_bytes(options, base)
        longest = int(max(data.train.lengths.max(), data.validation.lengths.max()))
        engine = PackEngine(
            base=base,
            train=data.train,
            validation=data.validation,
            study_seed=options.seed,
            cost=facts.cost,
            label_tokens=data.label_tokens or None,
            max_tokens_per_micro_batch=_micro_batch_tokens(base, longest, memory),
        )
        yield Workbench(options=options, data=data, base=base, engine=engine, memory=memory)
