"""Whole packs on the kernels' path against the reference; on a GPU or interpreted."""

from functools import partial
from itertools import zip_longest

import numpy as np
import pytest
import torch

from engine_fixture import REFERENCE, engine, labelled_table, tiny_llama, trial
from kernel_device import DEVICE
from loratune.engine import body
from loratune.engine.machinery import Paths
from loratune.kernels.launch import KernelPath
from loratune.lora.layout import Adapter
from loratune.model.base import BaseModel
from loratune.model.rows import FlatPath, table_of
from loratune.values import TrialResult

pytestmark = pytest.mark.kernels
KERNELS = Paths(low_rank=KernelPath(True, "tested"), rows=FlatPath(True, "tested"), compiled=False)
LABELS = [[5, 6, 90], [7, 90], [8, 9, 90]]
TABLE = labelled_table(LABELS, 12)


@pytest.fixture(autouse=True)
def _rows_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a CPU, where rows of one length run together otherwise."""
    monkeypatch.setattr(body, "bounds_of", lambda starts, device: table_of(starts).to(device))


def base() -> BaseModel:
    found = tiny_llama(torch.float32)
    found.model.to(DEVICE)
    return found


def run(paths: Paths) -> tuple[list[TrialResult], list[Adapter]]:
    """Four trials in two slots, with labels."""
    tokens = tuple(np.array(label, np.int32) for label in LABELS)
    subject = engine(base(), TABLE, TABLE.take(range(3)), paths=paths, label_tokens=tokens)
    waiting = [
        trial(0, batch_size=6),
        trial(1, r=20, lora_dropout=0.3, batch_size=12, epochs=2.0),
        trial(2, r=3, target_modules=("q_proj", "down_proj"), batch_size=6),
        trial(3, learning_rate=1e-2, weight_decay=0.1, fraction=0.5, batch_size=6),
    ]
    found: list[tuple[TrialResult, Adapter]] = []
    subject.run(
        lambda: waiting.pop(0) if waiting else None,
        slots=2,
        on_result=lambda result, adapter: found.append((result, adapter)),
    )
    found.sort(key=lambda each: each[0].trial.seed)
    results, adapters = zip(*found, strict=True)
    return list(results), list(adapters)


def test_packs_with_labels_and_refilled_slots() -> None:
    """Losses, gradients, readings, labels and final weights."""
    (expected, weights), (found, ours) = run(REFERENCE), run(KERNELS)
    close = partial(pytest.approx, rel=1e-4)
    for before, after, reference, adapter in zip(expected, found, weights, ours, strict=True):
        assert after.nll == close(before.nll)
        assert after.metrics == close(before.metrics)
        assert [point.validation_nll for point in after.curve] == close(
            [point.validation_nll for point in before.curve]
        )
        distance = torch.linalg.vector_norm(adapter.weights - reference.weights)
        assert distance <= 1e-4 * torch.linalg.vector_norm(reference.weights)


@pytest.mark.parametrize("order", [(0, 1, None), (None, 0, 1), (None,)])
def test_the_bare_base_is_evaluated_wherever_it_stands(order: tuple[int | None, ...]) -> None:
    """Two models at a time: the bare base beside another, or alone while others are assigned."""
    length = int(TABLE.lengths.max())
    found = []
    for paths in (REFERENCE, KERNELS):
        subject = engine(base(), TABLE, paths=paths, max_tokens_per_evaluation=2 * length)
        adapters = [subject.initial(trial(seed, r=4 + seed)) for seed in range(2)]
        for adapter in adapters:
            generator = torch.Generator().manual_seed(adapter.hyper_parameters.r)
            adapter.weights.copy_(0.1 * torch.randn(adapter.weights.shape, generator=generator))
        models = [None if place is None else adapters[place] for place in order]
        found.append(
            [evaluation.example_nll for evaluation in subject.evaluate(models, TABLE.take(range(3)))]
        )
    for expected, got in zip_longest(*found):
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_trial_that_breaks_down_harms_nobody() -> None:
    """In tiles and blocks that it shares with others; its own end is noticed."""
    trials = [
        trial(0, batch_size=4, epochs=2.0),
        trial(1, learning_rate=1e30, batch_size=4, epochs=2.0),
        trial(2, r=20, batch_size=4, epochs=2.0),
    ]
    courses = []
    for group in (trials, trials[:1], trials[2:]):
        subject = engine(base(), TABLE, paths=KERNELS)
        slots = subject.slots(group)
        with subject.attached() as step:
            for _ in range(4):
                step(slots)
        courses.append(slots)
    together, first, last = courses
    assert together[1].failure
    assert together[0].losses == pytest.approx(first[0].losses, rel=1e-5)
    assert together[2].losses == pytest.approx(last[0].losses, rel=1e-5)
    assert np.isfinite([slot.losses for slot in (together[0], together[2])]).all()


def test_the_bare_base_asks_nothing_of_trials_put_aside() -> None:
    """In half precision the kernels read copies, which follow weights that are not there then."""
    model = base()
    model.model.to(torch.bfloat16)
    subject = engine(model, TABLE, paths=KERNELS)
    slots = subject.slots([trial(0, batch_size=6), trial(1, batch_size=6)])
    with subject.attached() as step:
        step(slots)
        slots[1].park()
        (found,) = subject.read([None], TABLE.take(range(2)))
    assert np.isfinite(found.nll)


def trained(layers: int) -> list[torch.Tensor]:
    """Weights of two trials after two steps in which so many layers ran again."""
    subject = engine(base(), TABLE, paths=KERNELS, recompute=lambda trials, tokens: layers)
    slots = subject.slots([trial(0, batch_size=6), trial(1, r=20, lora_dropout=0.3, batch_size=6)])
    with subject.attached() as step:
        for _ in range(2):
            step(slots)
    return [slot.adapter.weights.clone() for slot in slots]


def test_layers_that_run_again_do_not_compute_their_attention_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from loratune.model import row_attention

    calls: list[int] = []
    attend = row_attention._attend
    monkeypatch.setattr(row_attention, "_attend", lambda *given: (calls.append(1), attend(*given))[1])
    kept = trained(0)
    usual = len(calls)
    again = trained(2)
    assert len(calls) == 2 * usual > 0, "as often as without recomputation"
    assert all(torch.equal(own, other) for own, other in zip(again, kept, strict=True))


def test_written_text_is_that_of_the_reference() -> None:
    """Prompts of several lengths, ranks side by side and the bare base."""
    trials = [trial(0), trial(1, r=20), trial(2, r=3, target_modules=("q_proj", "down_proj"))]
    found = []
    for paths in (REFERENCE, KERNELS):
        subject = engine(base(), TABLE.take(range(3)), paths=paths)
        subject.base.model.generation_config.eos_token_id = [5, 17]
        adapters = subject.initials(trials)
        for number, adapter in enumerate(adapters):
            noise = torch.randn(adapter.weights.shape, generator=torch.Generator().manual_seed(number))
            adapter.weights.add_(0.3 * noise.to(DEVICE))
        written = subject.evaluate([*adapters, None], subject.train, max_new_tokens=4)
        found.append([[row.tolist() for row in each.generated or ()] for each in written])
    assert found[0] == found[1]
    assert len({str(rows) for rows in found[0]}) == len(found[0]), "each model writes its own"
