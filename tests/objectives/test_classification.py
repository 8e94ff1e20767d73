"""Classes by a trained head: the contract, and packs against PEFT's own `SEQ_CLS` models trained alone, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from classifier_fixture import CLASSES, PAD, alone, classes_table, classifiers, loss_of, relative, trained
from engine_fixture import REFERENCE, VOCABULARY, frozen, tiny_llama, trial
from loratune.errors import ModelError
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.model.base import BaseModel
from loratune.objectives.classification import Classification
from loratune.objectives.objective import Objective, Supervised
from loratune.testing.objectives import ObjectiveContract


def tiny_decoder() -> BaseModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, num_labels=CLASSES, pad_token_id=PAD,
    )  # fmt: skip
    return frozen(LlamaForSequenceClassification(config))


class TestClassification(ObjectiveContract):
    def model(self) -> PreTrainedModel:
        return tiny_decoder().model

    def targets(self, subject: Objective, following: torch.Tensor) -> torch.Tensor:
        return following % CLASSES

    def objective(self, model: PreTrainedModel) -> Objective:
        return Classification(model)

    def reference(
        self, subject: Objective, states: torch.Tensor, asked: Supervised, output: Any
    ) -> torch.Tensor:
        logits = [states[h.start : h.stop] @ h.values["score.weight"].T for h in asked.heads]
        return cross_entropy(torch.cat(logits), asked.targets, reduction="none")


TABLE = classes_table(26)
TRIALS = [
    trial(1, batch_size=4, learning_rate=2e-2, weight_decay=0.1),
    trial(2, r=8, batch_size=3, learning_rate=5e-3, lora_dropout=0.2, target_modules=("q_proj", "v_proj")),
    trial(3, r=2, batch_size=7, learning_rate=1e-2, epochs=2.0),
]


@pytest.mark.parametrize("paths", [None, REFERENCE], ids=["flat", "padded"])
def test_a_pack_of_heads_is_exact(paths: Any) -> None:
    """Three trials that differ in everything, small micro-batches, each as PEFT trains it alone."""
    base, steps = tiny_decoder(), 8
    packs = classifiers(base, TABLE, paths=paths, max_tokens_per_micro_batch=60)
    initials = packs.initials(TRIALS)
    slots = trained(packs, TRIALS, steps)
    assert {packs.chosen_paths.rows.flat} == {paths is None}
    for slot, initial in zip(slots, initials, strict=True):
        losses, weights = alone(
            tiny_decoder().model, slot.trial, initial, packs.batches(slot.trial), TABLE, steps
        )
        np.testing.assert_allclose(slot.losses, losses, rtol=1e-9)
        (score,) = slot.adapter.head().values()
        assert relative(score, weights["score.weight"]) < 1e-9
        assert relative(score, initial.head()["score.weight"]) > 1e-2, "or nothing was learnt"
        for name, (a, b) in slot.adapter.views().items():
            assert relative(a, weights[f"{name}.lora_A.default.weight"]) < 1e-9
            assert relative(b, weights[f"{name}.lora_B.default.weight"]) < 1e-9


def test_a_neighbour_that_is_not_finite_leaves_the_others_on_their_course() -> None:
    base = tiny_decoder()
    healthy = [slot.losses for slot in trained(classifiers(base, TABLE), TRIALS[:2], 4)]
    packs = classifiers(base, TABLE)
    slots = packs.slots(TRIALS)
    with packs.attached() as step:
        for now in range(4):
            if now == 1:
                slots[2].adapter.head()["score.weight"].fill_(float("nan"))
            step([slot for slot in slots if not slot.done])
    assert not np.isfinite(slots[2].losses[1:]).any()
    for slot, losses in zip(slots[:2], healthy, strict=True):
        np.testing.assert_allclose(slot.losses, losses, rtol=1e-9)


def test_what_is_put_aside_comes_back_with_its_head() -> None:
    """Parked in the middle, a trial takes the course that it takes undisturbed."""
    base = tiny_decoder()
    (whole,) = trained(classifiers(base, TABLE), TRIALS[:1], 5)
    packs = classifiers(base, TABLE)
    (slot,) = packs.slots(TRIALS[:1])
    with packs.attached() as step:
        for now in range(5):
            if now == 3:
                slot.park()
                slot.restore()
            step([slot])
    assert slot.losses == whole.losses
    assert torch.equal(slot.adapter.weights, whole.adapter.weights)


def test_rows_are_learnt_and_the_handed_over_head_is_the_one_that_was_read(tmp_path: Path) -> None:
    """Through a whole run, the file, our own reading of it and PEFT's."""
    base, train, validation = tiny_decoder(), classes_table(60), classes_table(20, seed=1)
    packs = classifiers(base, train, validation=validation)
    (before,) = packs.evaluate([None], validation)
    found: list[Any] = []
    waiting = [trial(0, r=8, batch_size=8, learning_rate=1e-2, epochs=6.0)]
    packs.run(lambda: waiting.pop() if waiting else None, slots=1, on_result=lambda *both: found.append(both))
    ((result, adapter),) = found
    assert result.nll < 0.7 * before.nll
    save_adapter(adapter, tmp_path / "adapter", base.model, base_name="tiny")
    again = load_adapter(
        tmp_path / "adapter", adapter.hyper_parameters, adapter.layout.targets, device=torch.device("cpu")
    )
    assert torch.equal(again.weights, adapter.weights)
    (read,) = packs.evaluate([again], validation)
    assert read.nll == pytest.approx(result.nll, rel=1e-12)
    model = PeftModel.from_pretrained(tiny_decoder().model, str(tmp_path / "adapter")).eval().double()
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    with torch.no_grad():
        loss = loss_of(model, validation, np.arange(len(validation)))
    assert loss.item() == pytest.approx(result.nll, rel=1e-9)


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ModelError, match="must have a head over classes, LlamaForCausalLM has none"):
        Classification(tiny_llama().model)
