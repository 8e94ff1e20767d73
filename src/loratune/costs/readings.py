"""How often, and on how many validation rows, adapters are evaluated, so that it costs a stated share of the work.

Knows the rows' sizes and the budget; evaluates nothing.
"""

from dataclasses import dataclass

from loratune.values import SearchContext

READINGS_SHARE = 0.1
"""What the readings during a trial may cost, as a share of its training."""
_MOST_READINGS, _FEWEST_READINGS = 4, 3
_FEWEST_READ_ROWS, _MOST_READ_ROWS = 16, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """How often a trial of the search is read, and on how many validation rows."""

    count: int
    """The last included, which is at its end and on all rows."""
    rows: int
    """Validation rows of each reading before the last."""


def plan_readings(facts: SearchContext, validation_rows: int, most: int = _MOST_READINGS) -> Readings:
    """Readings of a full trial: those before the last cost a tenth of its training.

    Fewer where their rows would be fewer than 16, but three in any case: two points before the end are the least
    that tells a rise. A forward pass costs half of a training pass, token by token.
    """
    affordable = 2 * READINGS_SHARE * facts.wishes.epochs * facts.data.tokens
    affordable /= max(1.0, facts.data.validation_tokens / validation_rows)
    count = max(_FEWEST_READINGS, min(most, 1 + int(affordable / _FEWEST_READ_ROWS)))
    rows = max(_FEWEST_READ_ROWS, min(_MOST_READ_ROWS, int(affordable / (count - 1))))
    return Readings(count=count, rows=rows)


EVALUATION_SHARE = 0.12
"""What all evaluation of a final trial may cost, as a share of its training."""
_FEWEST_LOOKS, _MOST_LOOKS = 3, 10
_FEWEST_ROWS = 64
"""Fewest rows of an evaluation: decisions on fewer are noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluations:
    """How often early stopping evaluates, and on how many validation rows."""

    count: int
    rows: int
    """Validation rows of each look."""
    evaluated_rows: int
    """Rows of all looks together; the last evaluation is on all rows."""
    share: float
    """What these cost, as a share of the training."""


def plan_evaluations(trained_tokens: float, validation_tokens: int, validation_rows: int) -> Evaluations:
    """Ten looks at the rows that `EVALUATION_SHARE` pays for beside the last evaluation, which is on all rows.

    Fewer looks where their rows would be fewer than 64, but three in any case: where the training rows are so few
    the share is larger. A forward pass costs half of a training pass, token by token, as in `SearchContext.cost`.
    """
    per_row = max(1, validation_tokens) / validation_rows
    paid = 2 * EVALUATION_SHARE * trained_tokens / per_row
    before_last = paid - validation_rows
    fewest = min(_FEWEST_ROWS, validation_rows)
    affordable = int(max(before_last / fewest, paid / validation_rows))
    count = min(_MOST_LOOKS, max(_FEWEST_LOOKS, affordable))
    rows = max(fewest, int(before_last / count))
    # where looks are at all rows the best one is the last evaluation, and nothing comes after it
    evaluated = min(count * rows + validation_rows, count * validation_rows)
    if evaluated == count * validation_rows:
        rows = validation_rows
    share = 0.5 * evaluated * per_row / max(1.0, trained_tokens)
    return Evaluations(count=count, rows=rows, evaluated_rows=evaluated, share=share)


def final_evaluations(context: SearchContext, validation_rows: int) -> Evaluations:
    """The evaluations of a trial of the final run."""
    return plan_evaluations(
        context.wishes.epochs * context.data.tokens, context.data.validation_tokens, validation_rows
    )


TRUNCATION_SHARE = 0.1
"""What the curve may cost, as a share of the search's budget."""
FEWEST_ROWS = 64


def cut_ranks(r: int) -> tuple[int, ...]:
    """Powers of two below `r`."""
    return tuple(2**i for i in range(r.bit_length()) if 2**i < r)


def affordable_rows(context: SearchContext, models: int, validation_rows: int) -> int:
    """Validation rows of the curve: all, or what `TRUNCATION_SHARE` of the budget pays for, at least 64."""
    per_row = (
        0.5 * models * context.costs.evaluation_passes * context.data.validation_tokens / validation_rows
    )
    paid = TRUNCATION_SHARE * context.wishes.budget * context.full_run / max(per_row, 1.0)
    return int(min(validation_rows, max(FEWEST_ROWS, paid)))
