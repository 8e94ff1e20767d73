"""Activations computed again by layer: the same gradients, in every kind of pack."""

from collections.abc import Sequence

import pytest
import torch

from engine_fixture import engine, tiny_llama
from loratune.engine.machinery import REFERENCE
from loratune.engine.selfcheck import mixed_trials, random_table
from loratune.model.base import BaseModel
from loratune.values import Trial

TABLE = random_table(97)


def gradients(base: BaseModel, trials: Sequence[Trial], layers: int, **changes: object) -> list[torch.Tensor]:
    """Losses and weights of every trial after three steps with so many layers recomputed."""
    table = TABLE if base.profile.vocabulary == 97 else random_table(base.profile.vocabulary)
    packs = engine(base, table, recompute=lambda trials, tokens: layers, **changes)
    slots = packs.slots(trials)
    with packs.attached() as step:
        for _ in range(3):
            step([slot for slot in slots if not slot.done])
    return [torch.cat([slot.adapter.weights.double(), torch.tensor(slot.losses)]) for slot in slots]


def same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("paths", [None, REFERENCE], ids=["flat", "padded"])
def test_a_mixed_pack_takes_the_same_course_to_the_last_bit(layers: int, paths: object) -> None:
    """Other ranks, targets, dropouts (masks are drawn again) and batches; micro-batches mix and cut the trials."""
    base = tiny_llama()
    trials = mixed_trials(base)
    assert any(each.hyper_parameters.lora_dropout for each in trials)
    kept = gradients(base, trials, 0, paths=paths)
    assert same(gradients(base, trials, layers, paths=paths), kept)
