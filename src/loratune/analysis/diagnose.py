"""The signs of trouble in one dataset, one model and their trials: gathers the numbers, the rules judge them.

Before training: the rows, and the base model on a sample of them. Afterwards: steps, readings and seeds of what was
trained. Where two rules see the same cause, only the one that names it reports.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt

from loratune.analysis import audit
from loratune.analysis import signs as rules
from loratune.analysis.final import Final
from loratune.analysis.subject import Subject, audited, base_on
from loratune.data.batches import Rows
from loratune.data.profile import repeats_at_the_ends, shared_rows
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.lora.spectrum import Strengths
from loratune.runners.runner import Runner
from loratune.values import HyperParameters, Stage, TrialResult, TrialState
from loratune.values.analysis import Diagnosis, Sign

Steps = npt.NDArray[np.bool_]

FULL = 0.999
_OF_ROWS = (Sign.PADDING, Sign.TEMPLATE, Sign.LEAK)
_OF_READINGS = (Sign.OVERFITTING, Sign.UNDERTRAINED, Sign.LEAPS, Sign.NEAR_START, Sign.OUTGROWN)
_LOOKED_AT = 64
"""Rows of each split that the base model is tried on."""
_SHARE = 0.01
"""What this may cost, as a share of one pass over the training rows; the first eight rows come on top."""
_FEWEST = 8


def before_training(subject: Subject, runner: Runner, *, removed: int = 0) -> tuple[Diagnosis, ...]:
    """What is wrong with the rows: padding that is learnt, held-out rows in training, text unlike the model's.

    `removed` held-out rows that stood in another split too were taken out when the data was read.
    """
    train = subject.train.firsts  # of pairs the preferred answer
    repeats = repeats_at_the_ends(train)
    padding = rules.learnt_padding(
        repeated=repeats.repeated,
        supervised=repeats.supervised,
        rows=repeats.rows,
        of_rows=repeats.of_rows,
    )
    test = None if subject.test is None else subject.test.firsts
    splits = {"validation": subject.validation.firsts} | ({"test": test} if test is not None else {})
    leaks = [
        rules.leaked_rows(split=split, shared=shared_rows(train, table), rows=len(table))
        for split, table in splits.items()
    ]
    found = [padding, *leaks, rules.removed_duplicates(removed=removed)]
    if (
        padding is None and subject.group == 1 and not subject.classifies
    ):  # padding is unlike the model's text too
        found.append(_strange_text(subject, runner))
    return _found(found)


def _strange_text(subject: Subject, runner: Runner) -> Diagnosis | None:
    """The base model on a few rows of both splits."""
    train, other = (_sample(subject, table) for table in (subject.train, subject.validation))
    ours = _sums(base_on(runner, "train", train))
    broken = rules.not_finite_base(bad=len(train) - len(ours[0]), rows=len(train))
    if broken is not None:
        return broken
    # labels are names that the user has coined: there only the text around them says anything
    sums, tokens = _sums(base_on(runner, "train", train, "whole" if subject.labelled else "without last"))
    unknown = rules.worse_than_guessing(
        nll=ours[0].sum() / ours[1].sum(),
        of_text=sums.sum() / tokens.sum(),
        vocabulary=subject.profile.vocabulary,
    )
    return unknown or rules.unlike_splits(*ours, *_sums(base_on(runner, "validation", other)))


def _sums(found: Evaluation) -> tuple[rules.Floats, rules.Floats]:
    """NLL and supervised tokens of each row on which the base model gives a finite number."""
    finite = np.isfinite(found.example_nll)
    return found.example_nll[finite], found.counts[finite].astype(np.float64)


def _sample(subject: Subject, table: TokenTable) -> Rows:
    """Some rows, the same every time."""
    affordable = _SHARE * int(subject.train.lengths.sum()) / max(1.0, float(table.lengths.mean()))
    count = min(len(table), max(_FEWEST, min(_LOOKED_AT, int(affordable))))
    return np.sort(np.random.default_rng(subject.seed).permutation(len(table))[:count])


def of_trial(
    subject: Subject,
    result: TrialResult,
    *,
    before: float,
    margin: float,
    higher_rate_is_worse: bool = False,
    audit: Callable[[], Strengths] | None = None,
) -> tuple[Diagnosis, ...]:
    """What the steps and readings of one trial say; its readings must all be on the same validation rows.

    Args:
        before: NLL of the base model on these rows; margin: in nats.
        higher_rate_is_worse: whether a higher learning rate was tried at this rank and did worse.
        audit: looks at the adapter that the trial handed over; called where steps and readings are healthy.
    """
    skipped = _skipped(subject, result)
    values = result.trial.hyper_parameters
    if result.failure or result.state is TrialState.DIVERGED:
        if skipped is not None and _never_rose(result):
            return (skipped,)
        return (rules.diverged(values, result.message),)
    unstable = None
    if result.step_nll is not None:
        unstable = rules.unstable_losses(values, result.step_nll)
    if unstable is not None:  # the readings of a run that broke down say nothing about its length
        return _found([skipped, unstable])
    found = [_leaping(subject, result), *_of_readings(result, before, margin, higher_rate_is_worse)]
    if audit is not None and not any(found):
        found += _of_adapter(values, audit(), higher_rate_is_worse)
    return _found([skipped, *found])


def _of_adapter(
    values: HyperParameters, found: Strengths, higher_rate_is_worse: bool
) -> list[Diagnosis | None]:
    """What the matrices say where steps and readings are healthy; a higher rate that was tried says more than B."""
    return [
        None if higher_rate_is_worse else audit.near_start(values, found.a, found.b),
        audit.outgrown(values, found.update, found.layer),
    ]


def _leaping(subject: Subject, result: TrialResult) -> Diagnosis | None:
    """Steps whose gradient leapt, and the training rows that all of them had; an early outlier counts as neither."""
    norms = result.gradient_norms
    if norms is None:
        return None
    leapt = rules.leaps(norms)
    sound = ~leapt & (norms <= rules.SPIKE * np.median(norms))
    suspects = _only_in(leapt, subject.batches(result.trial), sound) if leapt.any() else ()
    steps = (np.flatnonzero(leapt) + 1).tolist()
    return rules.leaping_gradients(result.trial.hyper_parameters, steps, steps=len(norms), suspects=suspects)


def of_run(
    subject: Subject, runner: Runner, final: Final, results: Sequence[TrialResult], *, margin: float
) -> tuple[Diagnosis, ...]:
    """What the final run and the trials of the search say of the recommended setting; `margin` in nats."""
    result = final.recommended.result
    assert result is not None
    searched = [each for each in results if each.asked.stage is not Stage.FINAL]
    file = final.recommended.file
    found = of_trial(
        subject,
        result,
        before=final.before,
        margin=margin,
        higher_rate_is_worse=higher_rate_was_worse(result, searched),
        audit=None if file is None else partial(audited, runner, file),
    )
    values = result.trial.hyper_parameters
    repeated = [
        rules.diverged(
            each.trial.hyper_parameters,
            each.message,
            done=f"It was repeated at {values.learning_rate:.2g}, half the learning rate or less.",
        )
        for each in results
        if each.asked.stage is Stage.FINAL
        and (each.failure or each.state is TrialState.DIVERGED)
        and each.trial.hyper_parameters.learning_rate > values.learning_rate
        and replace(each.trial.hyper_parameters, learning_rate=values.learning_rate) == values
    ]
    seeds = of_seeds(values, searched)
    return merged([*found, *repeated, *([seeds] if seeds is not None else [])])


def _of_readings(
    result: TrialResult, before: float, margin: float, higher_rate_is_worse: bool
) -> list[Diagnosis | None]:
    if not result.curve:
        return []
    values = result.trial.hyper_parameters
    fractions, train, validation = (
        np.array([getattr(point, name) for point in result.curve])
        for name in ("fraction", "train_nll", "validation_nll")
    )
    best = result.curve[int(np.argmin(validation))]
    kept = f"The weights of step {best.step} are kept." if result.asked.stage is Stage.FINAL else ""
    return [
        rules.overfitted(train, validation, fractions * values.epochs, margin=margin, done=kept),
        rules.undertrained(
            values,
            fractions,
            validation,
            before=before,
            margin=margin,
            higher_rate_is_worse=higher_rate_is_worse,
        ),
    ]


def _skipped(subject: Subject, result: TrialResult) -> Diagnosis | None:
    """Steps that were not finite, and the training rows that all of them had."""
    if result.step_nll is None:
        return None
    bad = _not_finite(result)
    if not bad.any():
        return None
    steps = (np.flatnonzero(bad) + 1).tolist()
    suspects = () if result.failure else _only_in(bad, subject.batches(result.trial), ~bad)
    in_gradient = bool(np.isfinite(result.step_nll[bad]).all())
    return rules.not_finite_steps(steps, steps=len(bad), suspects=suspects, in_gradient=in_gradient)


def _not_finite(result: TrialResult) -> Steps:
    """[steps] whether loss or gradient was not finite, so that the step was skipped."""
    assert result.step_nll is not None
    bad = ~np.isfinite(result.step_nll)
    if result.gradient_norms is not None:
        bad |= ~np.isfinite(result.gradient_norms)
    return bad


def _only_in(bad: Steps, batches: Iterable[Rows], sound: Steps) -> tuple[int, ...]:
    """Rows of the bad steps that no sound step has; none at all where they do not account for every bad step."""
    cleared: set[int] = set()
    accused: list[set[int]] = []
    for number, rows in enumerate(islice(batches, len(bad))):
        if bad[number]:
            accused.append(set(rows.tolist()))
        elif sound[number]:
            cleared |= set(rows.tolist())
    left = [rows - cleared for rows in accused]
    return tuple(sorted(set().union(*left))) if all(left) else ()


def _never_rose(result: TrialResult) -> bool:
    """Whether the losses before the first step that was not finite show no growth: then the rate is innocent."""
    assert result.step_nll is not None
    before = result.step_nll[: int(np.argmax(_not_finite(result)))]
    return len(before) == 0 or float(before[-1]) <= float(before[0]) + rules.RISE


def of_seeds(chosen: HyperParameters, results: Iterable[TrialResult]) -> Diagnosis | None:
    """Whether the chosen setting's seeds disagree far more than those of the other settings on all rows."""
    groups: dict[HyperParameters, list[float]] = defaultdict(list)
    for result in results:
        if result.finished and result.trial.fraction >= FULL:
            groups[result.trial.hyper_parameters].append(result.nll)
    own = groups.pop(chosen, [])
    return rules.edge_of_stability(chosen, own, list(groups.values()))


def higher_rate_was_worse(chosen: TrialResult, results: Iterable[TrialResult]) -> bool:
    """Whether a trial of the same rank and fidelity with a higher learning rate did worse or diverged."""
    values = chosen.trial.hyper_parameters
    return any(
        result.trial.hyper_parameters.r == values.r
        and result.trial.fraction >= FULL
        and result.trial.hyper_parameters.learning_rate > 1.01 * values.learning_rate
        and (result.state is TrialState.DIVERGED or result.nll > chosen.nll)
        for result in results
    )


def combined(before: Sequence[Diagnosis], after: Sequence[Diagnosis]) -> tuple[Diagnosis, ...]:
    """All that is to be reported: a cause found before training is not reported again by its effects.

    Readings on rows that are wrong say nothing about the length of the training.
    """
    silent = {each.sign for each in before}
    if any(each.sign in _OF_ROWS and not each.done for each in before):
        silent |= set(_OF_READINGS)
    kept = [each for each in after if each.sign not in silent]
    return merged([*before, *kept])


def merged(found: Sequence[Diagnosis]) -> tuple[Diagnosis, ...]:
    """One diagnosis for each sign and finding, in the order of the signs."""
    unique: Mapping[tuple[Sign, str], Diagnosis] = {(each.sign, each.finding): each for each in found}
    order = list(Sign)
    return tuple(sorted(unique.values(), key=lambda each: order.index(each.sign)))


def _found(candidates: Sequence[Diagnosis | None]) -> tuple[Diagnosis, ...]:
    return merged([each for each in candidates if each is not None])
