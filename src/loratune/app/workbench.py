"""Model, data and engine put together from the options: what every command that trains starts with.

Everything that can be wrong with the user's input is found here, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loratune.app.options import CommonOptions, data_options
from loratune.data.prepare import PreparedData, prepare
from loratune.data.survey import Decoder, survey
from loratune.engine.pack import PackEngine
from loratune.errors import OutputError
from loratune.lora.layout import find_targets
from loratune.maths.memory import Device, Limits
from loratune.maths.targets import check_rank
from loratune.model.architecture import read_config
from loratune.model.base import BaseModel
from loratune.model.device import device_memory, parse_memory
from loratune.model.load import load_model
from loratune.model.source import locate
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.run.calibration import READINGS_SHARE
from loratune.values import LABEL_METRICS, HyperParameters, SearchContext, default_recipe

MICRO_BATCH_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 16384}
PACK_SIZE: dict[Device, int] = {"cpu": 8, "cuda": 32}
"""Beyond these a pack gains little: on two cores a pack of 8 has reached the speed of the base's products."""

_READINGS = 4
"""Of a trial's validation NLL, the last at its end and on all rows."""
_FEWEST_READ_ROWS, _MOST_READ_ROWS = 16, 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """Ready to train."""

    options: CommonOptions
    data: PreparedData
    base: BaseModel
    engine: PackEngine
    limits: Limits
    """What fits in memory."""

    def pack_size(self, hyper_parameters: HyperParameters, wanted: int | None = None) -> int:
        """How many such trials fit beside each other in memory, at most `wanted` or what suits the device."""
        return max(1, self.limits.largest_pack(hyper_parameters, wanted or PACK_SIZE[self.limits.device]))


def _rows_of_readings(facts: SearchContext, validation_rows: int) -> int:
    """Validation rows of the readings during a full trial: those before the last cost a tenth of its training.

    A forward pass costs half of a training pass, token by token.
    """
    affordable = 2 * READINGS_SHARE * facts.epochs * facts.tokens / (_READINGS - 1)
    rows = affordable / max(1.0, facts.validation_tokens / validation_rows)
    return max(_FEWEST_READ_ROWS, min(_MOST_READ_ROWS, int(rows)))


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


def _limits(options: CommonOptions, base: BaseModel, longest: int) -> Limits:
    """The device's usual micro-batch, or what one trial of the default recipe leaves room for; at least a row."""
    device: Device = "cuda" if base.device.type == "cuda" else "cpu"
    limits = Limits(
        model=base.profile,
        max_length=longest,
        micro_batch_tokens=longest,
        device_bytes=_device_bytes(options, base),
        device=device,
    )
    tokens = limits.largest_micro_batch([default_recipe()], MICRO_BATCH_TOKENS[device])
    return replace(limits, micro_batch_tokens=max(tokens, longest))


def _device_bytes(options: CommonOptions, base: BaseModel) -> int:
    """What the user allows, else what the device has free (the loaded weights counted in)."""
    if options.device_memory is not None:
        return parse_memory(options.device_memory)
    weights = sum(int(parameter.nbytes) for parameter in base.model.parameters())
    return int(device_memory(base.device)) + weights


def with_survey(data: PreparedData, tokenizer: Decoder, seed: int) -> PreparedData:
    """The same rows, their profile with a closer look at them."""
    return replace(data, profile=replace(data.profile, survey=survey(data, tokenizer, seed=seed)))


@contextmanager
def open_workbench(
    options: CommonOptions,
    *,
    targets: tuple[str, ...],
    ranks: tuple[int, ...],
    epochs: float,
    metric: str = "nll",
    surveyed: bool = False,
) -> Iterator[Workbench]:
    """Load and check everything; the tokens of large data live in a temporary folder that goes in the end.

    With `surveyed` the data's profile has its survey, which takes seconds.
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
        if surveyed:
            data = with_survey(data, tokenizer, options.seed)
        base = load_model(options.model, dtype=options.dtype, device=options.device, cache=cache)  # type: ignore[arg-type]
        for rank in ranks:
            check_rank(find_targets(base.profile.targets, targets), rank)
        facts = SearchContext(
            rows=len(data.train),
            tokens=int(data.train.lengths.sum()),
            supervised_tokens=int(data.train.supervised_counts.sum()),
            validation_tokens=int(data.validation.lengths.sum()),
            epochs=epochs,
            metric=metric,
        )
        limits = _limits(options, base, int(max(data.train.lengths.max(), data.validation.lengths.max())))
        engine = PackEngine(
            base=base,
            train=data.train,
            validation=data.validation,
            study_seed=options.seed,
            cost=facts.cost,
            label_tokens=data.label_tokens or None,
            labels_at_end=metric in LABEL_METRICS,
            validation_subset_size=_rows_of_readings(facts, len(data.validation)),
            evaluations_per_trial=_READINGS,
            max_tokens_per_micro_batch=limits.micro_batch_tokens,
        )
        yield Workbench(options=options, data=data, base=base, engine=engine, limits=limits)
