"""One trial's place in a pack: its adapter, optimiser, schedule and batches.

Knows nothing of the base model or of the other slots.
"""

from collections import deque
from collections.abc import Sequence
from copy import copy
from math import ceil, isfinite, log

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.graph import increment_version

from loratune.data.batches import Rows, TrialBatches
from loratune.engine.loraplus import LoraPlus
from loratune.engine.memory import Parked, free
from loratune.lora.dropout import row_keys
from loratune.lora.layout import Adapter
from loratune.lora.segments import PackMember, Segment
from loratune.values import HyperParameters, Trial

_DECAY = 0.9
_ROWS_PER_DECAY = 16
_REFERENCE_ROWS = 64
_FEWEST_STEPS = 10
_RISE = 0.5
_SKIPPED_IN_A_ROW = 3
_SKIPPED_SHARE = 0.1


class DivergenceGuard:
    """Watches one trial's training loss (nats per supervised token), step by step.

    A step whose loss or gradient is not finite is skipped by the optimiser; a row that overflows is not the
    trial's fault. Diverged means: more such steps than 3 in a row or than one and a tenth of all; a loss
    above twice ln(vocabulary), far worse than guessing; or, after 10 steps, a moving average more than 0.5
    nats above where training began. The average decays by 0.9 per 16 rows (per step in larger batches) and
    the beginning is the mean over the first 64 rows (at least one step), so that a batch of one row does not
    raise a false alarm.
    """

    def __init__(self, *, batch_size: int, vocabulary: int) -> None:
        self._decay = _DECAY ** min(1.0, batch_size / _ROWS_PER_DECAY)
        self._reference_steps = ceil(_REFERENCE_ROWS / batch_size)
        self._ceiling = 2 * log(vocabulary)
        self._steps = 0
        self._finite_steps = 0
        self._skipped_in_a_row = 0
        self._reference = 0.0
        self._average = 0.0

    def verdict(self, loss: float, gradient_norm: float) -> str:
        """Why the trial has diverged, or an empty string; to be called once per step.

        An empty string does not mean that the numbers are finite: the caller skips the update where they are
        not.
        """
        self._steps += 1
        if not isfinite(loss) or not isfinite(gradient_norm):
            self._skipped_in_a_row += 1
            skipped = self._steps - self._finite_steps
            too_many = skipped > 1 + _SKIPPED_SHARE * self._steps
            if too_many or self._skipped_in_a_row > _SKIPPED_IN_A_ROW:
                return f"loss {loss:.3g} and gradient norm {gradient_norm:.3g} at step {self._steps}"
            return ""
        self._skipped_in_a_row = 0
        self._finite_steps += 1
        if loss > self._ceiling:
            return f"loss {loss:.1f} at step {self._steps}, worse than guessing"
        if self._finite_steps <= self._reference_steps:
            self._reference += (loss - self._reference) / self._finite_steps
            self._average = self._reference
            return ""
        self._average += (1 - self._decay) * (loss - self._average)
        if self._finite_steps >= _FEWEST_STEPS and self._average > self._reference + _RISE:
            return f"mean loss rose from {self._reference:.2f} to {self._average:.2f} by step {self._steps}"
        return ""


MAX_GRADIENT_NORM = 1.0
BETAS, EPS = (0.9, 0.999), 1e-8
"""AdamW's: transformers' defaults."""


def warmup_steps(hyper_parameters: HyperParameters, total: int) -> int:
    """Steps of the linear rise, as transformers' Trainer rounds the ratio."""
    return ceil(round(hyper_parameters.warmup_ratio * total, 9))


def schedule(step: int, *, warmup: int, total: int) -> float:
    """Factor on the learning rate at `step` (0-based): transformers' linear schedule with warm-up."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


def clip_factors(norms: torch.Tensor) -> torch.Tensor:
    """What gradients of these norms are multiplied by, as in `torch.nn.utils.clip_grad_norm_` to norm 1."""
    return (MAX_GRADIENT_NORM / (norms + 1e-6)).clamp(max=1.0)


def optimiser(weights: torch.Tensor, hyper_parameters: HyperParameters) -> torch.optim.AdamW:
    """AdamW with transformers' defaults on one flat vector."""
    descent = torch.optim.AdamW(
        [weights],
        lr=hyper_parameters.learning_rate,
        betas=BETAS,
        eps=EPS,
        weight_decay=hyper_parameters.weight_decay,
        fused=True,
    )
    # fused steps do not count as changes by themselves; readers of a copy of the weights must know
    descent.register_step_post_hook(lambda *_: increment_version(weights))
    return descent


class Slot:
    """Trains one adapter; `step` counts the optimiser steps taken."""

    moves = True
    """Whether its gradient is clipped and its weights updated, as opposed to being kept for somebody else."""

    def __init__(self, trial: Trial, adapter: Adapter, batches: TrialBatches, *, vocabulary: int) -> None:
        hyper_parameters = trial.hyper_parameters
        self.trial = trial
        self.adapter = adapter
        self.member = PackMember(adapter, trainable=True)
        self.total_steps = len(batches)
        self.step = 0
        self.updates = 0
        """Steps that were not skipped."""
        self.losses: list[float] = []
        """Mean NLL of each step's batch, nats per supervised token."""
        self.gradient_norms: list[float] = []
        """Norm of each step's gradient before clipping."""
        self.trained_tokens = 0
        self.failure = ""
        """Why the trial has diverged; empty while it has not."""
        self.batches = batches
        self._coming = iter(batches)
        self._drawn: deque[Rows] = deque()
        """Rows of the coming steps that somebody has asked for."""
        self._parked: Parked | None = None
        self._warmup = warmup_steps(hyper_parameters, self.total_steps)
        self._optimiser = (
            optimiser(adapter.weights, hyper_parameters)
            if hyper_parameters.loraplus_lr_ratio == 1
            else LoraPlus(
                adapter,
                self.gradient,
                ratio=hyper_parameters.loraplus_lr_ratio,
                weight_decay=hyper_parameters.weight_decay,
                betas=BETAS,
                eps=EPS,
            )
        )
        self._guard = DivergenceGuard(batch_size=hyper_parameters.batch_size, vocabulary=vocabulary)

    @property
    def done(self) -> bool:
        """Whether it has taken all its steps or has diverged."""
        return self.step >= self.total_steps or bool(self.failure)

    def next_rows(self) -> Rows:
        """Rows of the coming step's batch; the same until that step is recorded."""
        rows = self.rows_of(0)
        assert rows is not None
        return rows

    def rows_of(self, ahead: int) -> Rows | None:
        """Rows of the batch `ahead` steps after the coming one; None where there is none."""
        while len(self._drawn) <= ahead and (rows := next(self._coming, None)) is not None:
            self._drawn.append(rows)
        return self._drawn[ahead] if ahead < len(self._drawn) else None

    def segment(self, start: int, stop: int) -> Segment:
        """Its tokens [start, stop) of a micro-batch."""
        return Segment(member=self.member, start=start, stop=stop, dropout=self.member.dropout > 0)

    def row_keys(self, step: int, rows: Rows) -> npt.NDArray[np.int32]:
        """[rows] dropout keys of `rows`, numbers within that step's batch."""
        return row_keys(self.trial.seed, step, rows)

    @property
    def one_rate(self) -> bool:
        """Whether all its numbers move at the same rate."""
        return not isinstance(self._optimiser, LoraPlus)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the coming step."""
        factor = schedule(self.step, warmup=self._warmup, total=self.total_steps)
        return self.trial.hyper_parameters.learning_rate * factor

    @property
    def gradient(self) -> torch.Tensor:
        """[layout.size] the buffer that the backward passes add to."""
        assert self.member.gradient is not None
        return self.member.gradient

    def allocate(self) -> None:
        """Have the optimiser's moments now, by an update that is skipped: later ones need no memory."""
        self.update(torch.ones((), device=self.adapter.weights.device))

    def clip(self, factor: torch.Tensor) -> None:
        """Multiply the gradient by a scalar on the device; needs no memory, so it happens or it does not."""
        self.gradient.mul_(factor)

    def update(self, skipped: torch.Tensor) -> None:
        """Take the optimiser step and empty the gradient; as `clip`, it happens or it does not.

        Where the scalar `skipped`, on the device, is 1 and not 0 there is no step: a diverged trial keeps its
        last weights and moments. The host does not wait.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate * group.get("times", 1.0)
        # what torch's gradient scaler sets to skip a step
        self._optimiser.found_inf = skipped  # type: ignore[attr-defined]
        self.adapter.weights.grad = self.gradient
        self._optimiser.step()
        self.adapter.weights.grad = None
        self.gradient.zero_()

    def record(self, loss: float, gradient_norm: float, tokens: int) -> None:
        """Count the step just taken; after it `failure` says whether the trial has diverged."""
        self.failure = self._guard.verdict(loss, gradient_norm)
        self.losses.append(loss)
        self.gradient_norms.append(gradient_norm)
        self.trained_tokens += tokens
        self.step += 1
        self.updates += isfinite(loss) and isfinite(gradient_norm)
        self._drawn.popleft()

    @property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The optimiser's running means of gradients and of their squares, [layout.size] each."""
        if isinstance(self._optimiser, LoraPlus):
            return self._optimiser.moments
        state = self._optimiser.state[self.adapter.weights]
        return state["exp_avg"], state["exp_avg_sq"]

    def release(self) -> None:
        """Free what only further training needs."""
        free([self.gradient, *self.moments])

    def park(self, also: Sequence[torch.Tensor] = ()) -> None:
        """Put weights, moments and `also` aside, between two steps; `restore` brings them back."""
        self._parked = Parked([self.adapter.weights, *self.moments, *also], zeros=[self.gradient])

    def restore(self) -> None:
        """Be as before `park`, at other addresses; where memory does not suffice its error is raised, no more."""
        assert self._parked is not None
        self._parked.restore()
        self._parked = None
        self.member = copy(self.member)  # a new one for those who have noted the addresses of its tensors
