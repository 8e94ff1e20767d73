"""The prior in seconds: profile and closed-form recommendation, without weights or training."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from loratune.app.options import CommonOptions, data_options, keyword_options
from loratune.app.workbench import context_length, model_cache
from loratune.data.prepare import prepare
from loratune.maths.prior import recommend as prior
from loratune.model.profile import profile_from_config
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.reporting.terminal import print_profile, print_recommendation
from loratune.values import DataProfile, ModelProfile, Recommendation


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommended:
    """The prior, and the facts that set it."""

    data: DataProfile
    model: ModelProfile
    recommendation: Recommendation

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "recommendation": self.recommendation.to_dict(),
            "data": self.data.to_dict(),
            "model": {
                "name": self.model.name,
                "family": self.model.family,
                "parameters": self.model.parameters,
                "parameters_per_rank": self.model.parameters_per_rank,
            },
        }


def recommend(**options: Any) -> Recommended:
    """Rank, alpha, learning rate, batch size and epochs to expect, each with its range and reason.

    The options are those of `loratune recommend`; trains nothing and reads no weights.
    """
    return _recommend(CommonOptions(**keyword_options(options)))


def _recommend(options: CommonOptions) -> Recommended:
    tokenizer = load_tokenizer(options.model, cache=model_cache())
    with TemporaryDirectory(prefix="loratune-") as folder:
        data = prepare(
            data_options(options),
            tokenizer,
            end_of_turn=end_of_turn_id(tokenizer),
            model_limit=context_length(options.model),
            cache=Path(folder),
        ).profile
    model = profile_from_config(options.model, dtype=options.dtype, device=options.device)  # type: ignore[arg-type]
    return Recommended(data=data, model=model, recommendation=prior(data, model))


def recommend_command(options: CommonOptions, *, as_json: bool) -> None:
    """Print profile and prior, or the document."""
    found = _recommend(options)
    if as_json:
        print(dumps(found.to_dict()))
        return
    console = Console()
    print_profile(console, found.data, found.model)
    console.print()
    print_recommendation(console, found.recommendation)
