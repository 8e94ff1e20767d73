"""What to expect before anything is trained: the laws of `maths.laws` put together for a dataset and a model.

Knows profiles, not rows or weights. Measuring replaces every number here.
"""

from math import ceil, log2

from loratune.maths.laws import Prior, batch_size_law, learning_rate_law, rank_law
from loratune.values import DataProfile, ModelProfile, Recommendation, Suggested

WIDE = 4.0
"""An interval whose ends differ by more than this factor is no basis for a decision."""
_UNMEASURED_RANK = 16


def recommend(data: DataProfile, model: ModelProfile, *, epochs: float | None = None) -> Recommendation:
    """The closed-form prior, with alpha = 2r.

    Args:
        epochs: passes over the training rows if the user has decided; otherwise from the number of rows.
    """
    passes = _epochs(data.rows, epochs)
    batch = _suggested(batch_size_law(rows=data.rows, epochs=passes.value))
    rank = _rank(data, model)
    r = round(rank.value)
    rate = learning_rate_law(
        r=r,
        lora_alpha=2 * r,
        batch_size=round(batch.value),
        rows=data.rows,
        epochs=passes.value,
        hidden_size=model.hidden_size,
        family=model.family,
    )
    alpha = Suggested(
        value=2 * r,
        low=r,
        high=3 * r,
        reason="2r by convention; alpha acts through the learning rate, and is flat where that is tuned",
    )
    suggested = {
        "rank": rank,
        "alpha": alpha,
        "learning rate": _suggested(rate),
        "batch size": batch,
        "epochs": passes,
    }
    notes = [_measure(name, value) for name, value in suggested.items() if value.high > WIDE * value.low]
    return Recommendation(
        r=rank,
        lora_alpha=alpha,
        learning_rate=suggested["learning rate"],
        batch_size=batch,
        epochs=passes,
        notes=tuple(notes),
    )


def _rank(data: DataProfile, model: ModelProfile) -> Suggested:
    """The law's rank rounded up to a power of two, within what the layers allow."""
    largest = model.largest_rank
    if model.experts_per_token:
        value = min(_UNMEASURED_RANK, largest)
        reason = "no law holds for mixtures of experts: the usual rank, to be measured"
        return Suggested(value=value, low=1, high=min(256, largest), reason=reason)
    law = rank_law(
        supervised_tokens=data.supervised_tokens,
        parameters_per_rank=model.parameters_per_rank,
        family=model.family,
        labels=len(data.labels),
        rows=data.rows,
        hidden_size=model.hidden_size,
    )
    value = min(2 ** ceil(round(log2(max(1.0, law.value)), 9)), largest)
    return Suggested(
        value=value,
        low=min(max(1.0, law.low), value),
        high=max(min(law.high, largest), value),
        reason=law.reason,
    )


def _epochs(rows: int, wanted: float | None) -> Suggested:
    """One to three passes: small data needs the steps, large data does not (§9 of the survey)."""
    if wanted is not None:
        return Suggested(value=wanted, low=wanted, high=wanted, reason="as asked")
    value = 3 if rows < 5_000 else 2 if rows < 20_000 else 1
    return Suggested(
        value=value,
        low=1,
        high=max(3, value),
        reason=f"{rows} rows; published recipes train 1 to 3 epochs and keep the best checkpoint",
    )


def _suggested(prior: Prior) -> Suggested:
    return Suggested(value=prior.value, low=prior.low, high=prior.high, reason=prior.reason)


def _measure(name: str, value: Suggested) -> str:
    return (
        f"the {name} is known only to within a factor {value.high / value.low:.0f} "
        f"({value.low:.2g} to {value.high:.2g}): measure it"
    )
