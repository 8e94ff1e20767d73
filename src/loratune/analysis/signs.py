"""Signs of trouble as rules over numbers: each returns its diagnosis, or None where the numbers are healthy.

Thresholds and their sources: losses of LoRA runs that failed, the first-step checks of the published recipes.
Knows no engine, tables or studies; the numbers come from outside.
"""

from collections.abc import Sequence
from math import inf, log, sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import fdtrc

from loratune.maths.noninferiority import pool_seed_noise
from loratune.values import HyperParameters
from loratune.values.analysis import Diagnosis, Sign

Floats = npt.NDArray[np.float64]

PADDED_SHARE = 0.05
"""Share of the supervised tokens that may repeat the token at a row's end."""
PADDED_ROWS = 0.1
MISMATCH = 1.0
"""Nats per token between training and validation rows before training."""
MISMATCH_ERRORS = 4.0
FEW_STEPS = 0.03
"""Share of steps that are not finite above which the rows are not to blame (3 in 100)."""
RISE = 0.5
RISE_DEVIATIONS = 6.0
RISE_STEPS = 20
AVERAGED_ROWS = 16
SPIKE = 10.0
SPIKED_STEPS = 0.02
SPIKE_WINDOW = 32
SEED_RATIO = 10.0
SEED_LEVEL = 0.001
MOST_NAMED = 8
"""Steps or rows that a finding lists."""
PERSISTENT = 3
"""Readings in a row above the best one."""
LINEAR = 0.5
"""Descent in the second half of the summed learning rate, per unit of it, over that in the first half."""
RATE_STEP = 3.0


def learnt_padding(*, repeated: int, supervised: int, rows: int, of_rows: int) -> Diagnosis | None:
    """Supervised tokens that only repeat the token at a row's end.

    Args:
        repeated: supervised tokens that repeat the same token beside them at the end (or start) of their row.
        supervised: all supervised tokens; rows: rows that have repeated ones, of `of_rows`.
    """
    share = repeated / max(1, supervised)
    if share <= PADDED_SHARE or rows <= PADDED_ROWS * of_rows:
        return None
    return Diagnosis(
        sign=Sign.PADDING,
        finding=(
            f"{share:.0%} of the tokens to be learnt only repeat the token at the end of their row, in {rows} of "
            f"{of_rows} rows: padding is not masked."
        ),
        remedy="Take the padding out of the rows; the engine pads and masks by itself.",
        value=share,
        unit="share of the supervised tokens",
        limit=PADDED_SHARE,
    )


def worse_than_guessing(*, nll: float, of_text: float, vocabulary: int) -> Diagnosis | None:
    """A base model to which the rows are less likely than random tokens: not the text that it knows.

    Args:
        nll: of the base model on training rows, nats per supervised token; this is the loss of the first step,
            where B is zero. `of_text` is that of the same rows without what may be unlikely and do no harm: the
            end of a row, which other models write otherwise, and labels against the text around them.
    """
    guessing = log(vocabulary)
    if min(nll, of_text) <= guessing:
        return None
    return Diagnosis(
        sign=Sign.TEMPLATE,
        finding=(
            f"Before training the base model gives the tokens to be learnt {nll:.1f} nats each; guessing among "
            f"{vocabulary:,} tokens would cost {guessing:.1f}: this is not text as the model knows it."
        ),
        remedy="Check template, chat format and which part of a row is learnt.",
        value=nll,
        unit="nats",
        limit=guessing,
    )


def unlike_splits(
    train: Floats, train_tokens: Floats, other: Floats, other_tokens: Floats
) -> Diagnosis | None:
    """Training and validation rows that the base model finds unequally likely: rendered in different ways.

    Args:
        train, other: [rows] summed NLL of each row under the base model, nats.
        train_tokens, other_tokens: [rows] supervised tokens of each row.
    """
    means, errors = zip(
        *(_ratio(x, n) for x, n in ((train, train_tokens), (other, other_tokens))), strict=True
    )
    difference, error = abs(means[0] - means[1]), float(np.hypot(*errors))
    if difference <= max(MISMATCH, MISMATCH_ERRORS * error):
        return None
    return Diagnosis(
        sign=Sign.TEMPLATE,
        finding=(
            f"Before training the base model gives training rows {means[0]:.2f} and validation rows {means[1]:.2f} "
            "nats per token: the two are not the same kind of text."
        ),
        remedy="Check that template, chat format and source are the same for both.",
        value=difference,
        unit="nats",
        limit=max(MISMATCH, MISMATCH_ERRORS * error),
    )


def _ratio(sums: Floats, tokens: Floats) -> tuple[float, float]:
    """Mean per token and its standard error over rows."""
    mean = float(sums.sum() / max(tokens.sum(), 1.0))
    if len(sums) < 2:
        return mean, inf
    residuals = sums - mean * tokens
    return mean, float(np.sqrt((residuals**2).sum() * len(sums) / (len(sums) - 1)) / max(tokens.sum(), 1.0))


def leaked_rows(*, split: str, shared: int, rows: int) -> Diagnosis | None:
    """Rows of a held-out split that stand, token for token, among the training rows."""
    if not shared:
        return None
    return Diagnosis(
        sign=Sign.LEAK,
        finding=f"{shared} of {rows} {split} rows also stand among the training rows: scores on them are recall.",
        remedy=f"Take them out of the training rows or out of the {split} rows.",
        value=shared / rows,
        unit=f"share of the {split} rows",
        limit=0.0,
    )


def removed_duplicates(*, removed: int) -> Diagnosis | None:
    """Held-out rows that stood in another split too, and were taken out while the data was read."""
    if not removed:
        return None
    return Diagnosis(
        sign=Sign.LEAK,
        finding=f"{removed} rows of validation or test stood in another split too.",
        done="They were taken out of validation and test.",
        remedy="",
        value=float(removed),
        unit="rows",
        limit=0.0,
    )


def not_finite_base(*, bad: int, rows: int) -> Diagnosis | None:
    """Rows of a sample on which the base model's own loss is not finite; a few of them are the rows' fault."""
    if 2 * bad <= rows:
        return None
    return Diagnosis(
        sign=Sign.NOT_FINITE,
        finding=f"Before training the base model's loss is not finite on {bad} of {rows} rows: numbers overflow.",
        remedy="Use --dtype bfloat16 or float32, and check the model's weights.",
        value=bad / rows,
        unit="share of the rows",
        limit=0.5,
    )


def not_finite_steps(
    bad: Sequence[int], *, steps: int, suspects: Sequence[int], in_gradient: bool = False
) -> Diagnosis | None:
    """Steps whose loss or gradient was not finite and that were skipped.

    Args:
        bad: numbers of these steps (1-based), of `steps`.
        suspects: training rows (0-based) that were in these steps and in no sound one, at least one for each of
            these steps; none where some step has no such row.
        in_gradient: whether the loss was finite in all of them, and only the gradient was not.
    """
    if not bad:
        return None
    share = len(bad) / max(1, steps)
    finding = (
        "The gradient was not finite, though the loss was, in "
        if in_gradient
        else "Loss or gradient was not finite in "
    )
    finding += _steps(bad, steps)
    overflow = "Use --dtype bfloat16 or float32; the learning rate is not the cause."
    if suspects:
        rows, named = _rows(suspects)
        finding += f", all of them with training {rows} {named} (counted from 0), in no other step."
        remedy = f"Check the {rows}: the learning rate is not the cause."
    elif share <= FEW_STEPS:
        finding += ", with no row in common."
        remedy = "Check the rows, and if they are sound use --dtype bfloat16 or float32."
    else:
        finding += ", whatever the rows: numbers overflow."
        remedy = overflow
    if in_gradient and suspects:
        remedy += (
            " If they are sound, numbers overflow in the backward pass: use --dtype bfloat16 or float32."
        )
    return Diagnosis(
        sign=Sign.NOT_FINITE,
        finding=finding,
        done="They were skipped without an update." if len(bad) > 1 else "It was skipped without an update.",
        remedy=remedy,
        value=share,
        unit="share of the steps",
        limit=FEW_STEPS,
    )


def _steps(numbers: Sequence[int], of: int) -> str:
    """Which steps, the first of them by number."""
    if len(numbers) == 1:
        return f"step {numbers[0]} of {of}"
    return f"{len(numbers)} of {of} steps ({_named(numbers)})"


def _rows(numbers: Sequence[int]) -> tuple[str, str]:
    """`row` or `rows`, and which."""
    return ("row" if len(numbers) == 1 else "rows"), _named(numbers)


def _named(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:MOST_NAMED])) + (" and more" if len(numbers) > MOST_NAMED else "")


def lower_rate(values: HyperParameters) -> str:
    """The remedies against instability, the first one first."""
    text = f"Halve the learning rate to {values.learning_rate / 2:.2g}"
    if values.lora_alpha >= 2 * values.r:
        text += f", or lower alpha from {values.alpha_ratio:g}r to {0.75 * values.alpha_ratio:g}r"
    return text + "."


def unstable_losses(values: HyperParameters, losses: Floats) -> Diagnosis | None:
    """A training loss that rose and stayed high.

    The moving average of the loss lies above its best, where it began included, by 0.5 nats and by six times
    its own noise (from the median absolute deviation of the steps) for 20 steps in a row.

    Args:
        losses: [steps] mean NLL of each step's batch.
    """
    rise, tolerated = _lasting_rise(losses, values.batch_size)
    if rise <= tolerated:
        return None
    return Diagnosis(
        sign=Sign.UNSTABLE,
        finding=(
            f"Training at learning rate {values.learning_rate:.2g} was unstable: the training loss rose by {rise:.2f} "
            "nats above its best and stayed there."
        ),
        remedy=lower_rate(values),
        value=rise,
        unit="nats",
        limit=tolerated,
    )


def _lasting_rise(losses: Floats, batch_size: int) -> tuple[float, float]:
    """The largest rise of the average above its best so far that lasted 20 steps, and what is tolerated."""
    losses = losses[np.isfinite(losses)]
    if len(losses) <= RISE_STEPS:
        return 0.0, RISE
    decay = 0.9 ** min(1.0, batch_size / AVERAGED_ROWS)
    averages = np.empty_like(losses)
    average = float(losses[: max(1, AVERAGED_ROWS // batch_size)].mean())
    for i, loss in enumerate(losses):
        average += (1 - decay) * (loss - average)
        averages[i] = average
    rises = averages - np.minimum.accumulate(averages)
    lasting = float(np.lib.stride_tricks.sliding_window_view(rises, RISE_STEPS).min(axis=1).max())
    noise = float(np.median(np.abs(losses - averages))) * sqrt((1 - decay) / (1 + decay))
    return lasting, max(RISE, RISE_DEVIATIONS * noise)


def leaps(norms: Floats) -> npt.NDArray[np.bool_]:
    """[steps] whether the gradient is ten times the median of the 32 steps before; the first 32 never are.

    Args:
        norms: [steps] norm of each step's gradient before clipping; those that are not finite are no leap.
    """
    found = np.zeros(len(norms), bool)
    finite = np.flatnonzero(np.isfinite(norms))
    if len(finite) > SPIKE_WINDOW:
        before = np.lib.stride_tricks.sliding_window_view(norms[finite], SPIKE_WINDOW)[:-1]
        later = finite[SPIKE_WINDOW:]
        found[later] = norms[later] > SPIKE * np.median(before, axis=1)
    return found


def leaping_gradients(
    values: HyperParameters, leapt: Sequence[int], *, steps: int, suspects: Sequence[int]
) -> Diagnosis | None:
    """Gradients that leap in over 2 % of the steps while the loss does not rise and stay high.

    Args:
        leapt: numbers of these steps (1-based), of `steps`; suspects: as in `not_finite_steps`.
    """
    share = len(leapt) / max(1, steps)
    if share <= SPIKED_STEPS:
        return None
    finding = f"The gradient leapt to ten times its usual size and more in {_steps(leapt, steps)}"
    remedy = lower_rate(values)
    if suspects:
        rows, named = _rows(suspects)
        finding += f", all of them with training {rows} {named} (counted from 0), in no other step"
        remedy = f"Check the {rows}; if they are right, {_lower(remedy)}"
    return Diagnosis(
        sign=Sign.LEAPS,
        finding=finding + ".",
        done="Each step's gradient was clipped to norm 1.",
        remedy=remedy,
        value=share,
        unit="share of the steps",
        limit=SPIKED_STEPS,
    )


def diverged(values: HyperParameters, reason: str, *, done: str = "") -> Diagnosis:
    """A trial that its guard ended for its losses."""
    return Diagnosis(
        sign=Sign.UNSTABLE,
        finding=f"Training at learning rate {values.learning_rate:.2g} diverged: {reason.rstrip('.')}.",
        done=done,
        remedy="" if done else lower_rate(values),
        value=values.learning_rate,
        unit="learning rate",
    )


def edge_of_stability(
    values: HyperParameters, repeats: Sequence[float], others: Sequence[Sequence[float]]
) -> Diagnosis | None:
    """Seeds of one setting that disagree far more than those of the others: a rate at the edge of stability.

    The sd is ten times the pooled one and the variances differ at the 0.1 % level (F-test).

    Args:
        repeats: NLL by seed of the setting in question; others: the same of every other setting, in nats.
    """
    own, pooled = pool_seed_noise([repeats]), pool_seed_noise(others)
    if not own.known or not pooled.known or pooled.variance <= 0:
        return None
    ratio = float(np.sqrt(own.variance / pooled.variance))
    chance = float(fdtrc(own.degrees, pooled.degrees, ratio**2))
    if ratio <= SEED_RATIO or chance >= SEED_LEVEL:
        return None
    return Diagnosis(
        sign=Sign.UNSTABLE,
        finding=(
            f"Seeds disagree {ratio:.0f} times more at learning rate {values.learning_rate:.2g} than elsewhere: "
            "it is at the edge of stability."
        ),
        remedy=lower_rate(values),
        value=ratio,
        unit="times the usual sd",
        limit=SEED_RATIO,
    )


def overfitted(
    train: Floats, validation: Floats, epochs: Floats, *, margin: float, done: str = ""
) -> Diagnosis | None:
    """Validation NLL that rose and stayed high while training NLL kept falling.

    The last three readings (two of at most four) all lie above the best by more than the margin.

    Args:
        train, validation: [readings] NLL in nats, all on the same validation rows; epochs: [readings] done.
    """
    wanted = PERSISTENT if len(validation) > PERSISTENT + 1 else PERSISTENT - 1
    if len(validation) <= wanted:
        return None
    best = int(np.argmin(validation))
    rises = validation[-wanted:] - validation[best]
    if best >= len(validation) - wanted or rises.min() <= margin or train[-1] >= train[best]:
        return None
    return Diagnosis(
        sign=Sign.OVERFITTING,
        finding=(
            f"Over-fitting: after {epochs[best]:.2g} epochs validation NLL rose by {rises[-1]:.3f} nats while "
            f"training NLL fell from {train[best]:.3f} to {train[-1]:.3f}."
        ),
        done=done,
        remedy=f"Train {epochs[best]:.2g} epochs; if that is not enough, a lower rank, then dropout 0.05 to 0.1.",
        value=float(rises[-1]),
        unit="nats",
        limit=margin,
    )


def undertrained(
    values: HyperParameters,
    fractions: Floats,
    validation: Floats,
    *,
    before: float,
    margin: float,
    higher_rate_is_worse: bool,
) -> Diagnosis | None:
    """Validation NLL still falling in a straight line at the end: the run ended before it had learnt.

    Against the learning rate summed so far, which is fair to its decay, the second half has at least half of
    the first half's slope, and still brings more than the margin. A run that has learnt falls like an
    exponential or a power of the steps, with a far flatter second half. Nothing learnt at all counts too,
    unless a higher rate made it worse.

    Args:
        fractions: [readings] share of the planned steps done; validation: [readings] NLL in nats, all on the
            same rows; before: NLL on them before training.
        higher_rate_is_worse: whether a higher learning rate was tried at this rank and did worse.
    """
    if len(fractions) < 2 or fractions[-1] < 1:
        return None
    done = _summed_rate(np.concatenate([[0.0], fractions]), values.warmup_ratio)
    curve = np.concatenate([[before], validation])
    middle = float(np.interp(0.5, done, curve))
    first, second = before - middle, middle - float(curve[-1])
    if abs(first + second) <= margin and not higher_rate_is_worse:
        finding = (
            f"Under-trained: validation NLL changed by {abs(first + second):.4f} nats in all, hardly at all."
        )
    elif first > 0 and second > max(margin, LINEAR * first):
        finding = (
            f"Under-trained: validation NLL was still falling in a straight line at the end, by {second:.3f} nats "
            f"in the second half after {first:.3f} in the first."
        )
    else:
        return None
    remedy = "Train for more epochs."
    if not higher_rate_is_worse:
        remedy = (
            f"Raise the learning rate to {RATE_STEP * values.learning_rate:.2g}, or train for more epochs."
        )
    return Diagnosis(
        sign=Sign.UNDERTRAINED,
        finding=finding,
        remedy=remedy,
        value=second,
        unit="nats",
        limit=margin,
    )


def _summed_rate(fractions: Floats, warmup: float) -> Floats:
    """Share of the run's summed learning rate spent at each share of its steps: warm-up, then linear to zero."""
    rising = fractions**2 / warmup if warmup > 0 else fractions
    falling = 1 - (1 - fractions) ** 2 / (1 - warmup) if warmup < 1 else rising
    return np.where(fractions < warmup, rising, falling)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
