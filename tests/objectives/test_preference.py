"""DPO, ORPO and SimPO: against their contract, against plain PyTorch with PEFT, and through whole packs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch.nn.functional import log_softmax, logsigmoid
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from engine_fixture import REFERENCE, engine, tiny_llama, trial
from loratune.data.table import TokenTable
from loratune.engine.slot import MAX_GRADIENT_NORM, warmup_steps
from loratune.errors import ModelError
from loratune.lora.peft_io import lora_config
from loratune.objectives.objective import Objective, Supervised
from loratune.objectives.preference import Dpo, Orpo, Preference, Simpo
from loratune.testing.objectives import ObjectiveContract
from loratune.values import Trial
from objectives.test_objectives import pairs_table


def formula(
    kind: type[Preference], chosen: torch.Tensor, rejected: torch.Tensor, base: torch.Tensor, beta: float
) -> torch.Tensor:
    """The papers' loss of one pair, from log-likelihoods of the answers' tokens and the base's two sums [2]."""
    if kind is Dpo:
        return -logsigmoid(beta * ((chosen.sum() - base[0]) - (rejected.sum() - base[1])))
    good, bad = chosen.mean(), rejected.mean()
    if kind is Simpo:
        return -logsigmoid(beta * (good - bad) - beta / 2)
    odds = torch.log(good.exp() / (1 - good.exp())) - torch.log(bad.exp() / (1 - bad.exp()))
    return -good - beta * logsigmoid(odds)


class _OfPairs(ObjectiveContract):
    kind: type[Preference]

    def objective(self, model: PreTrainedModel) -> Objective:
        return self.kind(model)

    def reference(
        self, subject: Objective, states: torch.Tensor, asked: Supervised, output: Any
    ) -> torch.Tensor:
        assert isinstance(subject, Preference)
        assert asked.rows is not None
        assert asked.betas is not None
        assert asked.references is not None
        likely = log_softmax(subject.model.lm_head(states), -1)[torch.arange(len(states)), asked.targets]
        losses = torch.zeros_like(likely)
        for pair in range(int(asked.rows.max()) // 2 + 1):
            chosen, rejected = asked.rows == 2 * pair, asked.rows == 2 * pair + 1
            named = float(asked.betas[chosen][0])
            base = torch.stack([asked.references[chosen][0], asked.references[rejected][0]])
            beta = self.kind.beta if named != named else named
            loss = formula(self.kind, likely[chosen], likely[rejected], base, beta)
            own = chosen | rejected
            losses = torch.where(own, loss / own.sum(), losses)
        return losses


class TestDpo(_OfPairs):
    kind = Dpo


class TestOrpo(_OfPairs):
    kind = Orpo


class TestSimpo(_OfPairs):
    kind = Simpo


TABLE = pairs_table(18)
TRIALS = [
    trial(1, batch_size=4, learning_rate=2e-2, beta=0.1),
    trial(2, r=8, batch_size=3, learning_rate=1e-2, beta=0.5, weight_decay=0.1),
    trial(3, r=2, batch_size=6, learning_rate=5e-3),
]


def likelihoods(model: Any, tokens: np.ndarray, supervised: np.ndarray) -> torch.Tensor:
    """[supervised tokens] from the full logits of one row."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    scores = log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
    return scores[torch.arange(len(ids) - 1), ids[1:]][torch.from_numpy(supervised[1:].copy())]


def losses_of(
    kind: type[Preference], model: Any, table: TokenTable, rows: Sequence[int], beta: float
) -> torch.Tensor:
    """[pairs] of a PEFT model; the reference is the same model without its adapter."""
    found = []
    for row in rows[::2]:
        both = [table.row(int(each)) for each in (row, row + 1)]
        with torch.no_grad(), model.disable_adapter():
            base = torch.stack([likelihoods(model, *each).sum() for each in both])
        found.append(formula(kind, *(likelihoods(model, *each) for each in both), base, beta))
    return torch.stack(found)


def alone(
    kind: type[Preference], asked: Trial, initial: Any, batches: Any, steps: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Plain PEFT, torch's AdamW and clipping, the papers' formula."""
    model, setting = tiny_llama().model, asked.hyper_parameters
    torch.manual_seed(asked.seed)
    wrapped = get_peft_model(model, lora_config(setting, model, initial.layout.targets)).eval()
    own = {name: each for name, each in wrapped.named_parameters() if each.requires_grad}
    optimiser = torch.optim.AdamW(
        own.values(), lr=setting.learning_rate, eps=1e-8, weight_decay=setting.weight_decay
    )
    scheduler = get_linear_schedule_with_warmup(optimiser, warmup_steps(setting, len(batches)), len(batches))
    losses = []
    for _, rows in zip(range(steps), batches, strict=False):
        beta = kind.beta if setting.beta is None else setting.beta
        loss = losses_of(kind, wrapped, TABLE, rows, beta).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.values(), MAX_GRADIENT_NORM)
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses, {name.removeprefix("base_model.model."): value.detach() for name, value in own.items()}


def referenced(table: TokenTable) -> TokenTable:
    return table.referenced(engine(tiny_llama(), table).reference_likelihoods(table))


@pytest.mark.parametrize("kind", [Dpo, Orpo, Simpo])
@pytest.mark.parametrize("paths", [None, REFERENCE], ids=["flat", "padded"])
def test_a_pack_of_pairs_is_exact(kind: type[Preference], paths: Any) -> None:
    """Three trials of other ranks, rates and betas in small micro-batches, each as the formula trains it alone."""
    subject = engine(
        tiny_llama(), referenced(TABLE), paths=paths, objective=kind, max_tokens_per_micro_batch=60
    )
    steps, initials, slots = 6, subject.initials(TRIALS), subject.slots(TRIALS)
    with subject.attached() as step:
        for _ in range(steps):
            step([slot for slot in slots if not slot.done])
    for slot, initial in zip(slots, initials, strict=True):
        losses, weights = alone(kind, slot.trial, initial, subject.batches(slot.trial), steps)
        np.testing.assert_allclose(slot.losses, losses, rtol=1e-9)
        for name, (a, b) in slot.adapter.views().items():
            torch.testing.assert_close(a, weights[f"{name}.lora_A.default.weight"], rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(b, weights[f"{name}.lora_B.default.weight"], rtol=1e-9, atol=1e-11)


def test_what_is_measured_is_of_pairs() -> None:
    """Of the base model nothing is preferred; a trained adapter's margins are the formula's, whatever its beta."""
    train, validation = referenced(pairs_table(40)), referenced(pairs_table(9, seed=1))
    subject = engine(tiny_llama(), train, validation, objective=Dpo)
    (base,) = subject.evaluate([None], validation)
    assert base.example_nll == pytest.approx(np.full(9, np.log(2)))
    assert (base.margins == 0).all()
    assert subject.scoring.measure(base, validation)[0] == {
        "nll": pytest.approx(np.log(2)),
        "preference_accuracy": 0.5,
        "preference_margin": 0.0,
    }
    found: list[Any] = []
    waiting = [trial(0, r=8, batch_size=8, learning_rate=1e-2, epochs=4.0, beta=0.3)]
    subject.run(
        lambda: waiting.pop() if waiting else None, slots=1, on_result=lambda *both: found.append(both)
    )
    ((result, adapter),) = found
    assert result.metrics["preference_accuracy"] > 0.8
    assert result.example_scores["preference_margin"].shape == (9,)
    (read,) = subject.evaluate([adapter], validation)
    assert read.margins is not None
    assert read.nll == pytest.approx(float(np.logaddexp(0, -0.3 * read.margins).mean()), rel=1e-12)
    assert result.metrics["preference_margin"] == pytest.approx(float(read.margins.mean()), rel=1e-12)


def test_many_models_are_read_with_their_own_betas() -> None:
    validation = referenced(pairs_table(5, seed=1))
    subject = engine(tiny_llama(), referenced(TABLE), validation, objective=Dpo)
    first, second = subject.initials(TRIALS[:2])
    for each in (first, second):
        each.weights.normal_(0, 0.05, generator=torch.Generator().manual_seed(3))
    alone = [subject.evaluate([each], validation)[0] for each in (first, second)]
    together = subject.evaluate([first, None, second], validation)
    for one, other in zip(alone, (together[0], together[2]), strict=True):
        np.testing.assert_allclose(one.example_nll, other.example_nll, rtol=1e-9)
    assert together[1].example_nll == pytest.approx(np.full(5, np.log(2)))


def test_dpo_without_the_base_models_likelihoods_is_refused() -> None:
    subject = engine(tiny_llama(), TABLE, objective=Dpo)
    with (
        pytest.raises(ModelError, match="compares with the base model's likelihoods"),
        subject.attached() as step,
    ):
        step(subject.slots(TRIALS[:1]))
