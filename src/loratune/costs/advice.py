"""What a pack of equal trials needs of a device, and what else to ask for where it does not fit.

From a configuration alone; knows no weights and no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from loratune.costs.execution import Device
from loratune.costs.layers_again import layers_recomputed
from loratune.costs.limits import Card, Limits, execution_of, smallest_card
from loratune.costs.memory import MemoryEstimate, Verdict
from loratune.errors import ModelError
from loratune.maths.sizes import CAPACITY
from loratune.maths.targets import check_rank, select_targets
from loratune.model.device import DType
from loratune.model.nf4 import NF4
from loratune.model.profile import profile_from_config
from loratune.values import Classifier, HyperParameters, ModelProfile
from loratune.values.tasks import Task

_SHORTEST = 16
"""Tokens below which a shorter row is no advice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What else to ask for, so that it fits."""

    options: str
    """The options on the command line: `--trials 4`."""
    total: int
    """Bytes that it then takes."""
    card: Card | None
    """The smallest that would do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryAnswer:
    """What a pack of equal trials needs, and what fits instead.

    What is needed does not depend on the device: micro-batches are as small as one row. With more memory they are
    larger, which is faster.
    """

    model: str
    estimate: MemoryEstimate
    device_bytes: int
    device: Device
    micro_batch_tokens: int
    """What the estimate assumes a micro-batch to hold."""
    largest_batch: int
    """Rows of one trial in a single micro-batch; larger batches are cut into several."""
    largest_rank: int
    """The largest rank for this number of trials, with micro-batches of any size; 0, like all limits, if none fits."""
    largest_pack: int
    """Trials side by side, however small micro-batches must be."""
    largest_micro_batch: int
    """Tokens that a micro-batch of this pack may hold."""
    card: Card | None
    """The smallest common one on which it fits; None where no single card does."""
    recomputed: int = 0
    """Layers whose activations are computed again."""
    layers: int = 0
    """Layers of the model."""
    changes: tuple[Change, ...] = ()
    """Where it does not fit: what makes it fit, each by itself, else all together."""
    notes: tuple[str, ...] = ()
    """What is unusual about adapting the model."""

    @property
    def verdict(self) -> Verdict:
        return self.estimate.verdict(self.device_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; bytes."""
        return {
            "model": self.model,
            "parts": self.estimate.parts,
            "total": self.estimate.total,
            "device": self.device_bytes,
            "device_kind": self.device,
            "verdict": self.verdict,
            "micro_batch_tokens": self.micro_batch_tokens,
            "largest_batch": self.largest_batch,
            "largest_rank": self.largest_rank,
            "largest_trials": self.largest_pack,
            "largest_micro_batch_tokens": self.largest_micro_batch,
            "recomputed_layers": self.recomputed,
            "layers": self.layers,
            "smallest_card": None if self.card is None else asdict(self.card),
            "changes": [asdict(change) for change in self.changes],
            "notes": self.notes,
        }


def memory_answer(
    model: str,
    trial: HyperParameters,
    trials: int,
    *,
    max_length: int,
    dtype: str,
    device: Device,
    available: int,
    recompute: str,
    task: Task,
) -> MemoryAnswer:
    """What `trials` such trials need on a device with `available` bytes, and what fits instead.

    Args:
        trial: Of a task whose rows belong together, the batch size counts rows.
        max_length: Tokens of the longest row.
        dtype: Of the base weights.
        recompute: As `--recompute` has it.

    Raises `InputError` for a rank or a number of layers that the model does not have, `ModelError` for a model that
    cannot be read.
    """
    rows = task.group  # no micro-batch separates them
    profile = _profile(model, dtype, device, Classifier() if task.has_answers else None)
    check_rank(select_targets(profile.targets, trial.target_modules), trial.r)
    limits = Limits(
        model=profile,
        max_length=max_length,
        micro_batch_tokens=rows * max_length,
        device_bytes=available,
        execution=execution_of(device),
        recompute=layers_recomputed(recompute, profile.layers),
    )
    pack = [trial] * trials
    recomputed = _layers_again(limits, pack)
    settled = replace(limits, recompute=recomputed)
    estimate = settled.fullest(pack)
    changes: tuple[Change, ...] = ()
    if not estimate.fits(available):
        changes = tuple(_changes(limits, trial, trials, _packed(model, dtype, device, task)))
    return MemoryAnswer(
        model=model,
        estimate=estimate,
        device_bytes=available,
        device=device,
        micro_batch_tokens=limits.micro_batch_tokens,
        largest_batch=limits.largest_batch(trial) // rows,
        largest_rank=limits.largest_rank(trial, trials),
        largest_pack=limits.largest_pack(trial, CAPACITY),
        largest_micro_batch=limits.largest_micro_batch(pack),
        card=_card(settled, pack),
        recomputed=recomputed,
        layers=profile.layers,
        changes=changes,
        notes=profile.notes,
    )


def _layers_again(limits: Limits, pack: list[HyperParameters]) -> int:
    """The fewest layers that make it fit; 0 where even all do not, so that the memory reported is without any."""
    if limits.recompute is None and limits.fullest(pack).verdict(limits.device_bytes) == "does not fit":
        return 0
    return limits.recomputed_when_fullest(pack)


def _profile(model: str, dtype: str, kind: Device, classifier: Classifier | None = None) -> ModelProfile:
    packs = dtype == NF4
    computing = ("bfloat16" if kind == "cuda" else "auto") if packs else dtype
    where = "cpu" if kind == "cpu" else "auto"
    return profile_from_config(
        model, dtype=cast(DType, computing), device=where, packs=packs, classifier=classifier
    )


def _packed(model: str, dtype: str, kind: Device, task: Task) -> ModelProfile | None:
    """The same base in 4 bits; None where it is already, or cannot be (a .gguf file, a classifier)."""
    if dtype == NF4 or task.has_answers:
        return None
    try:
        return _profile(model, NF4, kind)
    except ModelError:
        return None


def _card(limits: Limits, pack: list[HyperParameters]) -> Card | None:
    """The smallest, as the engine runs on a GPU."""
    return smallest_card(replace(limits, execution=execution_of("cuda")).fullest(pack).fits)


def _changes(
    limits: Limits, trial: HyperParameters, trials: int, packed: ModelProfile | None
) -> Iterator[Change]:
    """What makes a pack fit, each change by itself; where none does, all of them together."""

    def change(options: str, changed: Limits, count: int, hp: HyperParameters = trial) -> Change:
        pack = [hp] * count
        settled = replace(changed, recompute=changed.recomputed_when_fullest(pack))
        return Change(options=options, total=settled.fullest(pack).total, card=_card(settled, pack))

    found = []
    if 0 < (count := limits.largest_pack(trial, trials)) < trials:
        found.append(change(f"--trials {count}", limits, count))
    if (length := limits.longest_row([trial] * trials)) >= _SHORTEST:
        found.append(change(f"--max-length {length}", limits.with_rows(length), trials))
    if 0 < (rank := limits.largest_rank(trial, trials)) < trial.r:
        found.append(change(f"--rank {rank}", limits, trials, replace(trial, r=rank)))
    four = None if packed is None else replace(limits, model=packed)
    if four is not None and four.fits([trial] * trials):
        found.append(change(f"--dtype {NF4}", four, trials))
    if found:
        yield from found
        return
    least = limits if four is None else four
    if (length := least.longest_row([trial])) >= _SHORTEST:
        words = [f"--dtype {NF4}"] * (four is not None) + ["--trials 1"] * (trials > 1)
        words += [f"--max-length {length}"] * (length < limits.max_length)
        yield change(" ".join(words), least.with_rows(length), 1)
