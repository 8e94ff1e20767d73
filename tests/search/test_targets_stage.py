"""Which layers: the choices a model offers, equal parameters, adopted only if better, the fewest layers on a tie."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engine_fixture import tiny_family, trial
from families import random_model
from loratune.lora.layout import AdapterLayout, find_targets
from loratune.maths.laws import learning_rate_law
from loratune.maths.targets import select_targets, target_groups
from loratune.model.profile import adaptable_layers
from loratune.search.challenge import Contender
from loratune.search.make import make_strategy
from loratune.search.procedure import Ledger, Procedure, ask, decide
from loratune.search.targets_stage import (
    TargetsAnswer,
    other_targets,
    parameters,
    targets_claims,
    targets_stage,
)
from loratune.values import (
    ALL_LINEAR,
    DataFacts,
    HyperParameters,
    ModelFacts,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    Wishes,
)

LAYERS = tuple(
    (f"model.layers.{i}.{name}", *shape)
    for i in range(2)
    for name, shape in {
        "self_attn.q_proj": (256, 256), "self_attn.k_proj": (256, 128), "self_attn.v_proj": (256, 128),
        "self_attn.o_proj": (256, 256), "mlp.gate_proj": (256, 640), "mlp.up_proj": (256, 640),
        "mlp.down_proj": (640, 256),
    }.items()
)  # fmt: skip
MLP, ATTENTION, PAIR = (
    ("gate_proj", "up_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj"),
)  # fmt: skip
ROWS = 400
WEIGHTS = np.random.default_rng(0).integers(2, 9, ROWS).astype(np.float64)
CONTEXT = SearchContext(
    data=DataFacts(
        rows=1000,
        tokens=50_000,
        supervised_tokens=9_000,
        validation_weights=WEIGHTS,
    ),
    model=ModelFacts(targets=LAYERS),
    wishes=Wishes(budget=30.0),
)
SETTING = HyperParameters(r=8, lora_alpha=24, learning_rate=1e-3, batch_size=16)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "llama",
            {
                "every linear layer": ALL_LINEAR,
                "the MLP only": MLP,
                "the attention only": ATTENTION,
                "queries and values": PAIR,
            },
        ),
        (
            "gpt2",
            {
                "every linear layer": ALL_LINEAR,
                "the MLP only": ("mlp.c_fc", "mlp.c_proj"),
                "the attention only": ("attn.c_attn", "attn.c_proj"),
            },
        ),
        (
            "phi3",
            {"the attention only": ("o_proj", "qkv_proj"), "the MLP only": ("gate_up_proj", "down_proj")},
        ),
        (
            "phi",
            {
                "the attention only": ("q_proj", "k_proj", "v_proj", "dense"),
                "the MLP only": ("fc1", "fc2"),
                "queries and values": PAIR,
            },
        ),
        ("mixtral", {"every linear layer": ALL_LINEAR, "queries and values": PAIR}),
    ],
)
def test_choices_of_layers(family: str, expected: dict[str, tuple[str, ...]]) -> None:
    available = adaptable_layers(random_model(family))
    groups = target_groups(available)
    assert {"every linear layer": ALL_LINEAR} | {
        name: set(each) for name, each in expected.items() if each != ALL_LINEAR
    } == {name: each if each == ALL_LINEAR else set(each) for name, each in groups.items()}
    parts = [
        select_targets(available, groups[name])
        for name in ("the MLP only", "the attention only")
        if name in groups
    ]
    assert not parts or sorted(sum(parts, ())) == sorted(available)


def test_equal_parameters_and_the_laws_learning_rate() -> None:
    settings, impossible = other_targets(CONTEXT, SETTING)
    assert not impossible
    assert [setting.target_modules for setting in settings] == [MLP, ATTENTION, PAIR]
    for setting in settings:
        ratio = parameters(CONTEXT, setting) / parameters(CONTEXT, SETTING)
        assert abs(ratio - 1) <= 0.5 / setting.r
        assert setting.scaling == SETTING.scaling

        def law(r: int) -> float:
            return learning_rate_law(r=r, lora_alpha=2 * r, batch_size=16, rows=1000, epochs=1).value

        assert setting.learning_rate == pytest.approx(1e-3 * law(setting.r) / law(8), rel=0.05)
    fixed, _ = other_targets(CONTEXT.changed(lora_alpha=24), SETTING)
    assert {setting.lora_alpha for setting in fixed} == {24}
    mine, _ = other_targets(CONTEXT, replace(SETTING, target_modules=("v_proj", "q_proj")))
    assert [setting.target_modules for setting in mine] == [ALL_LINEAR, MLP, ATTENTION]


def test_parameters_are_those_of_the_adapter() -> None:
    base = tiny_family("gpt2")
    context = CONTEXT.changed(targets=base.profile.targets)
    subject = trial(r=4).hyper_parameters
    for setting in (subject, *other_targets(context, subject)[0]):
        targets = find_targets(base.profile.targets, setting.target_modules)
        assert parameters(context, setting) == AdapterLayout.of(setting, targets).size


def test_layers_too_small_for_as_many_parameters() -> None:
    settings, impossible = other_targets(CONTEXT, replace(SETTING, r=32, lora_alpha=64))
    assert impossible == ("queries and values",)
    assert len(settings) == 2


Excess = Callable[[HyperParameters], float]


def play(excess: Excess, context: SearchContext = CONTEXT) -> tuple[TargetsAnswer, list[TrialResult]]:
    """The stage on simulated runs: rows vary by .1, seeds by .002, `excess` is the true difference."""
    rows = np.random.default_rng(1).gamma(2.0, 0.3, ROWS)

    def run(subject: Trial) -> TrialResult:
        random = np.random.default_rng([subject.seed, subject.hyper_parameters.r])
        level = excess(subject.hyper_parameters) + 0.002 * random.normal()
        nll = (rows + level + 0.1 * random.normal(size=ROWS)) * WEIGHTS
        return TrialResult(
            asked=subject, trial=subject, nll=float(nll.sum() / WEIGHTS.sum()), example_nll=nll, cost=1.0
        )

    seen = [run(Trial(hyper_parameters=SETTING, seed=seed)) for seed in (1, 2, 3)]

    def search(ledger: Ledger) -> Procedure[TargetsAnswer]:
        incumbent = Contender(setting=SETTING, results=tuple(seen))
        return targets_stage(context, incumbent, seeds=3, earlier=seen, spare=ledger.left)

    history: list[TrialResult] = []
    while trials := ask(search, context, history):
        assert {each.stage for each in trials} == {Stage.TARGETS}
        history += [run(each) for each in trials]
    return decide(search, context, history), history


def test_better_layers_are_taken() -> None:
    answer, history = play(lambda setting: {MLP: -0.1, PAIR: 0.05}.get(setting.target_modules, 0.0))
    assert answer.winner.setting.target_modules == MLP
    assert len(answer.winner.results) == 3
    assert len(history) == 5
    claims = targets_claims(CONTEXT, answer, Ledger(budget=30.0))
    assert [claim.holds for claim in claims] == [True, None, False]  # as good, better, worse
    assert "the MLP only at rank" in claims[0].claim
    assert claims[0].value == pytest.approx(-0.1, abs=0.02)


def test_a_tie_keeps_what_was_used() -> None:
    answer, history = play(lambda setting: 0.0)
    assert answer.winner.setting == SETTING
    assert len(history) <= 5
    last = targets_claims(CONTEXT, answer, Ledger(budget=30.0))[-1]
    assert last.claim == "Every linear layer at rank 8 is kept: nothing else was shown better."


def test_of_two_that_are_better_and_as_good_the_fewer_layers() -> None:
    better = {MLP: -0.1, PAIR: -0.1}
    answer, _ = play(lambda setting: better.get(setting.target_modules, 0.0))
    assert answer.winner.setting.target_modules in better
    # with a margin wide enough for one seed, the pair is shown as good as the MLP
    wide, _ = play(lambda setting: better.get(setting.target_modules, 0.0), CONTEXT.changed(margin=0.1))
    assert wide.winner.setting.target_modules == PAIR


def test_the_budget_holds() -> None:
    answer, history = play(
        lambda setting: -0.1 if setting.target_modules == MLP else 0.0, CONTEXT.changed(budget=3.0)
    )
    assert len(history) == 3
    assert all(len(contender.results) == 1 for contender, _ in answer.found.compared)


@pytest.mark.parametrize("tune_targets", [True, False])
def test_as_the_last_stage_of_the_search(tune_targets: bool) -> None:
    """The default strategy finds the planted layers at the rank it chose, within the budget."""
    context = CONTEXT.changed(
        ranks=(4, 16),
        budget=40.0,
        margin=0.02,
        tune_targets=tune_targets,
        parameters_per_rank=parameters(CONTEXT, SETTING) // SETTING.r,
        learning_rates=(3e-4, 1e-3, 3e-3),
    )
    rows = np.random.default_rng(1).gamma(2.0, 0.3, ROWS)

    def run(subject: Trial) -> TrialResult:
        setting = subject.hyper_parameters
        random = np.random.default_rng([subject.seed, setting.r, setting.batch_size])
        level = 0.1 * abs(np.log10(setting.learning_rate / 1e-3)) + 0.002 * random.normal()
        level -= 0.2 if setting.target_modules == MLP else 0.0
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
    decision = strategy.decide(history)
    assert sum(result.cost for result in history) <= context.wishes.budget + 1e-6
    planned = {stage.name: stage for stage in strategy.plan().stages}
    assert (str(Stage.TARGETS) in planned) is tune_targets
    assert strategy.plan().cost <= context.wishes.budget
    found = decision.hyper_parameters
    if not tune_targets:
        assert found.target_modules == ALL_LINEAR
        assert not any(result.asked.stage is Stage.TARGETS for result in history)
        return
    assert found.target_modules == MLP
    per_rank = [parameters(context, replace(SETTING, target_modules=t)) for t in (ALL_LINEAR, MLP)]
    assert found.r == round(4 * per_rank[0] / per_rank[1])
    assert [stage.name for stage in decision.stages][-1] == str(Stage.TARGETS)
    assert any(claim.holds and "the MLP only" in claim.claim for claim in decision.evidence)
