"""How much of one thing fits into a device's memory, where all else stays as it is.

Knows the memory model, the base model at hand and its rows; no trial and no command.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, inf

import torch

from loratune.costs.activations import evaluation_bytes
from loratune.costs.correction import UNCORRECTED, Correction
from loratune.costs.execution import (
    FLOAT32,
    MIB,
    ON_CPU,
    ON_CPU_PADDED,
    ON_CUDA,
    ON_CUDA_EAGER,
    ON_CUDA_PLAIN,
    Device,
    Execution,
)
from loratune.costs.layers_again import layers_recomputed
from loratune.costs.memory import TIGHT, MemoryEstimate, adapter_bytes, adapter_parameters, estimate_pack
from loratune.data.table import TokenTable
from loratune.engine.machinery import Paths
from loratune.engine.recompute import why_not
from loratune.errors import InputError, ResourceError
from loratune.maths.sizes import LAUNCH_TOKENS, recorded_tokens
from loratune.maths.targets import select_targets
from loratune.model.base import BaseModel
from loratune.model.device import device_memory, parse_memory, peak_memory, pick_device, resolve_dtype
from loratune.model.digest import weight_files
from loratune.model.nf4 import has_bitsandbytes
from loratune.model.profile import profile_from_config
from loratune.model.source import locate
from loratune.values import HyperParameters, ModelProfile, default_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """A model, its rows and a device; answers are 0 where not even one fits."""

    model: ModelProfile
    max_length: int
    """Tokens of the longest row."""
    micro_batch_tokens: int
    device_bytes: int
    """All that the process may take, what it holds already included."""
    execution: Execution
    correction: Correction = UNCORRECTED
    supervised: float = 1.0
    """Share of the tokens that are supervised."""
    recompute: int | None = 0
    """Layers whose activations are computed again; None: the fewest that let a pack fit, all where none do."""

    def recomputed(self, pack: Sequence[HyperParameters], *, step_tokens: int | None = None) -> int:
        """Layers whose activations are computed again for a pack."""
        if self.recompute is not None:
            return min(self.recompute, self.model.layers)

        def fits(kept: int) -> bool:
            recomputed = self.model.layers - kept
            return self._estimate(pack, step_tokens, recomputed).fits(self.device_bytes)

        return self.model.layers - _largest(fits, self.model.layers)

    def recomputed_in(self, pack: Sequence[HyperParameters], tokens: int) -> int:
        """The same for one micro-batch of `tokens` tokens, padding included, while these trials are in memory."""
        whole = replace(self, micro_batch_tokens=max(tokens, self.max_length))
        return whole.recomputed(pack, step_tokens=tokens)

    def estimate(self, pack: Sequence[HyperParameters], *, step_tokens: int | None = None) -> MemoryEstimate:
        """Predicted peak of a pack."""
        return self._estimate(pack, step_tokens, self.recomputed(pack, step_tokens=step_tokens))

    def _estimate(
        self, pack: Sequence[HyperParameters], step_tokens: int | None, recomputed: int
    ) -> MemoryEstimate:
        return estimate_pack(
            self.model,
            pack,
            max_length=self.max_length,
            micro_batch_tokens=self.micro_batch_tokens,
            execution=self.execution,
            correction=self.correction,
            supervised=self.supervised,
            step_tokens=step_tokens,
            recomputed=recomputed,
        )

    @property
    def largest_line(self) -> int:
        """Tokens of the largest micro-batch: a single row always goes in."""
        return max(self.micro_batch_tokens, self.max_length)

    def fullest(self, pack: Sequence[HyperParameters], *, step_tokens: float = inf) -> MemoryEstimate:
        """The largest peak of a pack and of all its parts, which train on when others have ended.

        A step that just fills a micro-batch needs most: longer ones are cut into equal parts, smaller than allowed.
        `step_tokens`: of the largest step, where it is known.
        """
        return self.estimate(pack, step_tokens=self._fullest(step_tokens))

    def _fullest(self, step_tokens: float) -> int:
        return ceil(min(self.largest_line, step_tokens))

    def recomputed_when_fullest(self, pack: Sequence[HyperParameters], *, step_tokens: float = inf) -> int:
        """Layers whose activations are computed again where `fullest` is predicted."""
        return self.recomputed(pack, step_tokens=self._fullest(step_tokens))

    def evaluating(self, tokens: int) -> int:
        """Bytes while `tokens` tokens are evaluated at once, beyond what is held between steps.

        As if all of them predicted, since labels are scored at more positions than are supervised, and as if all
        were one model's.
        """
        needed = evaluation_bytes(
            self.model, tokens=tokens, models=1, supervised=1.0, execution=self.execution
        )
        return round(self.correction.scale * (1 + self.execution.allocator) * needed)

    @property
    def recorded_tokens(self) -> int:
        """Tokens of the largest micro-batch that is recorded: what recordings need is held between steps too."""
        records = self.execution.records and self.model.shards == 1
        return recorded_tokens(self.model.parameters) if records else 0

    def fits(self, pack: Sequence[HyperParameters]) -> bool:
        """Whether a pack, and any part of it, fits with room to spare."""
        return self.fullest(pack).fits(self.device_bytes)

    def check_alone(self, recipe: HyperParameters, smaller: str) -> None:
        """Raise `ResourceError` where not even one trial fits. `smaller`: the options that make it smaller."""
        needed = self.estimate([recipe]).total
        if needed > self.device_bytes:
            raise ResourceError(
                f"One trial of rank {recipe.r} needs {needed / MIB:,.0f} MiB of memory, and the device or "
                f"--device-memory has {self.device_bytes / MIB:,.0f} MiB; lower {smaller}, or raise --device-memory."
            )

    def adapter_bytes(self, recipe: HyperParameters) -> int:
        """What one more trial holds between steps."""
        return adapter_bytes(self.model, recipe, self.execution)

    def best_bytes(self, recipe: HyperParameters) -> int:
        """What early stopping holds of a trial: its best weights in float32, and the new ones before the old go."""
        return 2 * FLOAT32 * adapter_parameters(self.model, recipe)

    def room(self, trials: Sequence[HyperParameters]) -> int:
        """Bytes that adapters (`adapter_bytes`) may take while any of `trials` train side by side.

        What a step needs beyond them is counted as if all trained at once: it does not grow beyond a micro-batch.
        """
        estimate = self.fullest(trials)
        adapters = sum(count * self.adapter_bytes(hp) for hp, count in Counter(trials).items())
        return floor(TIGHT * self.device_bytes) - (estimate.total - adapters)

    @property
    def sparing(self) -> "Limits":
        """The limits with a single row in a micro-batch, which needs least."""
        return replace(self, micro_batch_tokens=self.max_length)

    def largest_pack(self, trial: HyperParameters, limit: int) -> int:
        """How many such trials train side by side, at most `limit`, however small micro-batches must be."""
        return _largest(lambda trials: self.sparing.fits([trial] * trials), limit)

    def largest_rank(self, trial: HyperParameters, trials: int = 1) -> int:
        """Rank of that many equal trials, however small micro-batches must be.

        At most the smallest side of a targeted layer.
        """
        targets = select_targets(self.model.targets, trial.target_modules)
        limit = min(min(shape[1:]) for shape in targets)
        return _largest(lambda r: self.sparing.fits([replace(trial, r=r)] * trials), limit)

    def largest_micro_batch(self, pack: Sequence[HyperParameters], limit: int = 2**17) -> int:
        """Tokens that a micro-batch of that pack may hold, however many rows a step has.

        A small one is the way to fit a large model, at the cost of speed.
        """
        full = self._filling(pack, limit)

        def holds(tokens: int) -> bool:
            return replace(self, micro_batch_tokens=tokens).fits(full)

        return _largest(holds, limit)

    def _filling(self, pack: Sequence[HyperParameters], tokens: int) -> list[HyperParameters]:
        """The pack with rows enough for a micro-batch of `tokens` tokens."""
        rows = -(-tokens // self.max_length) + 1
        return [replace(hp, batch_size=max(hp.batch_size, rows)) for hp in pack]

    def fastest_micro_batch(self, pack: Sequence[HyperParameters], limit: int) -> int:
        """Tokens of the micro-batch of that pack that takes least time for each, of those that fit; 0 where none does.

        Larger ones are launched less often, but activations of more layers are computed again.
        """
        largest = self.largest_micro_batch(pack, limit)
        if largest <= self.max_length or self.recompute == 0:
            return largest
        kept = replace(self, recompute=0).largest_micro_batch(pack, limit)
        halves = (largest >> n for n in range(limit.bit_length()))
        sizes = {max(size, kept, self.max_length) for size in halves}
        full, launch = self._filling(pack, limit), LAUNCH_TOKENS[self.execution.device]

        def seconds(tokens: int) -> float:
            """Seconds for each token, but for a factor."""
            return (1 + launch / tokens) * self.time_again(self.recomputed_in(full, tokens))

        return min(sorted(sizes, reverse=True), key=seconds)

    def time_again(self, recomputed: int) -> float:
        """Time of a micro-batch that computes `recomputed` layers again, relative to one with none."""
        return 1 + self.execution.time_again * recomputed / self.model.layers

    def with_rows(self, tokens: int) -> "Limits":
        """Limits for rows of `tokens` tokens at most, one in a micro-batch."""
        return replace(self, max_length=tokens, micro_batch_tokens=tokens)

    def longest_row(self, pack: Sequence[HyperParameters]) -> int:
        """Tokens up to `max_length` that a row may have with that pack, one row in a micro-batch."""
        return _largest(lambda tokens: self.with_rows(tokens or 1).fits(pack), self.max_length)

    def largest_batch(self, trial: HyperParameters, limit: int = 2**20) -> int:
        """Rows of `max_length` tokens that one trial trains in one undivided micro-batch.

        Not a limit of the engine, which cuts larger batches into micro-batches.
        """

        def undivided(rows: int) -> bool:
            whole = replace(self, micro_batch_tokens=rows * self.max_length)
            return whole.fits([replace(trial, batch_size=rows)])

        return _largest(undivided, limit)


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, where every smaller one fits too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


MICRO_BATCH_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 65536}
"""Largest micro-batch: beyond, throughput has long stopped growing. The size used is measured (`costs.measuring`)."""

_UNEVEN = 1.25
"""A micro-batch may have more supervised tokens than the mean."""


def execution_of(device: Device, paths: Paths | None = None) -> Execution:
    """How the engine runs there, for the memory model; `paths` None: as it runs best."""
    if device == "cpu":
        return ON_CPU if paths is None or paths.rows.flat else ON_CPU_PADDED
    if paths is None or paths.compiled:
        return ON_CUDA
    return ON_CUDA_EAGER if paths.rows.flat and paths.low_rank.triton else ON_CUDA_PLAIN


def device_bytes(text: str | None, device: torch.device, execution: Execution) -> int:
    """All that the process may take: what the user allows, else what it holds and what the device has free."""
    if text is not None:
        return parse_memory(text)
    context = execution.runtime if device.type == "cuda" else 0  # on a GPU the context is taken already
    return int(device_memory(device)) + context


def measured_peak(device: torch.device, execution: Execution) -> int:
    """Most bytes that the process has held, counted as `device_bytes` and the estimates do."""
    return peak_memory(device) + (execution.runtime if device.type == "cuda" else 0)


def supervised_share(table: TokenTable) -> float:
    """Largest share of supervised tokens in a micro-batch of these rows."""
    return min(1.0, _UNEVEN * float(table.supervised_counts.sum() / table.lengths.sum()))


def limits_here(
    base: BaseModel,
    paths: Paths,
    train: TokenTable,
    validation: TokenTable,
    memory: str | None = None,
    recompute: str = "auto",
) -> Limits:
    """The limits with the largest micro-batch worth trying, or what one trial of the default recipe leaves room for.

    Args:
        memory: what the user allows, such as `24GiB`; None: what the device has free.
        recompute: which activations are computed again, as `--recompute` has it.

    Raises `InputError` where the model does not allow that.
    """
    device: Device = "cuda" if base.device.type == "cuda" else "cpu"
    execution = execution_of(device, paths)
    longest = int(max(train.lengths.max(), validation.lengths.max()))
    limits = Limits(
        model=base.profile,
        max_length=longest,
        micro_batch_tokens=longest,
        device_bytes=device_bytes(memory, base.device, execution),
        execution=execution,
        supervised=supervised_share(train),
    )
    limits = _recomputing(limits, base, recompute, MICRO_BATCH_TOKENS[device])
    tokens = limits.fastest_micro_batch([default_recipe()], MICRO_BATCH_TOKENS[device])
    return replace(limits, micro_batch_tokens=max(tokens, longest))


def _recomputing(limits: Limits, base: BaseModel, text: str, largest: int) -> Limits:
    """The limits with activations computed again as the user asks; if that is left to us, where the model allows it and
    one trial of the default recipe leaves no room for the `largest` micro-batch.
    """
    wanted = layers_recomputed(text, limits.model.layers)
    if wanted == 0 or (wanted is None and limits.largest_micro_batch([default_recipe()], largest) >= largest):
        return replace(limits, recompute=0)
    reason = why_not(base.model)
    if reason and wanted is not None:
        raise InputError(
            f"--recompute must be auto or none for {base.profile.name}, got {text}: {reason}; leave --recompute out."
        )
    return replace(limits, recompute=0 if reason else wanted)


_SPARE = 8
"""Ratio of the room to the weights' size on disk from which they fit without a closer look."""


def why_packed(name: str, *, device: str, memory: str | None, longest: int) -> str:
    """Why a base model is to be held in 4 bits where its format is left to us, a sentence; empty where it is not.

    It is where beside one trial of the default recipe, on rows of `longest` tokens, it would not fit otherwise.
    """
    place = pick_device(device)
    kind: Device = "cuda" if place.type == "cuda" else "cpu"
    execution = execution_of(kind)
    room = device_bytes(memory, place, execution)
    source = locate(name)
    on_disk = sum(path.stat().st_size for path in weight_files(source))
    if source.gguf is not None or _SPARE * on_disk < room - execution.runtime or not has_bitsandbytes():
        return ""
    plain, packed = (
        Limits(
            model=profile_from_config(name, device=device, packs=packs),
            max_length=longest,
            micro_batch_tokens=longest,
            device_bytes=room,
            execution=execution,
        )
        for packs in (False, True)
    )
    alone = [default_recipe()]
    if plain.model.packed_parameters or plain.fits(alone) or not packed.fits(alone):
        return ""
    numbers = str(resolve_dtype("auto", place)).removeprefix("torch.")
    return (
        f"The base model in {numbers} and one trial need {plain.fullest(alone).total / 2**30:.1f} GiB and "
        f"{room / 2**30:.1f} GiB are there: its linear layers are held in 4 bits (nf4), as --dtype nf4 asks; give "
        f"--dtype {numbers} for whole weights."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A GPU by its memory."""

    name: str
    bytes: int


CARDS = tuple(
    Card(name=name, bytes=mib * MIB)
    for name, mib in (
        ("RTX 2080 (8 GB)", 8192),
        ("RTX 3060 (12 GB)", 12288),
        ("T4 (16 GB)", 15360),
        ("RTX 4060 Ti (16 GB)", 16380),
        ("L4 or A10G (24 GB)", 23028),
        ("RTX 4090 or 3090 (24 GB)", 24564),
        ("RTX 5090 (32 GB)", 32607),
        ("A100 (40 GB)", 40960),
        ("L40S (48 GB)", 46068),
        ("RTX A6000 (48 GB)", 49140),
        ("H100 (80 GB)", 81559),
        ("A100 (80 GB)", 81920),
        ("H200 (141 GB)", 143771),
        ("B200 (192 GB)", 183359),
    )
)
"""Cards from small to large, MiB; of cards named together the smaller.

They follow the cards' nominal sizes, less what is usually held back there (error correction, firmware). Two were
compared with what `nvidia-smi` prints as `memory.total`, the others were not: take a fit within some hundred MiB for a
tie.
"""


def smallest_card(fits: Callable[[int], bool]) -> Card | None:
    """The first on whose bytes it fits; None where a single card of the list does not do."""
    return next((card for card in CARDS if fits(card.bytes)), None)
