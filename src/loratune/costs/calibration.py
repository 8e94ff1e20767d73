"""From measured tokens per second to predicted seconds, and from a budget to full-run equivalents."""

from dataclasses import dataclass
from typing import Any, Self

from loratune.costs.budget import SAFETY, coarse, in_words
from loratune.costs.correction import UNCORRECTED, Correction
from loratune.costs.readings import (
    READINGS_SHARE,
    TRUNCATION_SHARE,
    affordable_rows,
    cut_ranks,
    final_evaluations,
)
from loratune.costs.step_time import StepTime
from loratune.errors import BudgetError
from loratune.values import Pace, SearchContext, Trial
from loratune.values.hyperparameters import default_recipe
from loratune.values.plain import from_plain

CALIBRATION = "calibration"
"""The fact of a study that holds it."""

_ONE_TRIAL = 1.5
"""Time that is enough for one trial, in final runs: budgets are rounded down, evaluations come on top."""
_FINAL_TRIALS = 2
"""The recommended trial and the default recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Measured once per study; tokens are real (unpadded) ones."""

    pack: float
    """Trained tokens per second of a pack of `slots` trials together."""
    alone: float
    """Trained tokens per second of one trial alone."""
    forward: float
    """Evaluated tokens per second."""
    slots: int
    steps: tuple[tuple[float, float], ...] = ()
    """(tokens, seconds) of measured steps of one micro-batch each."""
    micro_batch_tokens: int = 0
    """What a micro-batch is to hold; 0: as planned without measuring."""
    evaluation_tokens: int = 0
    """The same in evaluation; 0: in proportion."""
    threads: int = 0
    """The number with which steps were fastest on a CPU that other programs use too; 0: not measured."""
    dora: float = 0.0
    """Measured: a DoRA trial's seconds in those of a plain one; 0: not measured."""
    correction: Correction = UNCORRECTED
    """Correction of the memory model on this device."""

    @property
    def times(self) -> StepTime:
        """Seconds of any step of a pack."""
        full = float(self.micro_batch_tokens or 2048)
        return StepTime(points=self.steps or ((full, full / self.pack),), micro_batch_tokens=full)

    @property
    def pace(self) -> Pace:
        """What a strategy prices its waves by."""
        return Pace(steps=self.times.corners, forward=self.forward, slots=self.slots)

    def evaluated_tokens(self, longest_table: int) -> int:
        """Tokens of an evaluation's largest micro-batch; `longest_table`: tokens of all rows of the longest table."""
        limit = self.evaluation_tokens or 2 * int(self.times.micro_batch_tokens)
        return min(limit, max(self.slots, 1 + _FINAL_TRIALS) * longest_table)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_plain`, of older ones too. Raises `KeyError`, `TypeError` or `ValueError` for other values."""
        steps = tuple((float(tokens), float(seconds)) for tokens, seconds in values.get("steps", ()))
        correction = from_plain(Correction, values.get("correction", {}))
        speeds = {name: float(values[name]) for name in ("pack", "alone", "forward")}
        counts = {"slots": int(values["slots"])} | {
            name: int(values.get(name, 0)) for name in ("micro_batch_tokens", "evaluation_tokens", "threads")
        }
        if not all(speed > 0 for speed in speeds.values()) or counts["slots"] < 1:
            raise ValueError(f"speeds and slots must be above 0, got {speeds | counts}")
        return cls(**{**values, **speeds, **counts, "steps": steps, "correction": correction})

    def search_seconds(
        self,
        context: SearchContext,
        runs: float,
        trials: int,
        training: float | None = None,
        devices: int = 1,
    ) -> float:
        """Predicted time of a search that costs `runs` full-run equivalents and ends `trials` trials.

        `training` are the seconds of its training where a packing plan says so; else its tokens at the pack's rate.
        The evaluations that each trial's cost holds at half the price of training are timed at the measured
        forward rate instead; readings during training come on top. Both are shared out over the `devices`.
        """
        evaluated = trials * context.costs.evaluation_passes * context.data.validation_tokens
        trained = self.trained_tokens(context, runs, trials)
        readings = 2 * READINGS_SHARE * trained
        training = trained / self.pack / devices if training is None else training
        return training + (evaluated + readings) / self.forward / devices

    @staticmethod
    def trained_tokens(context: SearchContext, runs: float, trials: int) -> float:
        """Tokens of trials that together cost `runs` full-run equivalents, without their last evaluations."""
        evaluated = trials * context.costs.evaluation_passes * context.data.validation_tokens
        return max(0.0, runs * context.full_run - 0.5 * evaluated)

    def final_seconds(
        self, context: SearchContext, test_tokens: int, validation_rows: int, devices: int = 1
    ) -> float:
        """Predicted time of the final pack, its evaluations and the test split, in full.

        Its trials train side by side, in the measured steps of that many tokens; with several devices on one each.
        """
        apart = min(devices, _FINAL_TRIALS)
        recipe = default_recipe(context.wishes.epochs, context.wishes.warmup_ratio)
        load = context.load(Trial(hyper_parameters=recipe))
        trained = self.pace.wave([load] * (_FINAL_TRIALS // apart))
        looks = final_evaluations(context, validation_rows)
        at_end = context.costs.evaluation_passes * context.data.validation_tokens
        before_end = (looks.evaluated_rows / validation_rows - 1) * context.data.validation_tokens
        evaluated = _FINAL_TRIALS * (at_end + before_end) / apart
        return trained + evaluated / self.forward + self.test_seconds(context, test_tokens)

    def test_seconds(self, context: SearchContext, test_tokens: int) -> float:
        """Seconds of the final run after its last step: its trials and the base model on the test rows, the
        base model on the validation rows."""
        labelled = 1 + (context.costs.labelling_passes if context.data.labels else 0)
        base = context.costs.evaluation_passes * context.data.validation_tokens
        return ((_FINAL_TRIALS + 1) * labelled * test_tokens + base) / self.forward

    def truncation_seconds(self, context: SearchContext, rank: int, validation_rows: int) -> float:
        """Predicted time of the truncation curve of an adapter of that rank, once the budget is known."""
        models = 2 * len(cut_ranks(rank))
        share = affordable_rows(context, models, validation_rows) / validation_rows
        return (
            models * context.costs.evaluation_passes * share * context.data.validation_tokens / self.forward
        )

    def seconds_within(
        self,
        seconds: float,
        context: SearchContext,
        test_tokens: int,
        validation_rows: int,
        spent: float,
        further_runs: float = 0.0,
        devices: int = 1,
        writing: float = 0.0,
    ) -> float:
        """What a plan of the search may take if there are `seconds` for everything.

        `spent` are the seconds since the start, `further_runs` the full-run equivalents of what comes between
        search and final run, `writing` the seconds in which models write text. Raises `BudgetError` where the
        final run alone does not fit.
        """
        final = self.final_seconds(context, test_tokens, validation_rows, devices)
        final += further_runs * context.full_run / self.pack
        left = seconds - spent - final - writing
        if left <= 0:
            least = in_words(self._smallest(context, spent + final + writing))
            texts = f", the texts that models write about {writing:.0f} s" if writing else ""
            ways = "--train-rows" if not writing else "--train-rows, --validation-rows or --max-new-tokens"
            raise BudgetError(
                f"--budget {seconds:.0f}s leaves no time to search: loading took {spent:.0f} s, the final run "
                f"needs about {final:.0f} s{texts}; raise --budget to at least {least} or lower {ways}."
            )
        return SAFETY * left / (1 + TRUNCATION_SHARE)

    def _smallest(self, context: SearchContext, others: float) -> float:
        """Seconds that pay for one trial of the search beside `others`."""
        alone = context.seconds_alone if context.costs.pace is not None else context.full_run / self.alone
        return others + _ONE_TRIAL * alone * (1 + TRUNCATION_SHARE) / SAFETY

    def more_seconds(self, runs: float, context: SearchContext, seconds: float, devices: int = 1) -> float:
        """Seconds by which a budget must rise whose plan may take `seconds`, for `runs` of it (as `runs_within`)."""
        each = seconds / max(self._runs(seconds, context), 1e-12)
        return (1.01 * runs * each / devices - seconds) * (1 + TRUNCATION_SHARE) / SAFETY

    def runs_within(self, seconds: float, context: SearchContext) -> float:
        """What a search of this time may cost: final runs alone where the context has a pace.

        Without one full-run equivalents, if its packs were full all the time.
        """
        return coarse(self._runs(seconds, context))

    def _runs(self, seconds: float, context: SearchContext) -> float:
        if context.costs.pace is not None:
            return seconds / context.seconds_alone
        speed = min(self.pack, self.forward / 2) / (1 + READINGS_SHARE)
        return seconds * speed / context.full_run
