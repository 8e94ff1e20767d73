"""Signs in gradients and in the trained matrices, by injection on the real engine; the others: test_diagnosis."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chain import FIRST, pairs, speaker, task
from engine_fixture import engine, trial
from injection import looked_at, only, pack_engine, run, trained
from loratune.analysis.diagnose import of_run, of_trial
from loratune.analysis.signs import leaps
from loratune.data.table import TokenTable
from loratune.engine.slot import schedule
from loratune.lora.layout import Adapter
from loratune.lora.spectrum import _direction, strengths
from loratune.model.base import BaseModel
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.study.record import Study
from loratune.tuning.final import FOLDER, FinalRunner
from loratune.values.analysis import Sign
from loratune.values.events import Event, StageBegan
from subjects import subject_of

FAULTY = 17
"""The row that holds the token with the fault."""


class _Fault(torch.autograd.Function):
    """Nothing on the way there; on the way back the gradient of some tokens is multiplied."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(factors)
        return states.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (factors,) = ctx.saved_tensors
        return gradient * factors, None


def with_fault(token: int, factor: float) -> BaseModel:
    """The model with a last layer whose gradient is wrong wherever it has read `token`."""
    base = speaker()
    model = copy.deepcopy(base.model)
    read: list[torch.Tensor] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
        read[:] = [inputs[0]]

    def spoil(_: nn.Module, __: tuple[torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        factors = torch.where(read[0] == token, factor, 1.0).to(states.dtype)
        return _Fault.apply(states, factors[..., None])  # type: ignore[no-any-return, no-untyped-call]

    model.get_input_embeddings().register_forward_hook(note)
    model.model.norm.register_forward_hook(spoil)
    return replace(base, model=model)


def rows_with_one(token: int) -> tuple[TokenTable, TokenTable]:
    """Training rows of which a single one holds the token, where it is learnt, and validation rows without it."""
    rows = [row for row in pairs(160, seed=1) if token not in row[0]][:128]
    rows[FAULTY][0][7] = token
    held_out = [row for row in pairs(80, seed=7) if token not in row[0]][:64]
    return TokenTable.from_rows(rows), TokenTable.from_rows(held_out)


def test_a_gradient_that_is_not_finite_behind_a_finite_loss() -> None:
    """The engine skips the steps; they are told with their numbers, the row and the remedy."""
    found, result = run(*rows_with_one(FIRST), with_fault(FIRST, float("inf")), epochs=4)
    told = only(found, Sign.NOT_FINITE)
    assert result.step_nll is not None
    assert result.gradient_norms is not None
    assert np.isfinite(result.step_nll).all()
    bad = (np.flatnonzero(~np.isfinite(result.gradient_norms)) + 1).tolist()
    assert len(bad) == 4, "one step in each epoch"
    assert told.finding.startswith(
        f"The gradient was not finite, though the loss was, in 4 of 64 steps ({', '.join(map(str, bad))})"
    )
    assert f"all of them with training row {FAULTY} (counted from 0)" in told.finding
    assert told.remedy.startswith("Check the row: the learning rate is not the cause.")
    assert "--dtype bfloat16 or float32" in told.remedy
    assert told.done == "They were skipped without an update."
    assert result.finished
    assert result.nll < 1.3, "and the rest was learnt"


def test_gradients_that_are_never_finite_are_not_blamed_on_the_learning_rate() -> None:
    """Losses that fall nowhere and rise nowhere, because nothing is ever updated: the guard ends the run."""
    separator = 1
    found, result = run(task(64, seed=1), base=with_fault(separator, float("inf")))
    assert "gradient norm" in result.failure
    told = only(found, Sign.NOT_FINITE)
    assert told.finding.startswith("The gradient was not finite, though the loss was, in 2 of 2 steps (1, 2)")
    assert told.remedy == "Use --dtype bfloat16 or float32; the learning rate is not the cause."


def test_gradients_that_leap_at_one_row() -> None:
    found, result = run(*rows_with_one(FIRST), with_fault(FIRST, 300.0), epochs=4, learning_rate=8e-3)
    told = only(found, Sign.LEAPS)
    assert result.gradient_norms is not None
    leapt = np.flatnonzero(leaps(result.gradient_norms)) + 1
    assert f"in {len(leapt)} of 64 steps ({', '.join(map(str, leapt))})" in told.finding
    assert f"all of them with training row {FAULTY} (counted from 0)" in told.finding
    assert told.remedy.startswith(
        "Check the row; if they are right, halve the learning rate to 0.004, or lower alpha from 2r to 1.5r"
    )
    assert told.done == "Each step's gradient was clipped to norm 1."
    assert result.finished


def test_gradients_that_leap_anywhere_ask_for_a_gentler_rate() -> None:
    """The same run without the fault, its norms made to leap where other rows are read each time."""
    packs = pack_engine(task(128, seed=1))
    result, _ = trained(packs, trial(0, r=4, learning_rate=8e-3, batch_size=8, epochs=4))
    assert result.gradient_norms is not None
    norms = result.gradient_norms.copy()
    assert not leaps(norms).any()
    norms[[40, 50, 60]] *= 30
    changed = replace(result, gradient_norms=norms)
    before = packs.evaluate([None], packs.validation)[0].nll
    told = only(of_trial(subject_of(packs), changed, before=before, margin=0.005), Sign.LEAPS)
    assert "training row" not in told.finding
    assert told.remedy.startswith("Halve the learning rate to 0.004")


def test_the_first_steps_and_norms_that_are_not_finite_are_no_leaps() -> None:
    norms = np.ones(80)
    norms[[3, 31]] = 100.0  # too early to tell
    norms[40] = np.inf
    norms[[50, 60]] = 10.1
    norms[70] = 9.9
    assert np.flatnonzero(leaps(norms)).tolist() == [50, 60]
    assert not leaps(norms[:20]).any()


def test_an_update_that_outgrows_its_layers() -> None:
    """Rank 1 on much data: it learns well and without a sign of trouble, by directions stronger than the layers'."""
    rows = pairs(1024, seed=1)
    seen = {tuple(tokens) for tokens, _ in rows}
    held_out = [row for row in pairs(200, seed=7) if tuple(row[0]) not in seen][:64]
    train, validation = TokenTable.from_rows(rows[:512]), TokenTable.from_rows(held_out)
    found, result = run(train, validation, r=1, lora_alpha=16, learning_rate=2e-2, epochs=8)
    told = only(found, Sign.OUTGROWN)
    assert result.nll < 1.1
    assert told.value is not None
    assert told.value > 0.5
    assert "lower alpha from 16r to 8r, or take a higher rank" in told.remedy
    gentler, _ = run(train, validation, r=8, lora_alpha=8, learning_rate=1e-2, epochs=1)
    assert gentler == (), "the remedy helps"


@pytest.mark.parametrize(("rows", "margin"), [(8, 0.005), (128, 0.02)])
def test_an_adapter_near_its_start_where_the_readings_cannot_tell(rows: int, margin: float) -> None:
    """One step alone, which has one reading; a descent that is within twice the user's margin."""
    found, _ = run(task(rows, seed=1), epochs=1 if rows == 8 else 3, learning_rate=1.5e-4, margin=margin)
    told = only(found, Sign.NEAR_START)
    assert told.value is not None
    assert told.value < 0.1
    assert told.remedy == "Raise the learning rate to 0.00045, or train for more epochs."


def test_where_a_higher_rate_was_worse_the_matrices_are_not_asked_for_a_higher_one() -> None:
    packs = engine(speaker(), task(64, seed=1), task(64, seed=7))
    result, adapter = trained(packs, trial(0, learning_rate=1e-6, batch_size=8))
    told = [
        of_trial(
            subject_of(packs),
            result,
            before=1.6,
            margin=1.0,
            higher_rate_is_worse=worse,
            audit=partial(strengths, adapter, packs.base.model),
        )
        for worse in (False, True)
    ]
    assert [[each.sign for each in found] for found in told] == [[Sign.UNDERTRAINED], []]


def test_strengths_are_largest_singular_values_whatever_alpha_and_b_are_called() -> None:
    packs = engine(speaker(), task(64, seed=1))
    adapter = packs.initial(trial(0, r=3, lora_alpha=6))
    random = torch.Generator().manual_seed(0)
    adapter.weights.copy_(torch.randn(adapter.weights.shape, generator=random))
    halved = replace(adapter.hyper_parameters, lora_alpha=3)
    found, other = (
        strengths(each, packs.base.model)
        for each in (
            adapter,
            Adapter(hyper_parameters=halved, layout=adapter.layout, weights=adapter.weights),
        )
    )
    name = adapter.layout.targets[5].name
    a, b = (each.double().numpy() for each in adapter.views()[name])
    weight = packs.base.model.get_submodule(name).weight.double().numpy()
    assert found.a[5] == pytest.approx(np.linalg.norm(a, 2))
    assert found.b[5] == pytest.approx(2 * np.linalg.norm(b, 2))
    assert found.update[5] == pytest.approx(np.linalg.norm(2 * b @ a, 2))
    assert found.layer[5] == pytest.approx(np.linalg.svd(weight)[1][0], rel=1e-5), "a layer of 32"
    assert found.b / other.b == pytest.approx(2.0)
    assert found.update / other.update == pytest.approx(2.0)


def test_a_large_layer_is_sketched_to_the_same_value_and_leaves_the_random_state() -> None:
    weight = torch.randn(600, 700, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(0, -2, 600)[:, None]  # a flat end, which is the worst for a sketch
    state = torch.random.get_rng_state()
    assert _direction(weight) == pytest.approx(float(torch.linalg.svdvals(weight)[9]), rel=0.05)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("with_weights", [False, True])
def test_a_final_run_that_broke_down_is_repeated_at_half_the_rate_and_both_are_told(
    with_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any weights to show: too high from the start; and with those of an early reading, by a late jump."""
    jump = 16.0 if with_weights else 1.0

    def jumping(step: int, *, warmup: int, total: int) -> float:
        return schedule(step, warmup=warmup, total=total) * (jump if step > 0.6 * total else 1.0)

    monkeypatch.setattr("loratune.engine.slot.schedule", jumping)
    learning_rate = 0.05 if with_weights else 0.2
    packs = pack_engine(task(256, seed=1))
    study = Study.open(tmp_path / "study", fingerprint={})
    events: list[Event] = []
    test = task(32, seed=9)
    runner = FinalRunner(
        runner=LocalRunner(
            engine=packs,
            test=test,
            options=RunnerOptions(folder=study.directory / FOLDER, tell=events.append),
        ),
        subject=subject_of(packs, test),
        study=study,
        patience=3,
        tell=events.append,
    )
    facts = {"r": 4, "lora_alpha": 8, "batch_size": 8, "epochs": 3, "learning_rate": learning_rate}
    final = runner.run(trial(0, **facts).hyper_parameters, None, seed=0)
    results = study.results()
    broken = [result for result in results if result.failure]
    assert broken[0].finished == with_weights
    taken = final.adapter.hyper_parameters.learning_rate
    assert taken == min(results, key=lambda result: result.nll).trial.hyper_parameters.learning_rate
    assert taken < learning_rate
    assert broken[0].trial.hyper_parameters.learning_rate == learning_rate
    assert len(final.notes) == len(results) - 1
    assert [event.trials for event in events if isinstance(event, StageBegan)] == [1] * len(results)
    assert f"it was repeated at half the learning rate, {learning_rate / 2:.3g}" in final.notes[0]
    told = [
        each
        for each in of_run(subject_of(packs), runner.runner, final, results, margin=0.005)
        if each.done.startswith("It was rep")
    ]
    assert {each.sign for each in told} == {Sign.UNSTABLE}
    assert len(told) == sum(each.trial.hyper_parameters.learning_rate > taken for each in broken)
    assert f"repeated at {taken:.2g}, half the learning rate or less" in told[0].done
    assert not told[0].remedy


def test_rows_that_were_taken_out_are_told_as_done() -> None:
    told = only(looked_at(pack_engine(task(64, seed=1)), removed=3), Sign.LEAK)
    assert told.finding.startswith("3 rows of validation or test stood in another split too")
    assert told.done == "They were taken out of validation and test."
    assert not told.remedy
