"""The exactness rule, checked on the user's own model: a mixed pack against plain PEFT, one trial at a time.

Beside every deviation stands the noise floor: how far PEFT is from itself when its rows are padded by a
few more tokens, or its batches cut into single rows. Knows nothing of the user's data; random tokens do.
"""

import copy
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
import torch

from loratune.data.table import TokenTable
from loratune.engine.machinery import Paths
from loratune.engine.pack import PackEngine
from loratune.engine.reference import Course, train_alone
from loratune.engine.slot import Slot
from loratune.model.base import BaseModel
from loratune.values import HyperParameters, Trial

_PADS = (7, 40)
_TOLERATED_NOISE = 3.0
_TOLERATED_ROUNDING = 2.0
"""Pack and PEFT are each that far from float32, each its own way: twice as far from each other at most."""
_ENTRY_STEP = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """How far two courses of one trial are apart."""

    loss: float
    """Largest relative difference of a step's loss."""
    norm: float
    """Relative difference between the norms of the whole adapter's change since its start."""
    weights: float
    """Norm of the difference between the adapters, relative to the norm of their change.

    Adam turns the sign of a vanishing gradient into a full step, so this one is large wherever anything
    rounds differently.
    """


_NONE = Deviation(loss=0.0, norm=0.0, weights=0.0)
_FLOOR = {
    torch.float64: Deviation(loss=1e-9, norm=1e-9, weights=1e-9),
    torch.float32: Deviation(loss=1e-5, norm=1e-5, weights=1e-4),
}
# Half precision promises rounding level only: products of other shapes round differently.
_HALF_FLOOR = Deviation(loss=5e-3, norm=5e-3, weights=5e-2)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCheck:
    """One trial of the pack against PEFT."""

    trial: Trial
    pack: Deviation
    """Packed engine against PEFT."""
    noise: Deviation
    """PEFT against itself: with other padding, and with each batch cut into rows; the largest of them."""
    floor: Deviation
    """Deviations below this count as rounding whatever the noise was."""
    format: Deviation | None = None
    """The rounding of half precision itself: PEFT on the same base weights in float32 against PEFT.

    Padding hardly changes rounding; kernels that round at other places (a fused norm, say) do.
    """

    @property
    def holds(self) -> bool:
        """Whether the pack deviates by at most three times the noise, or twice what the format rounds."""
        rounding = self.format or _NONE
        return all(
            found <= max(floor, _TOLERATED_NOISE * noise, _TOLERATED_ROUNDING * rounded)
            for found, noise, floor, rounded in zip(
                astuple(self.pack), astuple(self.noise), astuple(self.floor), astuple(rounding), strict=True
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfCheck:
    """The whole comparison."""

    steps: int
    trials: tuple[TrialCheck, ...]
    paths: tuple[str, ...]
    """Which of the engine's paths were taken, and why; one line each."""

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.trials)


def mixed_trials(base: BaseModel) -> tuple[Trial, ...]:
    """Six trials that differ in rank, alpha, learning rate, batch, decay, dropout, targets, seed, length.

    One of them has other ranks in its first and last layer.
    """
    names = list(dict.fromkeys(name.rpartition(".")[2] for name, _, _ in base.profile.targets))
    some = tuple(names[: max(1, len(names) // 2)])
    others = tuple(names[len(names) // 2 :])
    limit = base.profile.largest_rank
    pattern = ((base.profile.targets[0][0], min(9, limit)), (base.profile.targets[-1][0], 1))

    def trial(seed: int, r: int, alpha: float, **changes: object) -> Trial:
        facts: dict[str, object] = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2.0}
        return Trial(
            hyper_parameters=HyperParameters(r=min(r, limit), lora_alpha=alpha, **facts | changes),  # type: ignore[arg-type]
            seed=seed,
        )

    return (
        trial(0, 1, 2),
        trial(1, 4, 8, learning_rate=3e-3, batch_size=2, weight_decay=0.1, rank_pattern=pattern),
        trial(2, 8, 8, target_modules=some, warmup_ratio=0.2),
        trial(3, 16, 32, lora_dropout=0.1, learning_rate=5e-4),
        trial(4, 32, 48, batch_size=7, epochs=1.5, warmup_ratio=0.0),
        trial(5, 8, 16, target_modules=others, lora_dropout=0.3, batch_size=1),
    )


def random_table(vocabulary: int, *, rows: int = 48, longest: int = 24, seed: int = 0) -> TokenTable:
    """Rows of random tokens of mixed lengths, the last third of each supervised."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, longest + 1, rows)
    return TokenTable.from_rows(
        [
            (random.integers(0, vocabulary, n).tolist(), (np.arange(n) >= n - max(1, n // 3)).tolist())
            for n in lengths
        ]
    )


def train_pack(engine: PackEngine, trials: Sequence[Trial], steps: int) -> list[tuple[Slot, torch.Tensor]]:
    """Train `steps` steps of each trial in one pack, the last trial entering late; with initial weights.

    Micro-batches are small, so that trials are mixed and cut.
    """
    slots = [engine.slot(trial) for trial in trials]
    initial = [slot.adapter.weights.clone() for slot in slots]
    with engine.attached() as step:
        for now in range(steps + _ENTRY_STEP):
            present = slots if now >= _ENTRY_STEP else slots[:-1]
            live = [slot for slot in present if slot.step < steps and not slot.done]
            if live:
                step(live)
    return list(zip(slots, initial, strict=True))


def selfcheck(
    base: BaseModel,
    table: TokenTable | None = None,
    *,
    steps: int = 8,
    trials: Sequence[Trial] = (),
    paths: Paths | None = None,
) -> SelfCheck:
    """Compare a pack of mixed trials with plain PEFT on `base`, which is left as it was.

    `table` holds the rows to train on; random ones by default. `paths` None takes those of real runs.
    """
    chosen = tuple(trials) or mixed_trials(base)
    rows = random_table(base.profile.vocabulary) if table is None else table
    engine = PackEngine(
        base=base,
        train=rows,
        validation=rows,
        study_seed=0,
        cost=lambda trial: 0.0,
        max_tokens_per_micro_batch=128,
        launch_tokens=16,
        paths=paths,
    )
    wide = copy.deepcopy(base.model).float() if base.dtype in (torch.bfloat16, torch.float16) else None
    checks = []
    for slot, initial in train_pack(engine, chosen, steps):
        targets = slot.adapter.layout.targets
        batches = engine.batches(slot.trial)
        course = partial(train_alone, base.model, slot.trial, targets, rows, batches, steps=steps)
        reference = course()
        others = [course(pad=pad) for pad in _PADS] + [course(rows_at_once=1)]
        in_float32 = None
        if wide is not None:
            wider = train_alone(wide, slot.trial, targets, rows, batches, steps=steps)
            in_float32 = deviation(wider, reference, initial)
        packed = Course(losses=np.array(slot.losses), weights=slot.adapter.weights)
        checks.append(
            TrialCheck(
                trial=slot.trial,
                pack=deviation(packed, reference, initial),
                noise=_largest([deviation(other, reference, initial) for other in others]),
                floor=_FLOOR.get(base.dtype, _HALF_FLOOR),
                format=in_float32,
            )
        )
    return SelfCheck(steps=steps, trials=tuple(checks), paths=engine.chosen_paths.lines())


def deviation(found: Course, expected: Course, initial: torch.Tensor) -> Deviation:
    """How far `found` is from `expected`; NaN where the courses differ in being finite."""
    loss = np.abs(found.losses / expected.losses - 1).max()
    change = torch.linalg.vector_norm(expected.weights - initial)
    other = torch.linalg.vector_norm(found.weights - initial)
    difference = torch.linalg.vector_norm(found.weights - expected.weights)
    return Deviation(
        loss=float(loss), norm=abs(float(other / change) - 1), weights=float(difference / change)
    )


def _largest(deviations: Sequence[Deviation]) -> Deviation:
    """Each figure's largest value."""
    losses, norms, weights = zip(*(astuple(each) for each in deviations), strict=True)
    return Deviation(loss=max(losses), norm=max(norms), weights=max(weights))
