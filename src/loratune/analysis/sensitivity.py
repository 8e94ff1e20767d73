"""The table of what mattered, from the trials of a study on all rows and from the models of memory and time.

Trials on part of the rows tell of the learning rate alone: they hide the rank. Shares of variance: Optuna's fANOVA.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol
from warnings import catch_warnings, simplefilter

import numpy as np

from loratune.analysis import effects as maths
from loratune.analysis.subject import Subject
from loratune.costs.memory import MemoryEstimate
from loratune.maths.noninferiority import (
    SeedNoise,
    compare_means,
    compare_nll,
    pool_seed_noise,
    row_variance,
)
from loratune.values import HyperParameters, Stage, TrialResult
from loratune.values.analysis import Impact, Sensitivity

FULL = 0.999
_RATIO = "lora_alpha / r"
_NAMES = ("r", "learning_rate", "batch_size", _RATIO, "lora_dropout", "weight_decay")
_TREES, _TREES_OF_RESAMPLES = 32, 12
_RESAMPLES = 20


class MemoryModel(Protocol):
    """What predicts the peak of a pack."""

    def estimate(self, pack: Sequence[HyperParameters]) -> MemoryEstimate: ...


def sensitivity(
    chosen: HyperParameters, results: Sequence[TrialResult], subject: Subject, memory: MemoryModel
) -> Sensitivity:
    """Every hyper-parameter that the search varied on all rows, by its effect on the loss.

    Runs that diverged enter nothing; `results` holds no run that is not believed (`search.field.believed`).
    """
    results = [result for result in results if result.finished]
    peers = _peers(chosen, results)
    settings = [_coordinates(result.trial.hyper_parameters) for result in peers]
    losses = [result.nll for result in peers]
    tried = {name: tuple(sorted({setting[name] for setting in settings})) for name in _NAMES}
    varied = [name for name in _NAMES if len(tried[name]) > 1]
    wanted = maths.wanted_trials(len(varied))
    enough = bool(varied) and len(peers) >= wanted
    shares = _shares(varied, settings, losses) if enough else {}
    noise = _seed_noise(peers, subject)
    impacts = []
    for name in varied:
        contrast = maths.contrast(name, settings, losses, _coordinates(chosen))
        impact = Impact(
            name=name,
            tried=tried[name],
            effect=None if contrast is None else contrast.effect,
            effect_interval=None if contrast is None else _interval(contrast, peers, noise, subject),
            share=shares[name][0] if enough else None,
            share_interval=shares[name][1] if enough else None,
            memory_bytes=_memory(chosen, name, tried[name], memory),
            time_factor=_time(chosen, name, tried[name], subject),
        )
        impacts.append(impact)
    if not any(each.name == "learning_rate" and each.effect is not None for each in impacts):
        impacts = [each for each in impacts if each.name != "learning_rate"] + _of_part(results)
    groups = [[result.nll for result in group] for group in _repeats(peers).values()]
    return Sensitivity(
        impacts=tuple(sorted(impacts, key=lambda each: (-(each.share or 0.0), -(each.effect or 0.0)))),
        trials=len(peers),
        wanted_trials=wanted,
        interactions=max(0.0, 1 - sum(share for share, _ in shares.values())) if enough else None,
        noise=maths.noise_share(groups) if enough else None,
    )


def _repeats(results: Sequence[TrialResult]) -> dict[HyperParameters, list[TrialResult]]:
    """Trials by their setting."""
    groups: dict[HyperParameters, list[TrialResult]] = defaultdict(list)
    for result in results:
        groups[result.trial.hyper_parameters].append(result)
    return groups


def _seed_noise(peers: Sequence[TrialResult], subject: Subject) -> SeedNoise:
    """The noise of one run's NLL, pooled over all settings that were repeated."""
    groups = [group for group in _repeats(peers).values() if len(group) > 1]
    noise = pool_seed_noise([[result.nll for result in group] for group in groups])
    if not noise.known or not _have_rows(peers):
        return noise
    weights = _weights(subject)
    parts = [row_variance(_rows(group), weights) * (len(group) - 1) for group in groups]
    return replace(noise, rows=sum(parts) / noise.degrees)


def _interval(
    contrast: maths.Contrast, peers: Sequence[TrialResult], noise: SeedNoise, subject: Subject
) -> tuple[float, float] | None:
    """Interval of a contrast's effect: paired by validation row where the trials have kept their rows."""
    worst, best = ([peers[number] for number in side] for side in (contrast.worst, contrast.best))
    if _have_rows([*worst, *best]):
        found = compare_nll(_rows(worst), _rows(best), _weights(subject), noise, margin=0.0)
    else:
        found = compare_means([x.nll for x in worst], [x.nll for x in best], noise, margin=0.0)
    return maths.range_interval(found, contrast.values)


def _have_rows(results: Sequence[TrialResult]) -> bool:
    return all(result.example_nll is not None for result in results)


def _rows(results: Sequence[TrialResult]) -> maths.Floats:
    """[trials, validation rows] summed NLL."""
    return np.array([result.example_nll for result in results], np.float64)


def _weights(subject: Subject) -> maths.Floats:
    return subject.validation.weights


def _of_part(results: Sequence[TrialResult]) -> list[Impact]:
    """The learning rate's effect from the trials that screened it on part of the rows, at the rank with most of them.

    Part of the rows hides what a rank is worth, not what a learning rate is.
    """
    groups: dict[tuple[float, HyperParameters], list[TrialResult]] = defaultdict(list)
    for result in results:
        if result.trial.fraction < FULL:
            alike = replace(result.trial.hyper_parameters, learning_rate=1.0)
            groups[result.trial.fraction, alike].append(result)
    found = []
    for (fraction, _), group in groups.items():
        settings = [_coordinates(result.trial.hyper_parameters) for result in group]
        losses = [result.nll for result in group]
        contrast = maths.contrast("learning_rate", settings, losses, settings[0])
        if contrast is not None:
            tried = tuple(sorted({setting["learning_rate"] for setting in settings}))
            found.append(
                Impact(name="learning_rate", tried=tried, effect=contrast.effect, effect_rows=fraction)
            )
    return [max(found, key=lambda each: len(each.tried))] if found else []


def _peers(chosen: HyperParameters, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Trials of the search on all rows, with the epochs of the chosen setting and the commonest targets."""
    full = [
        result
        for result in results
        if result.asked.stage is not Stage.FINAL
        and result.trial.fraction >= FULL
        and result.trial.hyper_parameters.epochs == chosen.epochs
    ]
    groups: dict[Any, list[TrialResult]] = defaultdict(list)
    for result in full:
        values = result.trial.hyper_parameters
        groups[values.target_modules, values.rank_pattern].append(result)
    return max(groups.values(), key=len) if groups else []


def _coordinates(values: HyperParameters) -> dict[str, float]:
    found = {name: float(getattr(values, name)) for name in _NAMES if name != _RATIO}
    return found | {_RATIO: round(values.alpha_ratio, 9)}


def _set(values: HyperParameters, name: str, value: float) -> HyperParameters:
    """Another value of one hyper-parameter; alpha moves with the rank."""
    if name == _RATIO:
        return replace(values, lora_alpha=value * values.r)
    if name == "r":
        return replace(values, r=int(value), lora_alpha=values.alpha_ratio * value)
    changed: dict[str, Any] = {name: int(value) if name == "batch_size" else value}
    return replace(values, **changed)


def _memory(chosen: HyperParameters, name: str, tried: tuple[float, ...], memory: MemoryModel) -> int:
    ends = [memory.estimate([_set(chosen, name, value)]).total for value in (tried[0], tried[-1])]
    return ends[1] - ends[0]


def _time(chosen: HyperParameters, name: str, tried: tuple[float, ...], subject: Subject) -> float:
    launch = maths.LAUNCH_TOKENS["cpu" if subject.on_cpu else "cuda"]
    first, last = (
        maths.relative_time(
            subject.profile,
            _set(chosen, name, value),
            mean_length=float(subject.train.lengths.mean()),
            launch_tokens=launch,
        )
        for value in (tried[0], tried[-1])
    )
    return last / first


def _shares(
    varied: Sequence[str], settings: Sequence[Mapping[str, float]], losses: Sequence[float]
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Share of the variance and its interval, by hyper-parameter."""
    target = np.asarray(losses)
    columns = {name: maths.coordinates([setting[name] for setting in settings]) for name in varied}
    found = _fanova(columns, np.arange(len(target)), target, trees=_TREES, seed=0)
    random = np.random.default_rng(0)
    resampled = [
        _fanova(
            columns,
            random.integers(0, len(target), len(target)),
            target,
            trees=_TREES_OF_RESAMPLES,
            seed=1 + i,
        )
        for i in range(_RESAMPLES)
    ]
    ends = {name: np.quantile([each[name] for each in resampled], [0.025, 0.975]).tolist() for name in varied}
    return {name: (found[name], (ends[name][0], ends[name][1])) for name in varied}


def _fanova(
    columns: Mapping[str, tuple[maths.Floats, tuple[float, float]]],
    rows: np.ndarray,
    target: np.ndarray,
    *,
    trees: int,
    seed: int,
) -> dict[str, float]:
    """Optuna's fANOVA; it weighs boxes on the plain scale, so it is given logarithms, not log distributions."""
    import optuna

    boxes = {
        name: optuna.distributions.FloatDistribution(low, high) for name, (_, (low, high)) in columns.items()
    }
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: float(values[row]) for name, (values, _) in columns.items()},
                distributions=boxes,
                value=float(target[row]),
            )
            for row in rows
        ]
    )
    if np.ptp(target[rows]) == 0:
        return dict.fromkeys(columns, 0.0)
    with catch_warnings():
        simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `normalize`
        shares = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=seed),
            params=list(columns),
            normalize=False,
        )
    return {name: float(shares[name]) for name in columns}
