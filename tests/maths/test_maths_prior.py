"""The prior: known answers of the laws put together, intervals, and honest notes."""

from dataclasses import replace

import pytest

from loratune.maths.laws import batch_size_law, learning_rate_law
from loratune.maths.prior import rank_floor, recommend
from loratune.values import (
    Absorbed,
    DataProfile,
    ModelProfile,
    NoiseScale,
    Probe,
    RateTest,
    Survey,
    TaskKind,
)

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
    alone = recommend(TEXT, SMOLLM2, tasks=())
    r = round(alone.r.value)
    law = learning_rate_law(
        r=r, lora_alpha=2 * r, batch_size=16, rows=10_000, epochs=2, hidden_size=576, family="llama"
    )
    assert alone.learning_rate.value == pytest.approx(law.value)
    assert (alone.learning_rate.tasks, prior.learning_rate.tasks) == (0, 37)


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


def test_a_classification_needs_less_rank_than_a_reasoning_task_of_its_size() -> None:
    """The tables: banking77 and Reuters R8 need 2 to 4, GSM8K on as many rows 17, MetaMath more."""
    few, many = (
        recommend(replace(TEXT, rows=2000, supervised_tokens=12_000, survey=surveyed(kind)), SMOLLM2).r.value
        for kind in (TaskKind.CLASSIFICATION, TaskKind.REASONING)
    )
    assert few <= 4 < many


def surveyed(kind: TaskKind) -> Survey:
    return Survey(kind=kind, kind_reason="", compression_ratio=2.0)


NOISE = NoiseScale(rows=80.0, low=60.0, high=110.0, steps=16)


def rate_test(factor: float, *, inside: bool = True) -> RateTest:
    """What a test finds whose best learning rate is so many times the law's, for as many rows as it saw."""
    facts = {"r": 8, "lora_alpha": 16.0, "batch_size": 8}
    law = learning_rate_law(**facts, rows=200, epochs=1, hidden_size=576, family="llama").value  # type: ignore[arg-type]
    return RateTest(**facts, rows=200, tried=(), best=factor * law, inside=inside)  # type: ignore[arg-type]


def test_a_probe_narrows_what_it_measured_and_nothing_else() -> None:
    before = recommend(TEXT, SMOLLM2)
    after = recommend(TEXT, SMOLLM2, probe=Probe(seconds=60.0, noise=NOISE, rate=rate_test(1.0)))
    assert after.learning_rate.spread < before.learning_rate.spread
    assert after.batch_size.spread < before.batch_size.spread
    assert after.batch_size.value == 16  # a quarter of 80 rows is 20, a power of two below it 16
    assert (after.batch_size.low, after.batch_size.high) == (8, 32)  # of 60 / 4 = 15 rows; twice the value
    assert "batch size" not in " ".join(after.notes)
    assert (after.r, after.epochs) == (before.r, before.epochs)


def test_a_rate_test_moves_the_learning_rate_its_own_way_and_counts_less_at_an_edge() -> None:
    plain, doubled, edge = (
        recommend(TEXT, SMOLLM2, probe=Probe(seconds=60.0, rate=test)).learning_rate
        for test in (rate_test(1.0), rate_test(4.0), rate_test(4.0, inside=False))
    )
    assert plain.value < edge.value < doubled.value < 4 * plain.value
    assert edge.spread > doubled.spread


def test_a_short_test_tells_less_of_a_long_run() -> None:
    probe = Probe(seconds=60.0, rate=rate_test(1.0))
    near, far = (recommend(replace(TEXT, rows=n), SMOLLM2, epochs=1, probe=probe) for n in (400, 400_000))
    assert near.learning_rate.spread < far.learning_rate.spread


def test_bits_absorbed_are_a_floor_of_the_rank() -> None:
    per_rank = SMOLLM2.parameters_per_rank
    bits = 2.0 * per_rank * 100  # 2 bits a parameter: rank 100 holds them
    absorbed = Absorbed(bits=bits, rows=500, supervised_tokens=25_000)
    prior = recommend(TEXT, SMOLLM2, probe=Probe(seconds=60.0, absorbed=absorbed))
    assert prior.r.low == pytest.approx(100)
    assert prior.r.value == 128
    assert rank_floor(bits, per_rank) == pytest.approx(100)
    assert rank_floor(-5.0, per_rank) == 0.0
