"""The verdict in words, its three states, and the opponent that anybody can try: answers known by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import own_metrics
from loratune.metrics import Rows, as_metric, metrics, register, registry
from loratune.reporting.answer import exit_sentence, next_command, recipe_sentence, verdict
from loratune.reporting.facts import ModelScores, RunFacts, from_stored, to_stored
from loratune.reporting.opponent import OPPONENT, fair_gains, fair_opponent, gains_over_opponent
from loratune.reporting.result import result_values
from loratune.reporting.tables import score_table, timeline_parts
from loratune.reporting.takeaways import gain_sentence, headline_gains
from loratune.reporting.wording import CANNOT_TELL, NO, NOTE, YES, state_of, states, sureness
from loratune.values import Classifier, Decision, Evidence, Stage, TrialResult, TrialState
from loratune.values.records import TrainingRecord
from report_fixture import DIAGNOSES, OURS, make_facts, make_trial

FOUR = (1e-4, 2e-4, 4e-4, 8e-4)


def rank_16(*rates: float, **values: object) -> list[TrialResult]:
    return [make_trial(r=16, learning_rate=rate, seed=1, **values) for rate in rates]  # type: ignore[arg-type]


def with_trials(*trials: TrialResult, **changes: object) -> RunFacts:
    return make_facts(results=(*make_facts().results, *trials), **changes)


@pytest.mark.parametrize(
    ("evidence", "state"),
    [
        (Evidence(claim="", holds=True, margin=1.0), YES),
        (Evidence(claim="", holds=False), NO),
        (Evidence(claim="", value=0.1, margin=0.005), CANNOT_TELL),
        (Evidence(claim="", value=0.1, interval=(-1, 1)), CANNOT_TELL),
        (Evidence(claim="", value=1e-3, unit="learning rate"), CANNOT_TELL),
        (Evidence(claim=""), NOTE),
        (Evidence(claim="", value=3.0), NOTE),
    ],
)
def test_three_states_and_notes(evidence: Evidence, state: str) -> None:
    assert state_of(evidence) == state


def test_a_diagnosis_is_a_note_though_it_has_a_limit() -> None:
    found = DIAGNOSES[1].to_evidence()
    assert found.margin == 0.005
    facts = make_facts(decision=Decision(hyper_parameters=OURS, evidence=(found,)))
    assert [state for state, _ in states(facts)] == [NOTE]


def test_states_are_in_the_document() -> None:
    open_claim = Evidence(claim="rank 4 is enough", value=0.1, margin=0.005)
    facts = make_facts(decision=Decision(hyper_parameters=OURS, settled=True, evidence=(open_claim,)))
    (told,) = result_values(facts)["evidence"]
    assert told["holds"] is None
    assert told["state"] == "cannot tell"
    assert sureness(facts) == "1 claim tested: 1 cannot tell; the search ran to its planned end."


def test_rows_right_in_words() -> None:
    facts = make_facts()
    facts = replace(
        facts,
        profile=replace(facts.profile, test_rows=100, labels=("acq", "earn"), label_counts=(96, 104)),
        recommended=ModelScores(test={"accuracy": 0.79}),
        base_model=ModelScores(test={"accuracy": 0.0}),
        default_recipe=ModelScores(test={"accuracy": 0.7}),
    )
    assert verdict(facts) == [
        "79 of 100 test rows right; the untrained model 0, always “earn” about 52, the default recipe 70."
    ]


def test_without_rows_to_count_the_loss_is_told() -> None:
    facts = make_facts(
        recommended=ModelScores(test={"nll": 0.17}), base_model=ModelScores(test={"nll": 2.94})
    )
    assert verdict(replace(facts, default_recipe=ModelScores())) == [
        "Loss of 0.1700 nats a token on the test rows (lower is better); the untrained model 2.9400."
    ]


def test_the_opponent_is_the_best_of_its_four_learning_rates() -> None:
    trials = rank_16(*FOUR)
    facts = with_trials(*trials)
    found = fair_opponent(facts)
    assert found.tried == FOUR
    assert found.best is min(trials, key=lambda each: each.nll)
    heads, rows = score_table(facts)
    cells = dict(zip(heads, next(cells for name, cells, _ in rows if name == OPPONENT), strict=True))
    assert cells["validation NLL"] == f"{found.best.nll:.4f}"
    assert cells["test NLL"] == "–"
    assert (
        "On the 120 validation rows 102 are right, 101 by the best of 4 learning rates at rank 16."
        in " ".join(verdict(facts))
    )


def test_gains_over_the_opponent_come_first_and_are_paired() -> None:
    facts = with_trials(*rank_16(*FOUR))
    theirs = fair_opponent(facts).best
    ours = next(
        each for each in facts.results if each.asked.stage == "final" and each.trial.hyper_parameters == OURS
    )
    assert theirs is not None
    assert ours.example_nll is not None
    assert theirs.example_nll is not None
    by_hand = np.sum(theirs.example_nll - ours.example_nll) / np.sum(facts.validation_weights)
    first, *others = headline_gains(facts)
    assert (first.over, first.split, first.metric) == (OPPONENT, "validation", "nll")
    assert first.value == pytest.approx(by_hand)
    assert others[0].over == OPPONENT  # the accuracy
    assert others[1].over == "default recipe"
    told = result_values(facts)["metrics"]["fair_opponent"]
    assert told["learning_rates"] == list(FOUR)
    assert told["gains"][0]["value"] == pytest.approx(by_hand)


def test_a_users_metric_in_which_smaller_is_better_has_its_paired_gain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of our rows has 2 wrong characters, each of theirs 5: 3 fewer, on the page and in the document."""
    monkeypatch.setattr(registry, "_OWN", {})
    own = register(as_metric(own_metrics.wrong_characters))
    ours, *theirs = (
        replace(
            each, metrics={**each.metrics, own.name: wrong}, example_scores={own.column: np.full(120, wrong)}
        )
        for each, wrong in zip(
            (make_trial(Stage.FINAL, seed=0), *rank_16(*FOUR)), (2.0, 5.0, 5.0, 5.0, 5.0), strict=True
        )
    )
    facts = make_facts(results=(ours, *theirs), metric=own.name, optimised=own.info)
    rows = Rows(weights=facts.validation_weights)
    facts = replace(facts, fair_gains=gains_over_opponent(facts, metrics(own.name), rows))
    stored = from_stored(to_stored(facts), facts.results)
    monkeypatch.setattr(registry, "_OWN", {})  # a report is made without its code
    gain = {each.metric: each for each in headline_gains(stored)}[own.name]
    assert (gain.over, gain.value, gain.interval) == (OPPONENT, 3.0, (3.0, 3.0))
    assert gain_sentence(gain).startswith(
        "validation wrong characters 3 characters lower than the best of 4 learning rates at rank 16"
    )
    in_document = {
        each["metric"]: each for each in result_values(stored)["metrics"]["fair_opponent"]["gains"]
    }
    assert in_document[own.name]["value"] == 3.0


def test_a_run_of_an_earlier_version_has_the_gains_in_what_is_built_in() -> None:
    facts = with_trials(*rank_16(*FOUR))
    stored = to_stored(facts)
    del stored["fair_gains"]
    assert [each.metric for each in fair_gains(from_stored(stored, facts.results))] == ["nll", "accuracy"]


@pytest.mark.parametrize(
    "trials",
    [
        rank_16(*FOUR[:3]),
        rank_16(*FOUR, fraction=0.25),
        rank_16(*FOUR, batch_size=8),
        rank_16(*FOUR, epochs=1),
        rank_16(*FOUR, state=TrialState.DIVERGED),
    ],
    ids=["three", "part of the rows", "batch", "epochs", "diverged"],
)
def test_without_its_runs_it_is_missing(trials: list[TrialResult]) -> None:
    facts = with_trials(*trials)
    assert fair_opponent(facts).best is None
    assert fair_opponent(facts).sentence.startswith(
        "Missing: the best of 4 learning rates at rank 16 (1e-4, 2e-4"
    )
    assert fair_gains(facts) == ()
    assert OPPONENT not in [name for name, _, _ in score_table(facts)[1]]


def test_near_learning_rates_stand_in_each_for_one() -> None:
    assert fair_opponent(with_trials(*rank_16(1.2e-4, 2.3e-4, 3.9e-4, 9e-4))).best is not None
    assert fair_opponent(with_trials(*rank_16(1.2e-4, 2.3e-4, 3.9e-4, 1.2e-3))).best is None


def test_the_recipe_as_it_was_run() -> None:
    told = recipe_sentence(make_facts())
    assert "rank 16, alpha 32, learning rate 2e-4, batch size 16, 3 epochs; 360 steps" in told


@pytest.mark.parametrize(
    ("cut", "code", "command"), [(True, "3:", "--resume"), (False, "0:", "generate 'my runs'")]
)
def test_exit_code_and_what_comes_next(cut: bool, code: str, command: str) -> None:
    facts = make_facts(cut_by_clock=cut, directory="my runs")
    assert exit_sentence(facts).startswith(code)
    assert command in next_command(facts)


def test_a_classifier_writes_no_text_and_is_merged() -> None:
    training = cast(TrainingRecord, SimpleNamespace(classifier=Classifier()))
    assert next_command(make_facts(training=training, directory="my runs")) == (
        "loratune merge 'my runs' --out 'my runs-merged'"
    )


def test_the_timeline_is_one_whole() -> None:
    cost = replace(make_facts().cost, timeline=(("start-up", 10.0), ("training", 30.0), ("waiting", 0.0)))
    assert [(each.name, each.percent, each.time) for each in timeline_parts(cost)] == [
        ("start-up", 25.0, "10 s"),
        ("training", 75.0, "30 s"),
    ]


def test_where_no_model_gets_a_row_right_to_the_last_token_the_losses_are_told() -> None:
    scores = {name: ModelScores(validation={"nll": nll, "exact_match": 0.0}, test={"nll": nll, "exact_match": 0.0})
              for name, nll in (("recommended", 1.5), ("default_recipe", 1.75), ("base_model", 2.5))}  # fmt: skip
    told = verdict(make_facts(**scores))
    assert told == [
        "Loss of 1.5000 nats a token on the test rows (lower is better); the untrained model 2.5000, "
        "the default recipe 1.7500."
    ]
    assert verdict(make_facts(**scores, metric="exact_match"))[0].startswith("0 of 500 test rows right")
