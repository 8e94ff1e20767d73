"""Trials as loads on memory and time, and the plan that packs them. Knows trials and rows; trains nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt

from loratune.costs.limits import Limits
from loratune.costs.packing import TrialLoad
from loratune.costs.spread import SpreadPlan, spread
from loratune.costs.step_time import StepTime
from loratune.data.batches import total_steps
from loratune.values import HyperParameters, Trial

_CHOICES = 4
"""Numbers of layers that are compared, beside the least."""


@dataclass(frozen=True, slots=True)
class LivePack:
    """Trials that train side by side."""

    trials: tuple[HyperParameters, ...]
    tokens: float
    """Mean tokens of a step of all of them."""
    kept: int = 0
    """Bytes that they hold beyond what they train with."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """What fits side by side here, and how long it takes."""

    limits: Limits
    times: StepTime
    rows: int
    """Training rows."""
    tokens: int
    """Tokens of all training rows."""
    slots: int
    """Trials in a pack, at most."""
    evaluated_tokens: int = 0
    """Tokens of the largest micro-batch of an evaluation; 0: nothing is evaluated."""
    dora: float = 1.0
    """A DoRA trial's seconds in those of a plain one; 1 where times were measured with DoRA trials."""
    spread: float = 0.0
    """Standard deviation of the tokens of a row, as a share of their mean."""
    devices: int = 1
    """Devices, each with a base model of its own; limits, times and slots are those of one."""
    beyond: tuple[int, ...] = ()
    """Bytes of memory that each device has beyond the limits, where they differ."""

    def load(self, trial: Trial) -> TrialLoad:
        """What one trial asks for; a row counts the mean tokens. A step of DoRA counts as `dora` steps."""
        chosen = trial.hyper_parameters
        rows = ceil(round(trial.fraction * self.rows, 9))
        steps = total_steps(rows, chosen.batch_size, chosen.epochs)
        trained = chosen.epochs * rows * self.tokens / self.rows
        priced = ceil(steps * self.dora) if chosen.use_dora else steps
        return TrialLoad(steps=priced, tokens=trained / steps, memory=self.limits.adapter_bytes(chosen))

    def equal_loads(self, trials: int, trained_tokens: float, recipe: HyperParameters) -> list[TrialLoad]:
        """Equal loads of trials of one recipe that train `trained_tokens` together: of a stage not known in detail."""
        tokens = recipe.batch_size * self.tokens / self.rows
        steps = max(1, ceil(trained_tokens / max(1, trials) / tokens))
        memory = self.limits.adapter_bytes(recipe)
        return [TrialLoad(steps=steps, tokens=tokens, memory=memory)] * trials

    def plan(self, trials: Sequence[Trial]) -> SpreadPlan:
        """The plan of these trials."""
        room = self.room([trial.hyper_parameters for trial in trials])
        return self.plan_loads([self.load(trial) for trial in trials], room)

    def room(self, trials: Sequence[HyperParameters]) -> int:
        """Bytes, at least one, that the adapters of those of these trials may hold which train side by side.

        The more layers compute their activations again, the more trials fit, and the longer a step takes: the fastest
        number of layers is taken.
        """
        if not trials:
            return 1
        choices = [replace(self.limits, recompute=layers) for layers in self._layers_again(trials)]
        return max(1, max(choices, key=lambda limits: self._rate(limits, trials)).room(trials))

    def _layers_again(self, trials: Sequence[HyperParameters]) -> Sequence[int]:
        """How many layers may compute their activations again: from what each of the trials needs alone on."""
        limits = self.limits
        if limits.recompute is not None:
            return [limits.recompute]
        least = max(limits.recomputed_when_fullest([trial]) for trial in set(trials))
        layers = limits.model.layers
        return range(least, layers + 1, max(1, (layers - least) // _CHOICES))

    def _rate(self, limits: Limits, trials: Sequence[HyperParameters]) -> float:
        """Tokens per second of the trials that there is room for."""
        memory = sum(limits.adapter_bytes(trial) for trial in trials) / len(trials)
        rows = sum(trial.batch_size for trial in trials) / len(trials)
        beside = max(1.0, min(limits.room(trials) // memory, len(trials), self.slots))
        tokens = beside * rows * self.tokens / self.rows
        return tokens / (self.times.seconds(tokens) * limits.time_again(limits.recompute or 0))

    def plan_loads(self, loads: Sequence[TrialLoad], room: int) -> SpreadPlan:
        """The plan of loads that may hold `room` bytes together.

        A trial that takes more fits only tightly and fills the room: it runs alone.
        """
        filling = [replace(load, memory=min(load.memory, room)) for load in loads]
        plan = spread(filling, devices=self.devices, slots=self.slots, memory=room, times=self.times)
        if not self.beyond:
            return plan
        parts = zip(plan.parts, self.beyond, strict=True)
        return replace(plan, parts=tuple(replace(part, memory=part.memory + more) for part, more in parts))

    def peak_bytes(self, packs: Iterable[LivePack]) -> int:
        """Predicted peak of packs that train one after the other in a process that evaluates between their steps.

        Recorded steps share memory that is held for good, as much as the largest of them needs. Beside it stands what
        a step takes that is not recorded, the first of its kind among them (`engine.graphs`), or an evaluation, and
        what evaluations leave of the allocator's memory in pieces.
        """
        limits, execution = self.limits, self.limits.execution
        evaluating = limits.evaluating(self.evaluated_tokens)
        kinds: set[int] = set()
        pool = most = 0
        for pack in packs:
            tokens = min(self._largest_step(pack), limits.largest_line)
            estimate = limits.fullest(pack.trials, step_tokens=tokens)
            steady = estimate.total - estimate.transient + pack.kept
            kind = execution.rank_block(max(trial.r for trial in pack.trials))
            if tokens > limits.recorded_tokens:
                if limits.recorded_tokens:  # smaller steps between
                    smaller = limits.fullest(pack.trials, step_tokens=limits.recorded_tokens)
                    pool = max(pool, smaller.transient)
                step = pool + estimate.transient
            else:
                step = max(pool, estimate.transient) if kind in kinds else pool + estimate.transient
                pool = max(pool, estimate.transient)
            kinds.add(kind)
            most = max(most, steady + step, steady + pool + evaluating)
        return most + (execution.evaluation_slack if self.evaluated_tokens else 0)

    def _largest_step(self, pack: LivePack) -> float:
        """Tokens: the mean, and three standard deviations of that number of rows."""
        rows = sum(trial.batch_size for trial in pack.trials)
        return pack.tokens * (1 + 3 * self.spread / sqrt(rows))
