"""The prior: known answers of the laws put together, intervals, and honest notes."""

from dataclasses import replace

import pytest

from loratune.maths.laws import batch_size_law, learning_rate_law
from loratune.maths.prior import recommend
from loratune.values import DataProfile, ModelProfile

SMOLLM2 = ModelProfile(
    name="smollm2",
    family="llama",
    hidden_size=576,
    layers=30,
    attention_heads=9,
    vocabulary=49152,
    parameters=134_515_008,
    embedding_parameters=28_311_552,
    targets=tuple((f"model.layers.{i}.mlp.up_proj", 576, 9600) for i in range(30)),
)
TEXT = DataProfile(
    shape="prompt-completion",
    rows=10_000,
    validation_rows=1000,
    test_rows=1000,
    tokens=2_000_000,
    supervised_tokens=500_000,
    length_mean=200.0,
    length_p50=190,
    length_p95=400,
    length_max=500,
    max_length=512,
)


def test_every_number_lies_in_its_interval_and_names_its_source() -> None:
    prior = recommend(TEXT, SMOLLM2)
    for value in (prior.r, prior.lora_alpha, prior.learning_rate, prior.batch_size, prior.epochs):
        assert 0 < value.low <= value.value <= value.high
        assert len(value.reason) > 10
    r = round(prior.r.value)
    assert r & (r - 1) == 0
    assert prior.lora_alpha.value == 2 * r
    assert prior.epochs.value == 2
    assert prior.batch_size.value == batch_size_law(rows=10_000, epochs=2).value
    law = learning_rate_law(
        r=r, lora_alpha=2 * r, batch_size=16, rows=10_000, epochs=2, hidden_size=576, family="llama"
    )
    assert (prior.learning_rate.low, prior.learning_rate.value) == (law.low, law.value)


def test_banking77_with_smollm2_contains_what_was_measured() -> None:
    banking = replace(
        TEXT, shape="classification", rows=2000, supervised_tokens=12_000, labels=tuple("abcdefg") * 11
    )
    prior = recommend(banking, SMOLLM2, epochs=3)
    assert prior.r.low <= 4 <= prior.r.high  # rank 4 ties with everything there
    assert prior.batch_size.low <= 8 <= 16 <= prior.batch_size.high
    assert prior.learning_rate.low <= 1.5e-3 <= prior.learning_rate.high  # optimum at rank 8, batch 16
    assert (prior.epochs.value, prior.epochs.reason) == (3, "as asked")


@pytest.mark.parametrize(("rows", "epochs"), [(2000, 3), (5000, 2), (20_000, 1)])
def test_small_data_is_passed_more_often(rows: int, epochs: int) -> None:
    assert recommend(replace(TEXT, rows=rows), SMOLLM2).epochs.value == epochs


def test_wide_intervals_are_to_be_measured_and_narrow_ones_are_not() -> None:
    notes = recommend(TEXT, SMOLLM2).notes
    assert any(note.startswith("the rank is known only") and note.endswith("measure it") for note in notes)
    assert any("learning rate" in note for note in notes)
    assert not any("epochs" in note or "alpha" in note for note in notes)


def test_more_data_asks_for_more_rank_within_what_the_layers_allow() -> None:
    ranks = [recommend(replace(TEXT, supervised_tokens=t), SMOLLM2).r.value for t in (10**4, 10**6, 10**8)]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]
    narrow = replace(SMOLLM2, targets=(("up_proj", 8, 9600),))
    prior = recommend(replace(TEXT, supervised_tokens=10**8), narrow)
    assert prior.r.value == prior.r.high == 8


def test_mixtures_of_experts_have_no_law() -> None:
    prior = recommend(TEXT, replace(SMOLLM2, experts_per_token=8))
    assert (prior.r.value, prior.r.low, prior.r.high) == (16, 1, 256)
    assert "mixtures of experts" in prior.r.reason
