"""Every sign by injection on the real engine: one fault, its own diagnosis with its remedy, and no other."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from chain import END, FIRST, PADDING, SEPARATOR, WORDS, pairs, speaker, task
from engine_fixture import engine, trial
from injection import MARGIN, TRAIN, VALIDATION, looked_at, only, run, trained
from loratune.analysis.diagnose import higher_rate_was_worse, of_seeds, of_trial
from loratune.data.table import TokenTable
from loratune.model.base import BaseModel
from loratune.values import TrialResult, TrialState
from loratune.values.analysis import Diagnosis, Sign
from subjects import subject_of

Pair = tuple[list[int], list[bool]]


def table(rows: list[Pair]) -> TokenTable:
    return TokenTable.from_rows(rows)


@pytest.mark.parametrize("seed", [10, 12])
def test_a_healthy_run_has_none(seed: int) -> None:
    found, result = run(task(128, seed=seed), task(64, seed=seed + 50))
    others = [
        each for each in found if each.sign is not Sign.LEAK
    ]  # the language is small: rows may coincide
    assert not others, [each.sentence for each in others]
    assert result.nll < 1.2, "it has learnt: the language itself costs 1.58"


@pytest.mark.parametrize("learning_rate", [0.45, 1.5])
def test_thirty_times_the_learning_rate(learning_rate: float) -> None:
    found, _ = run(task(128, seed=TRAIN), learning_rate=learning_rate)
    told = only(found, Sign.UNSTABLE)
    assert f"Halve the learning rate to {learning_rate / 2:.2g}" in told.remedy
    assert "alpha from 2r to 1.5r" in told.remedy


def test_a_run_that_its_guard_ended_names_the_same_remedy() -> None:
    found, result = run(task(128, seed=TRAIN), learning_rate=0.45, batch_size=64, epochs=20)
    assert "mean loss rose" in result.failure
    told = only(found, Sign.UNSTABLE)
    assert result.failure in told.finding
    assert told.remedy.startswith("Halve the learning rate to 0.23")


def overflowing(token: int) -> BaseModel:
    """The model with one token whose embedding is not finite."""
    base = speaker()
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("inf")
    return replace(base, model=model)


@pytest.mark.parametrize("epochs", [1, 3])
def test_one_batch_that_is_not_finite(epochs: int) -> None:
    """The row is named, its steps are skipped, and the run learns as it would without."""
    rows = [row for row in pairs(160, seed=TRAIN) if FIRST not in row[0]][:128]
    rows[17][0][2] = FIRST  # in the prompt: the base model cannot read this row
    held_out = [row for row in pairs(80, seed=VALIDATION) if FIRST not in row[0]][:64]
    found, result = run(table(rows), table(held_out), overflowing(FIRST), epochs=epochs, learning_rate=3e-2)
    told = only(found, Sign.NOT_FINITE)
    assert ("training row 17 (counted from 0)" in told.finding) == (epochs == 3), (
        "one batch of eight cannot say which"
    )
    assert " 17" in told.finding
    assert told.remedy.startswith("Check the row")
    assert "skipped without an update" in told.done
    assert result.finished
    assert result.step_nll is not None
    assert (~np.isfinite(result.step_nll)).sum() == epochs
    assert result.nll < 1.3
    assert np.isfinite([point.train_nll for point in result.curve]).all()


def test_numbers_that_overflow_everywhere_are_not_blamed_on_the_rows() -> None:
    found, result = run(task(64, seed=TRAIN), base=overflowing(SEPARATOR))
    assert result.state is TrialState.DIVERGED
    told = only(found, Sign.NOT_FINITE)
    assert told.finding.startswith("Before training the base model's loss is not finite on 8 of 8 rows")
    assert "--dtype" in told.remedy


def test_scattered_overflow_is_not_blamed_on_the_rows() -> None:
    """The same steps with other rows each time."""
    packs = engine(speaker(), task(64, seed=TRAIN), task(64, seed=VALIDATION))
    result, _ = trained(packs, trial(0, batch_size=8, epochs=3))
    assert result.step_nll is not None
    losses = result.step_nll.copy()
    losses[[3, 11, 18, 21]] = np.nan
    told = only(
        of_trial(
            subject_of(packs),
            replace(result, step_nll=losses),
            before=1.6,
            margin=1.0,
            higher_rate_is_worse=True,
        ),
        Sign.NOT_FINITE,
    )
    assert "whatever the rows" in told.finding
    assert "--dtype" in told.remedy


def test_padding_that_is_learnt() -> None:
    rows = pairs(128, seed=TRAIN)
    longest = max(len(tokens) for tokens, _ in rows)
    padded = [
        (tokens + [PADDING] * (longest - len(tokens)), flags + [True] * (longest - len(tokens)))
        for tokens, flags in rows
    ]
    told = only(run(table(padded))[0], Sign.PADDING)
    assert "Take the padding out" in told.remedy
    masked = [
        (tokens, flags[: len(row[0])] + [False] * (longest - len(row[0])))
        for (tokens, flags), row in zip(padded, rows, strict=True)
    ]
    assert run(table(masked))[0] == ()


def other_words(rows: list[Pair]) -> list[Pair]:
    """Rendered with other tokens than the model knows them by."""
    return [
        ([FIRST + (t - FIRST + 7) % WORDS if t >= FIRST else t for t in tokens], flags)
        for tokens, flags in rows
    ]


def backwards(rows: list[Pair]) -> list[Pair]:
    return [(tokens[::-1], flags) for tokens, flags in rows]


def bare(rows: list[Pair]) -> list[Pair]:
    """Without beginning and separator."""
    return [(tokens[1:5] + tokens[6:], flags[1:5] + flags[6:]) for tokens, flags in rows]


@pytest.mark.parametrize("wrong", [other_words, backwards])
def test_a_template_that_the_model_does_not_know(wrong) -> None:  # type: ignore[no-untyped-def]
    found, _ = run(table(wrong(pairs(128, seed=TRAIN))), table(wrong(pairs(64, seed=VALIDATION))))
    told = only(found, Sign.TEMPLATE)
    assert "guessing among 97 tokens would cost 4.6" in told.finding
    assert told.remedy.startswith("Check template")


def test_a_template_that_differs_between_the_splits() -> None:
    found, _ = run(table(bare(pairs(128, seed=TRAIN))))
    assert "not the same kind of text" in only(found, Sign.TEMPLATE).finding


def test_an_unknown_end_alone_is_not_a_wrong_template() -> None:
    """A model that ends its answers otherwise learns the new end in a few steps."""
    rows = [([*tokens[:-1], PADDING], flags) for tokens, flags in pairs(128, seed=TRAIN)]
    held_out = [([*tokens[:-1], PADDING], flags) for tokens, flags in pairs(64, seed=VALIDATION)]
    packs = engine(speaker(), table(rows), table(held_out))
    assert packs.evaluate([None], packs.train)[0].nll > 2.4
    assert looked_at(packs) == ()


def test_coined_labels_are_not_a_wrong_template_and_garbled_prompts_are() -> None:
    """Labels that the model finds less likely than random tokens are only names; the text around them tells."""
    names = [[FIRST + 80, END], [FIRST + 81, END]]

    def labelled(rows: list[Pair]) -> TokenTable:
        pieces = [(tokens[:6] + names[i % 2], [False] * 6 + [True] * 2) for i, (tokens, _) in enumerate(rows)]
        return TokenTable.from_rows(pieces, labels=[i % 2 for i in range(len(rows))])

    label_tokens = [np.array(name, np.int32) for name in names]
    packs = engine(
        speaker(),
        labelled(pairs(64, seed=TRAIN)),
        labelled(pairs(64, seed=VALIDATION)),
        label_tokens=label_tokens,
    )
    assert packs.evaluate([None], packs.train)[0].nll > np.log(97)
    assert [each for each in looked_at(packs) if each.sign is Sign.TEMPLATE] == []
    wrong = replace(
        packs,
        train=labelled(other_words(pairs(64, seed=TRAIN))),
        validation=labelled(other_words(pairs(64, seed=VALIDATION))),
    )
    assert [each.sign for each in looked_at(wrong) if each.sign is not Sign.LEAK] == [Sign.TEMPLATE]


def test_evaluation_rows_in_training() -> None:
    leaked = table(pairs(128, seed=TRAIN) + pairs(64, seed=VALIDATION)[:20])
    told = only(run(leaked)[0], Sign.LEAK)
    assert told.finding.startswith("20 of 64 validation rows")
    assert "Take them out" in told.remedy
    packs = engine(speaker(), task(64, seed=TRAIN), task(64, seed=VALIDATION))
    told = only(looked_at(packs, task(64, seed=TRAIN).take(range(30))), Sign.LEAK)
    assert told.finding.startswith("30 of 30 test rows")


def test_overfitting() -> None:
    found, result = run(task(24, seed=TRAIN), epochs=40, r=8, lora_alpha=16, learning_rate=1e-2)
    told = only(found, Sign.OVERFITTING)
    best = min(result.curve, key=lambda point: point.validation_nll)
    assert told.done == f"The weights of step {best.step} are kept."
    assert told.remedy.startswith(f"Train {best.fraction * 40:.2g} epochs")


@pytest.mark.parametrize("learning_rate", [1.5e-4, 1.5e-6])
def test_undertraining(learning_rate: float) -> None:
    told = only(run(task(128, seed=TRAIN), learning_rate=learning_rate)[0], Sign.UNDERTRAINED)
    assert f"Raise the learning rate to {3 * learning_rate:.2g}" in told.remedy


def test_undertraining_where_a_higher_rate_was_worse_asks_for_epochs() -> None:
    packs = engine(speaker(), task(64, seed=TRAIN), task(64, seed=VALIDATION))
    results = [trained(packs, trial(0, learning_rate=rate, batch_size=8))[0] for rate in (3e-3, 0.5)]
    assert higher_rate_was_worse(results[0], results)
    assert not higher_rate_was_worse(results[1], results)
    before = packs.evaluate([None], packs.validation)[0].nll
    found = of_trial(subject_of(packs), results[0], before=before, margin=MARGIN, higher_rate_is_worse=True)
    assert only(found, Sign.UNDERTRAINED).remedy == "Train for more epochs."


def test_seeds_that_disagree_at_the_edge_of_stability() -> None:
    """Real runs: eight seeds at a calm rate agree, eight at thirty times that rate do not."""
    packs = engine(
        speaker(), task(64, seed=TRAIN), task(64, seed=VALIDATION), max_tokens_per_micro_batch=2048
    )
    calm = [trial(seed, learning_rate=rate, batch_size=16) for rate in (2e-3, 4e-3) for seed in range(4)]
    wild = [trial(seed, learning_rate=0.12, batch_size=16) for seed in range(4)]
    results: list[TrialResult] = []
    waiting = calm + wild
    packs.run(lambda: waiting.pop() if waiting else None, slots=12, on_result=lambda r, _: results.append(r))
    told = of_seeds(wild[0].hyper_parameters, results)
    assert told is not None
    assert told.sign is Sign.UNSTABLE
    assert "edge of stability" in told.finding
    assert of_seeds(calm[0].hyper_parameters, [r for r in results if r.trial not in wild]) is None


def test_a_diagnosis_is_a_note_among_the_claims() -> None:
    told = Diagnosis(
        sign=Sign.LEAK, finding="Two rows.", remedy="Do.", done="Done.", value=2.0, unit="rows", limit=0.0
    )
    claim = told.to_evidence()
    assert claim.claim == "Two rows. Done. Do."
    assert claim.holds is None
    assert (claim.value, claim.unit, claim.margin) == (2.0, "rows", 0.0)
