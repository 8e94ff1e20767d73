"""How many passes over the rows: a question of the search where the user leaves it open."""

from dataclasses import replace

import pytest

from loratune.search.evidence import EvidenceStrategy
from loratune.search.space import other_epochs
from loratune.values import (
    CurvePoint,
    DataFacts,
    Decision,
    ModelFacts,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    Wishes,
)

CHOICES = (1.0, 2.0, 3.0, 5.0)
BEST = {1.0: 0.6, 2.0: 0.5, 3.0: 0.5, 5.0: 0.5}


def facts(**wishes: object) -> SearchContext:
    known: dict[str, object] = {"ranks": (4, 16), "lora_alpha": 32.0, "budget": 60.0, "epochs": 3.0}
    return SearchContext(
        data=DataFacts(rows=2_000, tokens=60_000, supervised_tokens=10_000),
        model=ModelFacts(hidden_size=576),
        wishes=Wishes(**(known | {"epoch_choices": CHOICES} | wishes)),  # type: ignore[arg-type]
    )


def search(
    context: SearchContext, losses: dict[float, float], curve: tuple[CurvePoint, ...] = ()
) -> tuple[Decision, list[TrialResult]]:
    """Runs whose NLL depends on their passes over the rows, and a little on the seed."""
    strategy, history = EvidenceStrategy(context), list[TrialResult]()
    while trials := strategy.ask(history):
        for trial in trials:
            nll = losses[trial.hyper_parameters.epochs] + 1e-4 * (trial.seed % 3)
            history.append(_result(trial, context, nll, curve))
    return strategy.decide(history), history


def _result(trial: Trial, context: SearchContext, nll: float, curve: tuple[CurvePoint, ...]) -> TrialResult:
    return TrialResult(asked=trial, trial=trial, nll=nll, cost=context.cost(trial), curve=curve)


def test_neighbours_of_the_usual_number_are_tried() -> None:
    assert other_epochs(facts()) == (2.0, 5.0)
    assert other_epochs(facts(epochs=1.0)) == (2.0,)
    assert other_epochs(facts(epochs=5.0)) == (3.0,)
    assert other_epochs(facts(epoch_choices=())) == ()


def test_fewer_passes_are_taken_where_they_are_as_good() -> None:
    decision, history = search(facts(), BEST)
    assert decision.hyper_parameters.epochs == 2
    tried = {x.asked.hyper_parameters.epochs for x in history if x.asked.stage is Stage.EPOCHS}
    assert tried == {2.0, 5.0}
    assert any("2 epochs" in claim.claim and claim.holds for claim in decision.evidence)


def test_more_passes_are_taken_only_where_they_are_better() -> None:
    better = {2.0: 0.6, 3.0: 0.5, 5.0: 0.4}
    assert search(facts(), better)[0].hyper_parameters.epochs == 5
    worse = {2.0: 0.6, 3.0: 0.5, 5.0: 0.5}
    assert search(facts(), worse)[0].hyper_parameters.epochs == 3


def test_the_learning_rate_moves_with_the_examples_seen() -> None:
    _, history = search(facts(), BEST)
    (few,) = {
        x.asked.hyper_parameters.learning_rate
        for x in history
        if x.asked.stage is Stage.EPOCHS and x.asked.hyper_parameters.epochs == 2
    }
    chosen = replace(search(facts(epoch_choices=()), BEST)[0].hyper_parameters, epochs=2.0)
    assert few == pytest.approx(chosen.learning_rate * (2 / 3) ** -0.18, rel=0.05)


def test_more_passes_are_not_tried_where_the_usual_ones_over_fit() -> None:
    curve = tuple(
        CurvePoint(step=step, fraction=step / 4, train_nll=1 / step, validation_nll=value)
        for step, value in ((1, 0.5), (2, 0.4), (3, 0.6), (4, 0.5))
    )
    _, history = search(facts(), BEST, curve)
    assert {x.asked.hyper_parameters.epochs for x in history if x.asked.stage is Stage.EPOCHS} == {2.0}


def test_the_users_number_is_kept_and_a_small_budget_says_what_it_left_out() -> None:
    fixed = facts(epoch_choices=())
    _, history = search(fixed, BEST)
    assert not [x for x in history if x.asked.stage is Stage.EPOCHS]
    assert str(Stage.EPOCHS) not in [stage.name for stage in EvidenceStrategy(fixed).plan().stages]
    plan = EvidenceStrategy(facts(budget=5.0)).plan()
    assert any("epochs are not searched, they stay at 3" in sentence for sentence in plan.dropped)
    assert next(stage for stage in plan.stages if stage.name == Stage.EPOCHS).note == "left out"
