"""How a run directory's adapter was trained: written beside the result, read by export, generate and merge."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from json import loads
from pathlib import Path

from loratune.errors import OutputError
from loratune.runners.local import early_stopping
from loratune.tuning.options import CommonOptions, data_options
from loratune.tuning.workbench import Workbench
from loratune.values import HyperParameters, TrainingRecord
from loratune.values.plain import from_plain

_FILE = "result.json"
_EARLIER = frozenset({"max_length"})
"""Of `recommended`, what is no hyper-parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """A finished run directory of `tune` or `train`."""

    directory: Path
    hyper_parameters: HyperParameters
    training: TrainingRecord
    validation_nll: float | None
    """Of the adapter, nats per supervised token."""

    @property
    def adapter(self) -> Path:
        return self.directory / "adapter"


def training_record(
    options: CommonOptions, bench: Workbench, *, seed: int, epochs: float, patience: int
) -> TrainingRecord:
    """Of a final run on this workbench."""
    tokenizer = bench.base.tokenizer
    assert tokenizer is not None, "rows have been tokenised"
    stopping = early_stopping(bench.engine, epochs, patience)
    return TrainingRecord(
        model=options.model,
        data=options.data,
        data_fingerprint=bench.data.fingerprint,
        data_options=asdict(data_options(options)),
        prompt=bench.data.prompt,
        dtype=str(bench.base.dtype).removeprefix("torch."),
        weight_format=bench.base.weight_format,
        seed=seed,
        rows=len(bench.data.train),
        max_length=bench.data.profile.max_length,
        evaluations=stopping.evaluations,
        patience=patience,
        end_of_turn=str(tokenizer.eos_token),
    )


def load_run(directory: Path) -> TrainedRun:
    """Read `result.json`. Raises `OutputError` where there is none, or one of a version that kept too little."""
    path = directory / _FILE
    try:
        values = loads(path.read_text(encoding="utf-8"))
        chosen = values["recommended"] if "recommended" in values else values["hyper_parameters"]
        return TrainedRun(
            directory=directory,
            hyper_parameters=HyperParameters.from_dict(
                {name: value for name, value in chosen.items() if name not in _EARLIER}
            ),
            training=from_plain(TrainingRecord, values["training"]),
            validation_nll=values["metrics"]["validation"].get("nll"),
        )
    except OSError:
        raise OutputError(
            f"a finished run must hold {_FILE}, but {directory} does not; give the --out of tune or train "
            "(an unfinished tune goes on by --resume)."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path} must say how the adapter was trained, which this version writes under 'training' "
            f"({type(error).__name__}: {error}); run tune or train again."
        ) from None
