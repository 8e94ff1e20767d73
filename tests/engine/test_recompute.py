"""Activations computed again by layer: the same gradients, in every kind of pack."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from classifier_fixture import CLASSES, PAD, classes_table, classifiers, trained
from engine_fixture import REFERENCE, engine, frozen, tiny_family, tiny_llama, trial
from live_bytes import LiveBytes
from loratune.engine.memory import Place, Shortage
from loratune.engine.recompute import why_not
from loratune.engine.selfcheck import mixed_trials, random_table
from loratune.engine.step import TrainingStep
from loratune.model.base import BaseModel
from loratune.objectives.preference import Orpo
from loratune.values import Trial

pytest_plugins = ["nf4_fixture"]

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


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "gpt_neox", "phi3"])
def test_other_architectures(family: str) -> None:
    base = tiny_family(family)
    trials = mixed_trials(base)[1:4]
    assert same(gradients(base, trials, 2), gradients(base, trials, 0))


def test_4_bit_layers_are_unpacked_again(packed: BaseModel) -> None:
    trials = [trial(0, r=4), trial(1, r=8, lora_dropout=0.2)]
    assert same(gradients(packed, trials, 2), gradients(packed, trials, 0))


def test_inputs_alone_are_kept() -> None:
    """Inside the layers nothing lives between the passes, so that the peak falls with each layer."""
    peaks = []
    for layers in (0, 1, 2):
        base = tiny_llama(torch.float32)
        counted = LiveBytes(base.model.parameters())
        with counted:
            gradients(base, [trial(0, batch_size=16)], layers, max_tokens_per_micro_batch=10**6)
        peaks.append(counted.peak)
    assert peaks[0] > 1.3 * peaks[1]
    assert peaks[1] >= 0.98 * peaks[2]


class _Sharing(torch.nn.Module):
    """A layer that adds what the first one has left beside its result."""

    def __init__(self, layer: torch.nn.Module, left: list[torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.left = layer, left

    def forward(self, x: torch.Tensor, *others: object, **keywords: object) -> torch.Tensor:
        y: torch.Tensor = self.layer(x, *others, **keywords)
        if not self.left:
            self.left.append(y)
            return y
        return y + self.left.pop()


def test_layers_that_hand_each_other_more_are_not_recomputed() -> None:
    model = tiny_llama().model
    assert why_not(model) == ""
    layers, left = model.model.layers, []
    for i, layer in enumerate(layers):
        layers[i] = _Sharing(layer, left)
    assert why_not(model)


def test_a_row_that_does_not_fit_is_tried_with_all_layers_recomputed() -> None:
    """The first failure is of activations; nothing is lost and the course stays the same."""
    told: list[Shortage] = []
    expected = gradients(tiny_llama(), [trial(0, batch_size=1)], 0)
    with failing_while_kept():
        found = gradients(
            tiny_llama(), [trial(0, batch_size=1)], 0, on_shortage=told.append, max_tokens_per_micro_batch=1
        )
    assert [each.place for each in told] == [Place.ACTIVATIONS]
    assert "are recomputed in the backward pass" in told[0].sentence
    assert same(found, expected)


@contextmanager
def failing_while_kept() -> Iterator[None]:
    """Passes in which all activations are kept find no memory."""
    usual = TrainingStep._pass

    def scarce(self: TrainingStep, *given: object) -> torch.Tensor:
        if given[-1] == 0:
            raise torch.OutOfMemoryError("out of memory")
        return usual(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "_pass", scarce)
        yield


def test_an_encoder_with_a_head_for_each_trial() -> None:
    """On rows that see ahead; the heads are trained beside the adapters."""
    config = BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2, pad_token_id=PAD, num_labels=CLASSES,
    )  # fmt: skip
    torch.manual_seed(0)
    base, table = frozen(BertForSequenceClassification(config)), classes_table(20)
    trials = [trial(1, batch_size=4), trial(2, r=8, batch_size=3, lora_dropout=0.2)]
    for paths in (None, REFERENCE):
        kept, again = (
            trained(classifiers(base, table, paths=paths, recompute=lambda trials, tokens, n=n: n), trials, 3)
            for n in (0, 2)
        )
        for own, other in zip(again, kept, strict=True):
            assert torch.equal(own.adapter.weights, other.adapter.weights)
            assert own.losses == other.losses


def test_pairs_that_belong_together() -> None:
    base = tiny_llama()
    trials = [trial(0, batch_size=4), trial(1, r=8, batch_size=2, lora_dropout=0.2)]
    assert same(gradients(base, trials, 2, objective=Orpo), gradients(base, trials, 0, objective=Orpo))
