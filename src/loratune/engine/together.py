"""AdamW for all slots of a pack in one launch, through Triton: what `Slot.clip` and `Slot.update` do one by one.

Knows slots and their numbers; nothing of losses or micro-batches. Imported only where Triton works.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch
from torch.autograd.graph import increment_version

from loratune.data.batches import to_device
from loratune.engine.slot import BETAS, EPS, Slot
from loratune.kernels import adamw as kernel
from loratune.kernels.launch import launch

_BLOCK, _TURNS = 1024, 4


class UpdateTogether:
    """The slots are given for every step; what is known of them is kept while they stay the same."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._addresses: list[tuple[int, ...]] = []
        self._table: torch.Tensor | None = None

    def prepare(self, slots: Sequence[Slot]) -> torch.Tensor:
        """The numbers of their coming updates [slots, NUMBERS] on the device; afterwards `take` needs no memory."""
        vectors = [(slot.adapter.weights, slot.gradient, *slot.moments) for slot in slots]
        addresses = [(*(each.data_ptr() for each in own), own[0].numel()) for own in vectors]
        if self._table is None or addresses != self._addresses:
            self._table = to_device(np.array(addresses, np.int64), self._device)
            self._addresses = addresses
        return to_device(np.array([_numbers(slot) for slot in slots], np.float32), self._device)

    def take(
        self, slots: Sequence[Slot], numbers: torch.Tensor, factors: torch.Tensor, skipped: torch.Tensor
    ) -> None:
        """Move all slots on by the step that has been prepared, and empty their gradients: all or none."""
        assert self._table is not None, "updates are prepared before they are taken"
        largest = max(size for *_, size in self._addresses)
        launch(
            kernel.step, (-(-largest // (_BLOCK * _TURNS)), len(slots)),
            (self._table, numbers, factors, skipped),
            BETA1=BETAS[0], REST1=1 - BETAS[0], BETA2=BETAS[1], REST2=1 - BETAS[1], EPS=EPS,
            BLOCK=_BLOCK, TURNS=_TURNS,
        )  # fmt: skip
        # what a kernel writes does not count as a change by itself; readers of a copy of the weights must know
        increment_version([slot.adapter.weights for slot in slots])


def _numbers(slot: Slot) -> tuple[float, float, float]:
    """Decay, size of the step and bias correction of the coming update; see `kernels.adamw.step`."""
    rate, count = slot.learning_rate, slot.updates + 1
    decay = rate * slot.trial.hyper_parameters.weight_decay
    return decay, rate / (1 - BETAS[0] ** count), sqrt(1 - BETAS[1] ** count)
