"""`result.json`, version 1: written last and atomically, because its presence means a complete run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from json import dumps
from math import inf
from pathlib import Path
from typing import Any

from loratune.errors import HyperParameterError, InputError, OutputError
from loratune.files.read_json import parse_json
from loratune.files.write import write_atomically
from loratune.reporting.answer import verdict
from loratune.reporting.facts import ModelScores, RunCost, RunFacts
from loratune.reporting.notebook import picture
from loratune.reporting.opponent import fair_gains, fair_opponent
from loratune.reporting.wording import price, rate, states
from loratune.values import Evidence, HyperParameters, StageSummary
from loratune.values.plain import finite, to_plain

SCHEMA = 1
_FILE = "result.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecommendedHyperParameters(HyperParameters):
    """`HyperParameters` and the row length they were found with."""

    max_length: int
    """Tokens."""
    modules_to_save: tuple[str, ...] = ()
    """PEFT's names of a classifier's head, which is trained whole; empty where completions are learnt."""

    def lora_config(self) -> Any:
        """The `peft.LoraConfig` of the recommended adapter."""
        targets = self.target_modules
        return import_module("peft").LoraConfig(
            task_type="SEQ_CLS" if self.modules_to_save else "CAUSAL_LM",
            modules_to_save=list(self.modules_to_save) or None,
            r=self.r,
            lora_alpha=_whole(self.lora_alpha),
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern={name: _whole(alpha) for name, alpha in self.alpha_pattern.items()},
            lora_dropout=self.lora_dropout,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            target_modules=targets[0] if targets == ("all-linear",) else list(targets),
        )

    def training_arguments(
        self, output_dir: str = "loratune-run", *, micro_batch: int | None = None, **others: Any
    ) -> Any:
        """The `transformers.TrainingArguments` that train it as here; `others` go before what is recommended.

        `micro_batch`: rows of one forward pass, a divisor of the batch size; default all. Raises
        `HyperParameterError` where it is none.
        """
        values = self._arguments(output_dir, micro_batch)
        return import_module("transformers").TrainingArguments(**values | others)

    def sft_config(
        self, output_dir: str = "loratune-run", *, micro_batch: int | None = None, **others: Any
    ) -> Any:
        """The same as TRL's `SFTConfig`, with the row length. Raises `InputError` where TRL is not installed."""
        try:
            trl = import_module("trl")
        except ImportError:
            raise InputError(
                "sft_config() needs the package trl, which is not installed; run `pip install trl`."
            ) from None
        values = {
            **self._arguments(output_dir, micro_batch),
            "max_length": self.max_length,
            "packing": False,
        }
        return trl.SFTConfig(**values | others)

    def _arguments(self, output_dir: str, micro_batch: int | None) -> dict[str, Any]:
        rows = self.batch_size if micro_batch is None else micro_batch
        if rows < 1 or self.batch_size % rows:
            raise HyperParameterError(
                f"micro_batch must divide the batch size of {self.batch_size}, got {rows}; give for example 1."
            )
        return {
            "output_dir": output_dir,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": self.warmup_ratio,  # below 1 it is the share of the steps
            "num_train_epochs": float(self.epochs),
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": self.batch_size // rows,
            "optim": "adamw_torch",
            "weight_decay": self.weight_decay,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-8,
            "max_grad_norm": 1.0,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneResult:
    """What `tune` returns and `result.json` holds."""

    recommended: RecommendedHyperParameters
    metrics: Mapping[str, Any]
    """`validation` and `test` of the recommended adapter; `base_model` and `default_recipe` by split."""
    evidence: tuple[Evidence, ...]
    cost: Mapping[str, Any]
    stages: tuple[StageSummary, ...]
    directory: Path
    """Where `adapter/`, `report.html` and `study.db` are."""
    verdict: tuple[str, ...] = ()
    """The answer in sentences, the most telling first; empty where an earlier version ran."""

    def _repr_html_(self) -> str:
        """The table that notebooks show."""
        values = self.recommended
        return str(
            picture(
                heading=f"Rank {values.r}, learning rate {rate(values.learning_rate)}, batch size {values.batch_size}",
                verdict=self.verdict,
                values=values.to_dict(),
                metrics=self.metrics,
                evidence=self.evidence,
                directory=str(self.directory),
            )
        )


def result_values(facts: RunFacts) -> dict[str, Any]:
    """The document, with every key of version 1; numbers that are not finite as None."""
    cost, values = facts.cost, facts.decision.hyper_parameters.to_dict()
    document: dict[str, Any] = finite(
        {
            "schema": SCHEMA,
            "verdict": verdict(facts),
            "recommended": {
                **values,
                "lora_alpha": _whole(values["lora_alpha"]),
                "epochs": _whole(values["epochs"]),
                "max_length": facts.profile.max_length,
            },
            "metrics": {
                "validation": facts.recommended.validation,
                "test": facts.recommended.test,
                "base_model": _splits(facts.base_model),
                "default_recipe": _splits(facts.default_recipe),
                "fair_opponent": _opponent(facts),
            },
            "evidence": [{**to_plain(each), "state": state} for state, each in states(facts)],
            "cost": {
                "seconds": cost.seconds,
                "trained_tokens": facts.trained_tokens,
                "trials": len(facts.results),
                "predicted_seconds": cost.predicted_seconds,
                "peak_memory_bytes": {"predicted": cost.predicted_bytes, "measured": cost.measured_bytes},
                **_price(cost),
            },
            "timeline": [{"name": name, "seconds": seconds} for name, seconds in cost.timeline],
            "mean_trials_in_pack": cost.mean_trials_in_pack,
            "stages": to_plain(facts.decision.stages),
            **({"proxy": to_plain(facts.proxy)} if facts.proxy else {}),
            **({"training": to_plain(facts.training)} if facts.training else {}),
            **({"sensitivity": to_plain(facts.sensitivity)} if facts.sensitivity else {}),
        }
    )
    return document


def _price(cost: RunCost) -> dict[str, float]:
    """Prices in the user's currency; nothing where they named no price."""
    if not cost.price_per_hour:
        return {}
    return {
        "price_per_hour": cost.price_per_hour,
        "price": price(cost.seconds, cost.price_per_hour),
        "predicted_price": price(cost.predicted_seconds, cost.price_per_hour),
    }


def _opponent(facts: RunFacts) -> dict[str, Any]:
    """Rank 16 with the best of four learning rates: the rates that the search ran, and the best one's scores."""
    found = fair_opponent(facts)
    return {
        "learning_rates": found.tried,
        "hyper_parameters": found.best.trial.hyper_parameters.to_dict() if found.best else None,
        "validation": found.scores.validation,
        "gains": [
            {"metric": gain.metric, "value": gain.value, "interval": gain.interval}
            for gain in fair_gains(facts)
        ],
    }


def _splits(scores: ModelScores) -> dict[str, Mapping[str, float]]:
    return {"validation": scores.validation, "test": scores.test}


def write_result(facts: RunFacts, directory: Path) -> Path:
    """Write `result.json`, whole or not at all; call it after everything else has been written."""
    return write_atomically(directory / _FILE, dumps(result_values(facts), indent=1, allow_nan=False) + "\n")


def load_result(directory: Path) -> TuneResult:
    """Read `result.json`. Raises `OutputError` where the run is not complete or of another version."""
    path = directory / _FILE
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise OutputError(
                f"{path} must have schema {SCHEMA}, got {values['schema']!r}; read it with its own version."
            )
        return _decode(values, directory)
    except FileNotFoundError:
        raise OutputError(
            f"A finished run must hold {_FILE}, but {directory} does not; finish it by tune --resume."
        ) from None
    except OutputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} must be what tune wrote, but is not readable as such ({type(error).__name__}: {error}); "
            "delete it and go on with tune --resume."
        ) from None


def _decode(values: dict[str, Any], directory: Path) -> TuneResult:
    recommended = values["recommended"]
    return TuneResult(
        recommended=RecommendedHyperParameters.from_dict(recommended | _whole_modules(values)),
        metrics=values["metrics"],
        evidence=tuple(evidence_from_dict(each) for each in values["evidence"]),
        cost=values["cost"],
        stages=tuple(StageSummary(**each) for each in values["stages"]),
        directory=directory,
        verdict=tuple(values.get("verdict", ())),
    )


def _whole_modules(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a document's training record the recommendation needs."""
    names = (values.get("training") or {}).get("modules_to_save") or ()
    return {"modules_to_save": tuple(names)} if names else {}


def evidence_from_dict(values: Mapping[str, Any]) -> Evidence:
    """Inverse of `to_plain` and `finite` of one: an absent end of an interval is infinite."""
    values = {name: value for name, value in values.items() if name != "state"}
    bounds = values["interval"]
    if bounds is None:
        return Evidence(**values)
    low, high = bounds
    return Evidence(**{**values, "interval": (-inf if low is None else low, inf if high is None else high)})


def _whole(value: float) -> float | int:
    """8.0 as 8: configurations and people expect a whole alpha."""
    return int(value) if value == int(value) else value
