"""What writing text takes: bytes of the cache of keys and values, and seconds from a short measurement.

Every row is counted at the most new tokens that it may have, so that predictions lie above what adapters take that have
learnt to stop. Knows shapes, limits and measured steps; no metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from time import perf_counter

import numpy as np

from loratune.costs.limits import Limits
from loratune.costs.memory import TIGHT
from loratune.data.table import TokenTable
from loratune.data.turns import last_turns
from loratune.engine.pack import PackEngine
from loratune.values import ModelProfile, default_recipe

FINALISTS = 4
"""Adapters of a search that are compared by what they write, at most."""
_FINAL_MODELS = 3
"""What was found, the default recipe and the base model."""
_MOST_CACHED = {"cpu": 2**14, "cuda": 2**20}
"""Tokens of a batch, whatever the memory: some dozens of rows on a CPU, some thousands on a GPU."""
_MEASURED_ROWS = {"cpu": 8, "cuda": 512}
_MEASURED_STEPS = 9


def cached_bytes(model: ModelProfile, tokens: int) -> float:
    """Bytes of the cache for a batch of this number of tokens, its longest rows at their ends.

    All layers' keys and values; of the layer at work also those to which a token is being added, and where several
    queries share a key a copy for each.
    """
    features = model.cached_features or 2 * model.layers * model.hidden_size
    shared = max(1.0, 2 * model.layers * model.hidden_size / features)
    return tokens * features * model.bytes_per_parameter * (1 + (1 + shared) / model.layers)


def writing_bytes(limits: Limits, cached_tokens: int) -> int:
    """Peak while text is written: the base, the adapters that are compared, a prompt's evaluation and the cache."""
    estimate = limits.estimate([default_recipe()] * FINALISTS, step_tokens=1)
    held = estimate.total - estimate.transient
    prompts = limits.evaluating(min(cached_tokens, 2 * limits.largest_line))
    cache = (1 + limits.execution.allocator) * cached_bytes(limits.model, cached_tokens)
    return round(held + prompts + cache)


def cached_tokens(limits: Limits) -> int:
    """Tokens of the rows that are written side by side: what fits with room to spare, a single row in any case."""
    most = _MOST_CACHED[limits.execution.device]
    fits = next((most >> i for i in range(most.bit_length()) if _fits(limits, most >> i)), 1)
    return max(fits, limits.max_length)


def _fits(limits: Limits, tokens: int) -> bool:
    return writing_bytes(limits, tokens) <= TIGHT * limits.device_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What is written in a run, and what it takes."""

    max_new_tokens: int
    validation_rows: int
    test_rows: int
    prompt_tokens: float
    """Mean tokens of a row's prompt."""
    longest: int
    """Tokens of a row at its end, at most."""
    cached_tokens: int
    """Most tokens of a batch."""
    steps: tuple[tuple[int, float], ...]
    """Measured: rows side by side, ascending, and the seconds of one more token for each of them."""

    def seconds(self, models: int, rows: int, forward: float) -> float:
        """Seconds for these models on `rows` rows each; `forward`: evaluated tokens per second."""
        at_once = max(1, self.cached_tokens // self.longest)
        batches = ceil(models * rows / at_once)
        step = self._step_seconds(min(models * rows, at_once))
        return batches * self.max_new_tokens * step + models * rows * self.prompt_tokens / forward

    def _step_seconds(self, rows: int) -> float:
        """Seconds of a step, in proportion between measured sizes; beyond the largest in proportion to its rows."""
        sizes, seconds = zip(*self.steps, strict=True)
        between: float = np.interp(rows, sizes, seconds).item()
        return float(between * max(1.0, rows / sizes[-1]))

    def finalists_seconds(self, forward: float) -> float:
        """Seconds of the comparison after the search."""
        return self.seconds(FINALISTS, self.validation_rows, forward)

    def final_seconds(self, forward: float) -> float:
        """Seconds of the final run's models on the validation rows."""
        return self.seconds(_FINAL_MODELS, self.validation_rows, forward)

    def test_seconds(self, forward: float) -> float:
        """The same on the test rows."""
        return self.seconds(_FINAL_MODELS, self.test_rows, forward)

    def peak_bytes(self, limits: Limits) -> int:
        """Peak memory of the process while it writes."""
        rows = max(
            FINALISTS * self.validation_rows, _FINAL_MODELS * max(self.validation_rows, self.test_rows)
        )
        return writing_bytes(limits, min(self.cached_tokens, rows * self.longest))


def measure_generation(engine: PackEngine, validation: TokenTable, test: TokenTable) -> Generation:
    """Write a few tokens by the base model, and note what a step takes. Raises `ModelError` where it cannot write."""
    turns = [*last_turns(validation), *last_turns(test)]
    prompts = [len(turn.prompt) for turn in turns]
    new, context = engine.scoring.max_new_tokens, engine.context_length
    longest = max(prompts) + new
    longest = longest if context is None else max(max(prompts) + 1, min(longest, context))
    most = max(1, engine.cached_tokens // longest)
    rows = min(_MEASURED_ROWS[engine.base.device.type], len(validation), most)
    table = validation.take(range(rows))
    generation = Generation(
        max_new_tokens=new,
        validation_rows=len(validation),
        test_rows=len(test),
        prompt_tokens=sum(prompts) / len(prompts),
        longest=longest,
        cached_tokens=max(engine.cached_tokens, longest),
        steps=(),
    )
    # A step of few rows on a GPU is all launches, so that one size says nothing of others.
    models = 1 if engine.base.device.type == "cpu" else max(1, min(FINALISTS, most // rows))
    measured = tuple((n * rows, _step_seconds(engine, table, n)) for n in sorted({1, models}))
    return replace(generation, steps=measured)


def _step_seconds(engine: PackEngine, table: TokenTable, models: int) -> float:
    """Seconds of one more token for each row of `models` models."""
    _timed(engine, table, models, 2)  # whatever is compiled or looked up, is now: of a prompt and of a step
    steps = _timed(engine, table, models, _MEASURED_STEPS) - _timed(engine, table, models, 1)
    return max(steps, 1e-6) / (_MEASURED_STEPS - 1)


def _timed(engine: PackEngine, table: TokenTable, models: int, new: int) -> float:
    with engine.attached():
        started = perf_counter()
        engine.write([None] * models, table, max_new_tokens=new)
        return perf_counter() - started


def longest_answer(tables: Sequence[TokenTable]) -> int:
    """Tokens of the longest last answer, its end token included."""
    return max(len(turn.answer) for table in tables for turn in last_turns(table))
