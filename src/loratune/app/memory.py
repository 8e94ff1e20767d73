"""What a pack needs and what fits, from a configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any, cast, get_args

from loratune.costs.execution import Device
from loratune.costs.layers_again import layers_recomputed
from loratune.costs.limits import CARDS, Card, Limits, device_bytes, execution_of, smallest_card
from loratune.costs.memory import MemoryEstimate, Verdict
from loratune.errors import InputError, ModelError
from loratune.maths.sizes import CAPACITY
from loratune.maths.targets import check_rank, select_targets
from loratune.model.device import DType, parse_memory, pick_device
from loratune.model.nf4 import NF4
from loratune.model.profile import profile_from_config
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_memory
from loratune.reporting.wording import count, size
from loratune.values import (
    ALL_LINEAR,
    Classifier,
    HyperParameters,
    ModelProfile,
)
from loratune.values.tasks import CAUSAL, TASKS, Task

_SHORTEST = 16
"""Tokens below which a shorter row is no advice."""
NOTHING_FITS = 4
"""Exit code where no advice helps either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What else to ask for, so that it fits."""

    options: str
    """As at the command line: `--trials 4`."""
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
    """Of as many trials, however small micro-batches must be; as all limits 0 where nothing fits."""
    largest_pack: int
    """Trials side by side, however small micro-batches must be."""
    largest_micro_batch: int
    """Tokens that a micro-batch of this pack may hold."""
    card: Card | None
    """The smallest common one on which it fits; None where no single card does."""
    recomputed: int = 0
    """Layers whose activations are computed again."""
    layers: int = 0
    """Of the model."""
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


def estimate_memory(
    *,
    model: str | Path,
    rank: int = 16,
    batch_size: int = 8,
    max_length: int = 512,
    trials: int = 1,
    target_modules: Sequence[str] = ALL_LINEAR,
    dtype: str = "bfloat16",
    device: str = "auto",
    device_memory: str | None = None,
    recompute: str = "auto",
    task: str = CAUSAL.name,
) -> MemoryAnswer:
    """What it takes to train `trials` trials of one kind side by side, and what fits instead; reads no weights.

    Args:
        model: Model folder, config.json, .gguf file or hub name.
        rank, batch_size, target_modules: Of every trial.
        max_length: Tokens of the longest row.
        trials: Trials trained at once.
        dtype: Base weights: "bfloat16", "float32" or "nf4".
        device: "cpu", "cuda" (also without one) or "auto": this machine's, or a GPU where `device_memory` is given.
        device_memory: Of the device, e.g. "24GiB"; by default what this machine's has.
        recompute: Layers whose activations are computed again: "auto" (as few as let it fit), "none", "all", a number.
        task: "causal", "preference" (the batch size counts pairs), or "classification": with a head of two classes,
            which every trial trains.

    Raises `InputError` for values out of range, `ModelError` for a model that cannot be read.
    """
    if max_length < 2:
        raise InputError(f"--max-length must be at least 2, got {max_length}; give e.g. 512.")
    if not 1 <= trials <= CAPACITY:
        raise InputError(
            f"--trials must be 1 to {CAPACITY}, which is what one pack holds, got {trials}; try --trials {CAPACITY}."
        )
    kinds = get_args(DType)
    if dtype not in kinds:
        raise InputError(
            f"--dtype must be one of {', '.join(kinds)}, got {dtype!r}; give e.g. --dtype bfloat16."
        )
    if task not in TASKS:
        raise InputError(
            f"--task must be one of {', '.join(TASKS)}, got {task!r}; give e.g. --task {CAUSAL.name}."
        )
    learnt = TASKS[task]
    rows = learnt.group  # no micro-batch separates them
    classifier = Classifier() if learnt.has_answers else None
    trial = HyperParameters(
        r=rank,
        lora_alpha=2 * rank,
        learning_rate=1e-3,
        batch_size=rows * batch_size,
        target_modules=tuple(target_modules),
    )
    kind, available = _device(device, device_memory)
    profile = _profile(str(model), dtype, kind, classifier)
    check_rank(select_targets(profile.targets, trial.target_modules), rank)
    limits = Limits(
        model=profile,
        max_length=max_length,
        micro_batch_tokens=rows * max_length,
        device_bytes=available,
        execution=execution_of(kind),
        recompute=layers_recomputed(recompute, profile.layers),
    )
    recomputed = _layers_again(limits, [trial] * trials)
    settled = replace(limits, recompute=recomputed)
    estimate = settled.fullest([trial] * trials)
    fits = estimate.fits(available)
    return MemoryAnswer(
        model=str(model),
        estimate=estimate,
        device_bytes=available,
        device=kind,
        micro_batch_tokens=limits.micro_batch_tokens,
        largest_batch=limits.largest_batch(trial) // rows,
        largest_rank=limits.largest_rank(trial, trials),
        largest_pack=limits.largest_pack(trial, CAPACITY),
        largest_micro_batch=limits.largest_micro_batch([trial] * trials),
        card=_card(settled, [trial] * trials),
        recomputed=recomputed,
        layers=profile.layers,
        changes=()
        if fits
        else tuple(_changes(limits, trial, trials, _packed(str(model), dtype, kind, learnt))),
        notes=profile.notes,
    )


def _layers_again(limits: Limits, pack: list[HyperParameters]) -> int:
    """As few layers as make it fit; 0 where even all do not, so that the memory needed is reported without any."""
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


def _device(name: str, memory: str | None) -> tuple[Device, int]:
    """Its kind and its bytes; a device that is not here needs its memory named."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda, got {name!r}; give e.g. --device cuda.")
    if memory is not None:
        return ("cpu" if name == "cpu" else "cuda"), parse_memory(memory)
    here = pick_device(name)
    kind: Device = "cuda" if here.type == "cuda" else "cpu"
    return kind, device_bytes(None, here, execution_of(kind))


def memory_command(*, as_json: bool, **options: Any) -> int:
    """Print the parts and what fits, or the document; returns the exit code."""
    answer = estimate_memory(**options)
    code = NOTHING_FITS if answer.verdict == "does not fit" and not answer.changes else 0
    if as_json:
        print(dumps(answer.to_dict()))
        return code
    console = Screen()
    for note in answer.notes:
        console.print(note, highlight=False, markup=False)
    print_memory(console, answer.estimate, answer.device_bytes, answer.recomputed, answer.layers)
    for line in (*_advice(answer), *_limits_lines(answer)):
        console.print(line, highlight=False, markup=False)
    return code


def _advice(answer: MemoryAnswer) -> Iterator[str]:
    """The card for what was asked, and what fits here instead."""
    if answer.card is not None:
        yield f"The smallest common card on which it fits: {_named(answer.card)}."
    else:
        yield f"On no single common card does it fit, the largest being {_named(CARDS[-1])}."
    for change in answer.changes:
        card = "" if change.card is None else f", on a GPU from {change.card.name} on"
        yield f"It fits with {change.options}: {size(change.total)}{card}."


def _named(card: Card) -> str:
    return f"{card.name}, of which a process sees {size(card.bytes)}"


def _limits_lines(answer: MemoryAnswer) -> list[str]:
    fitting = [
        text
        for limit, text in (
            (answer.largest_rank, f"rank {answer.largest_rank}"),
            (answer.largest_pack, f"{answer.largest_pack} such trials side by side"),
            (
                answer.largest_batch,
                f"{answer.largest_batch} rows of one trial at once (larger batches are cut into micro-batches)",
            ),
            (answer.largest_micro_batch, f"micro-batches of {count(answer.largest_micro_batch)} tokens"),
        )
        if limit
    ]
    if not fitting:
        return ["Not even one row at rank 1 fits with the other options as given."]
    return [
        f"The figures are what is needed on a {'GPU' if answer.device == 'cuda' else 'CPU'}: micro-batches of one row, "
        f"{count(answer.micro_batch_tokens)} tokens. More memory is used for larger ones, which are faster.",
        "What fits with room to spare, each with the other options as given and micro-batches as small as one row: "
        f"{'; '.join(fitting)}.",
    ]
