"""One launch that updates all slots, against torch's AdamW slot by slot; on a GPU or interpreted."""

import numpy as np
import pytest
import torch

from engine_fixture import trial
from kernel_device import DEVICE
from loratune.data.batches import TrialBatches
from loratune.engine.slot import Slot, clip_factors
from loratune.engine.together import UpdateTogether
from loratune.lora.layout import Adapter, AdapterLayout, Target

pytestmark = pytest.mark.kernels
TARGETS = (Target("first", 40, 300), Target("second", 300, 37))
TRIALS = [
    trial(0, r=1, learning_rate=3e-2),
    trial(1, r=16, weight_decay=0.3, warmup_ratio=0.5, epochs=2.0),
    trial(2, r=3, learning_rate=1e-1, weight_decay=0.01),
]
STEPS = 5
LARGE, BROKEN = 2, 1
"""The slot whose gradients are clipped, and the one whose third step is skipped."""


def slots(device: torch.device = DEVICE) -> list[Slot]:
    found = []
    for each in TRIALS:
        layout = AdapterLayout.of(each.hyper_parameters, TARGETS)
        weights = torch.randn(layout.size, generator=torch.Generator().manual_seed(each.seed))
        adapter = Adapter(hyper_parameters=each.hyper_parameters, layout=layout, weights=weights.to(device))
        batches = TrialBatches(rows=np.arange(40), batch_size=4, epochs=1.0, seed=0)
        slot = Slot(each, adapter, batches, vocabulary=97)
        slot.allocate()
        found.append(slot)
    return found


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    found = []
    for number, slot in enumerate(slots()):
        gradient = torch.randn(slot.gradient.shape, generator=generator)
        found.append(gradient * (10.0 if number == LARGE else 1e-3))
    return found


def test_the_courses_of_adamw() -> None:
    """Own rates, decays, schedules, clipping; a skipped step leaves weights and moments, and the next corrections.

    Against the CPU's: CUDA's fused AdamW rounds 1 - 0.999 to float32 before it multiplies (1.3e-5 off).
    """
    alone, packed = slots(torch.device("cpu")), slots()
    together = UpdateTogether(DEVICE)
    for step in range(STEPS):
        for group in (alone, packed):
            for slot, gradient in zip(group, gradients(step), strict=True):
                slot.gradient.copy_(gradient)
        norms = torch.stack(torch._foreach_norm([slot.gradient for slot in alone]))
        factors, skipped = clip_factors(norms), torch.zeros(len(TRIALS))
        skipped[BROKEN] = float(step == 2)
        if step == 2:
            for group in (alone, packed):
                group[BROKEN].gradient[0] = float("nan")
        versions = [slot.adapter.weights._version for slot in packed]
        numbers = together.prepare(packed)
        together.take(packed, numbers, factors.to(DEVICE), skipped.to(DEVICE))
        for slot, factor, skips in zip(alone, factors, skipped, strict=True):
            slot.clip(factor)
            slot.update(skips)
        for version, ours, theirs in zip(versions, packed, alone, strict=True):
            assert ours.adapter.weights._version > version
            assert not ours.gradient.any()
            for own, expected in zip(
                (ours.adapter.weights, *ours.moments), (theirs.adapter.weights, *theirs.moments), strict=True
            ):
                assert torch.isfinite(own).all()
                difference = torch.linalg.vector_norm(own.cpu() - expected)
                assert difference <= 1e-6 * torch.linalg.vector_norm(expected)
        for group in (alone, packed):
            for number, slot in enumerate(group):
                assert slot.next_rows() is not None
                slot.record(float("nan") if step == 2 and number == BROKEN else 1.0, 1.0, 1)
    assert [slot.updates for slot in packed] == [STEPS, STEPS - 1, STEPS]


def test_slots_that_come_and_go_and_come_back_elsewhere() -> None:
    """Addresses are asked for before every step: a slot that was put aside has others."""
    group = slots()
    together = UpdateTogether(DEVICE)
    none = torch.zeros(len(group), device=DEVICE)
    before = [slot.adapter.weights.clone() for slot in group]
    group[0].park()
    together.take(group[1:], together.prepare(group[1:]), none[1:] + 1, none[1:] + 1)
    group[0].restore()
    together.take(group, together.prepare(group), none + 1, none + 1)
    assert all(torch.equal(slot.adapter.weights, old) for slot, old in zip(group, before, strict=True))
