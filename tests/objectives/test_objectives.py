"""Objectives against their contract, and a third party's through whole packs."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, softplus
from transformers import PreTrainedModel

from engine_fixture import REFERENCE, VOCABULARY, engine, tiny_llama, trial
from loratune.data.table import TokenTable
from loratune.engine.portions import Cuts
from loratune.objectives.causal import Causal
from loratune.objectives.objective import Objective, Supervised
from loratune.testing.objectives import ObjectiveContract
from objectives.pair_margin import BETA, PairMargin


class TestCausal(ObjectiveContract):
    def objective(self, model: PreTrainedModel) -> Objective:
        return Causal(model)

    def reference(
        self, subject: Objective, states: torch.Tensor, asked: Supervised, output: Any
    ) -> torch.Tensor:
        assert isinstance(subject, Causal)
        return cross_entropy(subject.model.lm_head(states), asked.targets, reduction="none")


class TestPairMargin(ObjectiveContract):
    def objective(self, model: PreTrainedModel) -> Objective:
        return PairMargin(model)

    def reference(
        self, subject: Objective, states: torch.Tensor, asked: Supervised, output: Any
    ) -> torch.Tensor:
        assert isinstance(subject, PairMargin)
        assert asked.rows is not None
        likely = log_softmax(subject.model.lm_head(states), -1)[torch.arange(len(states)), asked.targets]
        losses = torch.zeros_like(likely)
        for pair in range(int(asked.rows.max()) // 2 + 1):
            chosen, rejected = asked.rows == 2 * pair, asked.rows == 2 * pair + 1
            loss = softplus(-BETA * (likely[chosen].sum() - likely[rejected].sum()))
            own = chosen | rejected
            losses = torch.where(own, loss / own.sum(), losses)
        return losses


def of_the_page() -> Any:
    """The contract of the objective of `docs/extending.md`, from both of its examples as they stand there."""
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    objective, contract = re.findall(
        r"```python\n(.*?)```", page.partition("## An objective\n")[2], re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(objective + contract.replace("from my_objective import Focal\n", ""), names)
    return names["TestFocal"]


class TestFocal(of_the_page()):  # type: ignore[misc]
    """The page's."""


def pairs_table(pairs: int, seed: int = 0) -> TokenTable:
    """A prompt with an answer in 1 to 4 of the tokens 0 to 2, then the same prompt with one of 40 to 42."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(pairs):
        prompt = random.integers(0, VOCABULARY, random.integers(3, 9)).tolist()
        for low in (0, 40):
            answer = random.integers(low, low + 3, random.integers(1, 5)).tolist()
            rows.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return TokenTable.from_rows(rows)


TABLE = pairs_table(18)
TRIALS = [
    trial(1, batch_size=4, learning_rate=2e-2),
    trial(2, r=8, batch_size=3, learning_rate=2e-2, lora_dropout=0.1),
]


def mean_loss(table: TokenTable, rows: np.ndarray) -> float:
    """Of the bare base on those rows, from its full logits."""
    model = tiny_llama().model
    likely = []
    for row in rows:
        tokens, supervised = table.row(int(row))
        ids = torch.from_numpy(tokens.astype(np.int64))
        with torch.no_grad():
            scores = log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
        own = scores[torch.arange(len(ids) - 1), ids[1:]]
        likely.append(float(own[torch.from_numpy(supervised[1:].copy())].sum()))
    margins = np.array(likely[::2]) - np.array(likely[1::2])
    return float(np.logaddexp(0, -BETA * margins).mean())


@pytest.mark.parametrize("paths", [None, REFERENCE], ids=["flat", "padded"])
def test_pairs_learn_together_and_are_never_separated(paths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small micro-batches give the course of large ones and of each trial alone; the first loss is the formula's."""
    seen: list[np.ndarray] = []
    collate = Cuts.collate
    monkeypatch.setattr(
        Cuts,
        "collate",
        lambda self, table, rows, device: seen.append(rows) or collate(self, table, rows, device),
    )

    def courses(group: list[Any], tokens: int) -> list[list[float]]:
        subject = engine(
            tiny_llama(), TABLE, paths=paths, objective=PairMargin, max_tokens_per_micro_batch=tokens
        )
        slots = subject.slots(group)
        first = [slot.next_rows() for slot in slots]
        with subject.attached() as step:
            for _ in range(4):
                step(slots)
        for slot, rows in zip(slots, first, strict=True):
            assert slot.losses[0] == pytest.approx(mean_loss(TABLE, rows), rel=1e-9)
        return [slot.losses for slot in slots]

    whole = courses(TRIALS, 10**6)
    cut = courses(TRIALS, 60)
    assert len(seen) > 12, "small micro-batches are several for a step"
    for rows in seen:
        assert len(rows) % 2 == 0
        assert (rows[1::2] == rows[::2] + 1).all()
        assert (rows[::2] % 2 == 0).all()
    for found, expected in zip(cut, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    for number, each in enumerate(TRIALS):
        np.testing.assert_allclose(courses([each], 60)[0], whole[number], rtol=1e-9)


def test_pairs_are_learnt_and_read_in_whole_pairs() -> None:
    """Trained on what is preferred, new pairs lose less; readings are of whole pairs, in the mean over them."""
    train, validation = pairs_table(40), pairs_table(8, seed=1)
    subject = engine(tiny_llama(), train, validation, objective=PairMargin, validation_subset_size=6)
    sampled = subject.sampled_rows(6)
    assert len(sampled) == 6
    assert (sampled[1::2] == sampled[::2] + 1).all()
    (before,) = subject.evaluate([None], validation)
    assert before.nll == pytest.approx(mean_loss(validation, np.arange(16)), rel=1e-9)
    found = []
    waiting = [trial(0, r=8, batch_size=8, learning_rate=1e-2, epochs=4.0)]
    subject.run(
        lambda: waiting.pop() if waiting else None,
        slots=1,
        on_result=lambda result, _: found.append(result),
    )
    assert found[0].nll < 0.75 * before.nll
    assert np.mean(found[0].step_nll[-5:]) < 0.4 * np.mean(found[0].step_nll[:5])


def test_labels_need_causal_language_modelling() -> None:
    from loratune.engine.labels import LabelScorer
    from loratune.errors import ModelError

    subject = engine(tiny_llama(), TABLE)
    evaluator = subject._evaluator
    evaluator.objective = SimpleNamespace(language_model=None)  # type: ignore[assignment]
    with pytest.raises(
        ModelError, match="labels are scored by a language model, which SimpleNamespace is not"
    ):
        LabelScorer(evaluator, (np.array([1]),))
