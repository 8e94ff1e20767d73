"""Encoders with a head for each trial: packs against PEFT's own `SEQ_CLS` models trained alone, in float64.

By the names of the heads of each architecture, on flat rows and on padded ones with their mask; one class, several
labels and a number.
"""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from classifier_fixture import CLASSES, PAD, alone, classes_table, classifiers, loss_of, relative, trained
from engine_fixture import REFERENCE, VOCABULARY, frozen, trial
from loratune.data.table import TokenTable
from loratune.errors import ModelError
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.maths.targets import NEW_WEIGHTS
from loratune.model.base import BaseModel
from loratune.model.quiet import quiet
from loratune.model.rows import sees_ahead
from loratune.objectives.classification import Classification

STEPS = 4
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": PAD,
}  # fmt: skip
BY_PADDING = {"pad_token_id": 1}
"""RoBERTa and its like count positions from the padding's number on."""
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
ENCODERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "bert": ("bert", {}, True),
    "roberta": ("roberta", BY_PADDING, True),
    "xlm-roberta": ("xlm-roberta", BY_PADDING, True),
    "camembert": ("camembert", BY_PADDING, True),
    "distilbert": ("distilbert", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}, True),
    "electra": ("electra", {"embedding_size": 32}, True),
    "albert": ("albert", {"embedding_size": 16}, True),
    "modernbert": ("modernbert", {"local_attention": 6, "global_attn_every_n_layers": 2}, True),
    "modernbert-mean": ("modernbert", {"classifier_pooling": "mean", "local_attention": 6}, True),
    "deberta": ("deberta", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, False),
    "deberta-v2": ("deberta-v2", DISENTANGLED, False),
    "mpnet": ("mpnet", BY_PADDING, False),
}
"""By name: its architecture, what is its own, whether its rows may lie flat."""
HEADS = {
    "bert": {"classifier"},
    "roberta": {"classifier"},
    "distilbert": {"classifier", "pre_classifier"},
    "electra": {"classifier"},
    "modernbert": {"classifier", "head"},
    "deberta-v2": {"classifier", "pooler"},
    "mpnet": {"classifier"},
}
"""What is saved whole, by the architectures' own names."""
TRIALS = [
    trial(1, batch_size=4, learning_rate=2e-2, weight_decay=0.1),
    trial(2, r=8, batch_size=3, learning_rate=5e-3, lora_dropout=0.2),
    trial(3, r=2, batch_size=7, learning_rate=1e-2, epochs=2.0),
]


KINDS = {
    "class": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
}


def encoder(name: str, kind: str = "class", *, new_pooler: bool = False) -> BaseModel:
    architecture, own, _ = ENCODERS[name]
    outputs = {"num_labels": 1 if kind == "number" else CLASSES, "problem_type": KINDS[kind]}
    config = CONFIG_MAPPING[architecture](**(SIZES | own | outputs))
    torch.manual_seed(0)
    with quiet():
        base = frozen(AutoModelForSequenceClassification.from_config(config))
    if new_pooler:
        body = f"{base.model.base_model_prefix}."
        parameters = [name for name, _ in base.model.named_parameters()]
        new = [each for each in parameters if not each.startswith(body) or ".pooler." in each]
        setattr(base.model, NEW_WEIGHTS, frozenset(new))
    return base


def asked_for(table: TokenTable, kind: str) -> TokenTable:
    """The same rows, asked for one class, for several labels or for a number."""
    classes = table.answers
    assert classes is not None
    if kind == "class":
        return table
    if kind == "labels":
        answers: Any = np.stack([classes == 0, classes != 1, table.lengths > 6], 1).astype(np.float64)
    else:
        answers = classes - 1.0 + table.lengths / 10
    return TokenTable(
        tokens=table.tokens, supervised=table.supervised, offsets=table.offsets, answers=answers
    )


TABLE = classes_table(26)
WITHOUT_PADDING = TokenTable(
    tokens=np.where(TABLE.tokens == 1, 2, TABLE.tokens).astype(np.int32),
    supervised=TABLE.supervised, offsets=TABLE.offsets, answers=TABLE.answers,
)  # fmt: skip
"""No token of the rows is one of those that stand for padding here."""


def check(base: BaseModel, other: BaseModel, table: TokenTable, **changes: Any) -> None:
    """Losses, adapters and heads of three trials in a pack are those of PEFT, and of the head all is learnt."""
    packs = classifiers(base, table, max_tokens_per_micro_batch=60, **changes)
    initials = packs.initials(TRIALS)
    slots = trained(packs, TRIALS, STEPS)
    for slot, initial in zip(slots, initials, strict=True):
        pad = int(base.model.config.pad_token_id)
        model = other if slot is slots[-1] else copy_of(other)
        losses, weights = alone(
            model.model, slot.trial, initial, packs.batches(slot.trial), table, STEPS, padding=pad
        )
        np.testing.assert_allclose(slot.losses, losses, rtol=1e-9)
        before = initial.head()
        for name, value in slot.adapter.head().items():
            assert relative(value, weights[name]) < 1e-9, name
            assert (value - before[name]).norm() > 1e-4 * value.norm(), f"{name} has learnt nothing"
        for name, (a, b) in slot.adapter.views().items():
            assert relative(a, weights[f"{name}.lora_A.default.weight"]) < 1e-8, name
            assert relative(b, weights[f"{name}.lora_B.default.weight"]) < 1e-8, name


def copy_of(base: BaseModel) -> BaseModel:
    return replace(base, model=deepcopy(base.model))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_pack_of_encoders_is_exact(name: str) -> None:
    base = encoder(name)
    assert sees_ahead(base.model)
    assert classifiers(base, WITHOUT_PADDING).chosen_paths.rows.flat is ENCODERS[name][2]
    check(base, encoder(name), WITHOUT_PADDING)


@pytest.mark.parametrize("name", ["roberta", "modernbert-mean"])
def test_on_padded_rows_too(name: str) -> None:
    """With the padding masked: small micro-batches of rows of many lengths."""
    check(encoder(name), encoder(name), WITHOUT_PADDING, paths=REFERENCE)


@pytest.mark.parametrize("kind", ["labels", "number"])
@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_several_labels_and_numbers(name: str, kind: str) -> None:
    """By transformers' own loss for the kind of problem."""
    check(encoder(name, kind), encoder(name, kind), asked_for(WITHOUT_PADDING, kind))


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_a_pooler_that_no_checkpoint_gave_is_trained(name: str) -> None:
    base = encoder(name, new_pooler=True)
    assert any(".pooler." in part for part, _ in Classification(base.model).head)
    check(base, encoder(name, new_pooler=True), WITHOUT_PADDING)


@pytest.mark.parametrize(("name", "new_pooler"), [("bert", True), *((name, False) for name in HEADS)])
def test_peft_reads_every_head_that_was_saved(name: str, new_pooler: bool, tmp_path: Path) -> None:
    """By the names of the architecture: the model that PEFT reads from the folder gives the pack's own losses."""
    base = encoder(name, new_pooler=new_pooler)
    packs = classifiers(base, WITHOUT_PADDING)
    (slot,) = trained(packs, TRIALS[:1], 3)
    (read,) = packs.evaluate([slot.adapter], WITHOUT_PADDING)
    save_adapter(slot.adapter, tmp_path, base.model, base_name="tiny")
    torch.manual_seed(5)  # another head to begin with, as a new model has it
    fresh = encoder(name)
    for part, _ in packs.initials(TRIALS[:1])[0].layout.head:
        torch.nn.init.normal_(fresh.model.get_parameter(part))
    model = PeftModel.from_pretrained(fresh.model, str(tmp_path)).eval().double()
    saved = set(json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"])
    assert saved == HEADS[name] | ({"bert.pooler"} if new_pooler else set())
    with torch.no_grad():
        pad = int(base.model.config.pad_token_id)
        loss = loss_of(model, WITHOUT_PADDING, np.arange(len(WITHOUT_PADDING)), pad)
    assert loss.item() == pytest.approx(read.nll, rel=1e-9)
    again = load_adapter(
        tmp_path, slot.adapter.hyper_parameters, slot.adapter.layout.targets, device=torch.device("cpu")
    )
    own = slot.adapter.head()
    assert own.keys() == again.head().keys()
    assert all(torch.equal(own[part], value) for part, value in again.head().items())


def test_what_is_found_has_the_form_of_what_is_asked() -> None:
    """A class, a set of labels, a number; a row is matched where all of it is right."""
    for kind, shape in (("class", (26,)), ("labels", (26, CLASSES)), ("number", (26,))):
        table = asked_for(WITHOUT_PADDING, kind)
        packs = classifiers(encoder("bert", kind), table)
        (found,) = packs.evaluate([None], table)
        assert found.predictions is not None
        assert found.predictions.shape == shape
        right = (found.predictions == table.answers).reshape(26, -1).all(1)
        np.testing.assert_array_equal(found.exact_match, right)


def test_a_head_that_reads_neither_first_last_nor_mean_is_refused() -> None:
    model = encoder("bert").model
    model.bert.pooler.forward = lambda states: states[:, 1]
    with pytest.raises(ModelError, match="must read a row's first, last or mean state"):
        Classification(model)
