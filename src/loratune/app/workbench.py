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

import torch

from loratune.app.options import CommonOptions, data_options
from loratune.data.prepare import PreparedData, prepare
from loratune.data.survey import Decoder, survey
from loratune.engine.pack import PackEngine
from loratune.engine.paths import Paths, choose_paths
from loratune.errors import OutputError
from loratune.lora.layout import find_targets
from loratune.maths.execution import (
    ON_CPU,
    ON_CPU_PADDED,
    ON_CUDA,
    ON_CUDA_EAGER,
    ON_CUDA_PLAIN,
    Device,
    Execution,
)
from loratune.maths.limits import Limits
from loratune.maths.targets import check_rank
from loratune.model.architecture import read_config
from loratune.model.base import BaseModel
from loratune.model.device import device_memory, parse_memory
from loratune.model.load import load_model
from loratune.model.source import locate
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.run.calibration import READINGS_SHARE, Calibration
from loratune.values import LABEL_METRICS, SearchContext, default_recipe

MICRO_BATCH_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 65536}
"""At most: beyond, throughput has long stopped to grow. What is used is measured (`app.forecast.calibrate`)."""
PACK_SIZE: dict[Device, int] = {"cpu": 8, "cuda": 32}
"""Beyond these a pack gains little: on two cores a pack of 8 has reached the speed of the base's products."""

_READINGS = 4
"""Of a trial's validation NLL, the last at its end and on all rows."""
_UNEVEN = 1.25
"""A micro-batch may have more supervised tokens than the mean."""
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

    def calibrated(self, calibration: Calibration) -> Workbench:
        """The same with the micro-batches and the memory that were measured here."""
        tokens = calibration.micro_batch_tokens or self.limits.micro_batch_tokens
        tokens = max(tokens, self.limits.max_length)
        return replace(
            self,
            engine=replace(self.engine, max_tokens_per_micro_batch=tokens),
            limits=replace(self.limits, micro_batch_tokens=tokens, correction=calibration.correction),
        )


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


def execution_of(device: Device, paths: Paths | None = None) -> Execution:
    """How the engine runs there, for the memory model; `paths` None: as it runs best."""
    if device == "cpu":
        return ON_CPU if paths is None or paths.rows.flat else ON_CPU_PADDED
    if paths is None or paths.compiled:
        return ON_CUDA
    return ON_CUDA_EAGER if paths.rows.flat and paths.low_rank.triton else ON_CUDA_PLAIN


def device_bytes(text: str | None, device: torch.device, execution: Execution) -> int:
    """All that the process may take: what the user allows, else what it holds and what the device has free."""
    if text is not None:
        return parse_memory(text)
    context = execution.runtime if device.type == "cuda" else 0  # on a GPU the context is taken already
    return int(device_memory(device)) + context


def _limits(options: CommonOptions, base: BaseModel, data: PreparedData, paths: Paths) -> Limits:
    """The largest micro-batch worth trying, or what one trial of the default recipe leaves room for."""
    device: Device = "cuda" if base.device.type == "cuda" else "cpu"
    execution = execution_of(device, paths)
    longest = int(max(data.train.lengths.max(), data.validation.lengths.max()))
    supervised = float(data.train.supervised_counts.sum() / data.train.lengths.sum())
    limits = Limits(
        model=base.profile,
        max_length=longest,
        micro_batch_tokens=longest,
        device_bytes=device_bytes(options.device_memory, base.device, execution),
        execution=execution,
        supervised=min(1.0, _UNEVEN * supervised),
    )
    tokens = limits.largest_micro_batch([default_recipe()], MICRO_BATCH_TOKENS[device])
    return replace(limits, micro_batch_tokens=max(tokens, longest))


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
        paths = choose_paths(base)
        limits = _limits(options, base, data, paths)
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
            paths=paths,
        )
        yield Workbench(options=options, data=data, base=base, engine=engine, limits=limits)
