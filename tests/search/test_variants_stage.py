"""Variants of LoRA as the last stage: at the same rank, each at rates of its own, adopted only if shown better."""

from collections.abc import Callable
from dataclasses import replace
from math import log10

import numpy as np
import pytest

from loratune.maths.laws import learning_rate_law
from loratune.search.make import make_strategy
from loratune.search.variants_stage import variants_of
from loratune.values import (
    DataFacts,
    Decision,
    HyperParameters,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    Wishes,
)

ROWS = 400
WEIGHTS = np.random.default_rng(0).integers(2, 9, ROWS).astype(np.float64)
CONTEXT = SearchContext(
    data=DataFacts(rows=1000, tokens=50_000, supervised_tokens=9_000, validation_weights=WEIGHTS),
    wishes=Wishes(budget=40.0, margin=0.02, ranks=(4, 16), tune_variants=("rslora", "loraplus")),
)
SETTING = HyperParameters(r=16, lora_alpha=32, learning_rate=1e-3, batch_size=16)


def test_each_variant_at_three_rates_the_expected_one_first() -> None:
    settings = variants_of(CONTEXT, SETTING)
    assert [each.variant for each in settings] == 3 * ["rsLoRA", "LoRA+ (ratio 16)"]
    assert {(each.r, each.lora_alpha, each.batch_size) for each in settings} == {(16, 32, 16)}
    laws = [
        learning_rate_law(r=16, lora_alpha=alpha, batch_size=16, rows=1000, epochs=1).value
        for alpha in (32, 128)
    ]
    expected = {"rsLoRA": 1e-3 * laws[1] / laws[0], "LoRA+ (ratio 16)": 1e-3 / 4}
    for name, centre in expected.items():
        rates = [each.learning_rate for each in settings if each.variant == name]
        assert abs(log10(rates[0] / centre)) <= log10(3) / 2 + 0.01, "the nearest step of the common scale"
        assert max(rates) / min(rates) == pytest.approx(9, rel=0.1)


def test_what_cannot_be_tried_is_left_out() -> None:
    """rsLoRA at rank 1, where it is plain LoRA, and DoRA with dropout."""
    context = CONTEXT.changed(tune_variants=("rslora", "loraplus", "dora"))
    settings = variants_of(context, replace(SETTING, r=1, lora_alpha=2, lora_dropout=0.1))
    assert {each.variant for each in settings} == {"LoRA+ (ratio 16)"}
    assert {each.variant for each in variants_of(context, SETTING)} == {"rsLoRA", "DoRA", "LoRA+ (ratio 16)"}


Gain = Callable[[HyperParameters], float]


def play(gain: Gain, context: SearchContext = CONTEXT) -> tuple[Decision, list[TrialResult]]:
    """A whole search on simulated runs: best at 1e-3, LoRA+ at a fourth of it; rows vary by .05, seeds by .002."""
    rows = np.random.default_rng(1).gamma(2.0, 0.3, ROWS)

    def run(subject: Trial) -> TrialResult:
        setting = subject.hyper_parameters
        random = np.random.default_rng([subject.seed, setting.r, setting.batch_size])
        best = 1e-3 / setting.loraplus_lr_ratio**0.5
        level = 0.1 * abs(log10(setting.learning_rate / best)) + 0.002 * random.normal() - gain(setting)
        nll = (rows + level + 0.05 * random.normal(size=ROWS)) * WEIGHTS
        return TrialResult(
            asked=subject,
            trial=subject,
            nll=float(nll.sum() / WEIGHTS.sum()),
            example_nll=nll,
            cost=context.cost(subject),
        )

    strategy = make_strategy("evidence", context)
    history: list[TrialResult] = []
    while trials := strategy.ask(history):
        history += [run(each) for each in trials]
    assert sum(result.cost for result in history) <= context.wishes.budget + 1e-6
    return strategy.decide(history), history


def test_a_better_variant_is_taken_with_two_seeds() -> None:
    decision, history = play(lambda setting: 0.1 * (setting.loraplus_lr_ratio > 1))
    found = decision.hyper_parameters
    assert found.loraplus_lr_ratio == 16
    assert not found.use_rslora
    own = [each.asked for each in history if each.asked.stage is Stage.VARIANT]
    assert len({each.hyper_parameters for each in own}) == 6
    assert len({each.seed for each in own if each.hyper_parameters == found}) == 2
    assert decision.stages[-1].name == str(Stage.VARIANT)
    assert decision.stages[-1].answer == "LoRA+ (ratio 16)"
    assert any(
        each.holds
        and each.claim.startswith("The variant LoRA+ (ratio 16)")
        and "is taken: it is better than plain LoRA" in each.claim
        for each in decision.evidence
    )


def test_what_is_not_shown_better_is_not_taken_and_cannot_be_told() -> None:
    decision, _ = play(lambda setting: 0.0)
    assert not decision.hyper_parameters.variant
    told = [each for each in decision.evidence if "LoRA+ (ratio 16)" in each.claim and each.value is not None]
    assert told
    assert any(each.holds is None for each in told), "within the noise it cannot be told"


def test_it_is_planned_within_the_budget_and_only_where_asked_for() -> None:
    for names in ((), ("rslora", "loraplus")):
        plan = make_strategy("evidence", CONTEXT.changed(tune_variants=names)).plan()
        own = [stage for stage in plan.stages if stage.name == str(Stage.VARIANT)]
        assert bool(own) is bool(names)
        assert plan.cost <= CONTEXT.wishes.budget
        if own:
            assert own[0].trials >= 6


def test_all_trials_may_be_a_variant() -> None:
    context = CONTEXT.changed(variant=(("use_rslora", True),), tune_variants=("loraplus",))
    decision, history = play(lambda setting: 0.0, context)
    assert all(each.asked.hyper_parameters.use_rslora for each in history)
    assert decision.hyper_parameters.variant == "rsLoRA"
