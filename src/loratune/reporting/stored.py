"""The facts of a run as JSON values beside its trials, so that a report can be drawn again without the model."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter

from loratune.reporting.facts import RunFacts
from loratune.values import TrialResult

_ARRAYS = ("results", "validation_weights")
"""Fields that are kept elsewhere (the trials) or as plain lists."""


def to_stored(facts: RunFacts) -> dict[str, Any]:
    """Everything but the trials, which the study keeps."""
    adapters = _adapters()
    values = {name: each.dump_python(getattr(facts, name), mode="json") for name, each in adapters.items()}
    weights = facts.validation_weights
    return {**values, "validation_weights": None if weights is None else weights.tolist()}


def from_stored(values: Mapping[str, Any], results: Sequence[TrialResult]) -> RunFacts:
    """Inverse of `to_stored`; `results` are the study's."""
    decoded = {
        name: each.validate_python(values[name]) for name, each in _adapters().items() if name in values
    }
    weights = values["validation_weights"]
    return RunFacts(
        **decoded,
        results=tuple(results),
        validation_weights=None if weights is None else np.asarray(weights, np.float64),
    )


def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(RunFacts)
    return {each.name: TypeAdapter(hints[each.name]) for each in fields(RunFacts) if each.name not in _ARRAYS}
