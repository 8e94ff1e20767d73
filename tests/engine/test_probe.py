"""The probe on a tiny real model: gradients of the parts and the whole, bits, the rate test, the base loss."""

from math import log

import numpy as np
import pytest
import torch

from engine_fixture import engine, labelled_table, tiny_llama
from loratune.data.batches import TrialBatches
from loratune.data.table import TokenTable
from loratune.engine import probe as probing
from loratune.engine.probe import base_loss, gradient_noise, guessing_loss, probe
from loratune.engine.slot import Slot
from loratune.maths.laws import useful_batches
from loratune.maths.noise_scale import ratio_interval
from loratune.values import HyperParameters, Trial

LABELS = [[5, 6], [7, 8], [9, 10]]


@pytest.fixture(scope="module")
def rows() -> TokenTable:
    return labelled_table(LABELS, 240)


def test_lanes_have_the_gradients_of_their_rows_and_their_mean_is_the_whole_batchs(rows: TokenTable) -> None:
    """Rows with two supervised tokens each: the mean of the lanes' means is the batch's mean."""
    machine = engine(tiny_llama(), rows)
    values = HyperParameters(r=4, lora_alpha=8, learning_rate=1e-3, batch_size=16)
    order = np.arange(32).reshape(8, 4)
    lanes = probing._lanes(machine, values, order, seed=0)
    squares, whole = zip(*probing._descend(machine, lanes, values, 2), strict=True)
    read = np.concatenate([lane.read[0] for lane in lanes])
    trial = Trial(hyper_parameters=values, seed=0)

    def gradient(batch: np.ndarray) -> torch.Tensor:
        class Kept(Slot):
            def clip(self, factor: torch.Tensor) -> None:
                self.kept = self.gradient.clone()

        batches = TrialBatches(rows=batch, batch_size=len(batch), epochs=1, seed=0)
        slot = Kept(trial, machine.initial(trial), batches, vocabulary=97)
        with machine.attached() as step:
            step([slot])
        return slot.kept

    assert whole[0] == pytest.approx(float(gradient(read).square().sum()), rel=1e-9)
    alone = [float(gradient(lane.read[0]).square().sum()) for lane in lanes]
    assert squares[0] == pytest.approx(np.mean(alone), rel=1e-9)
    assert whole[1] != whole[0]  # a step was taken, and taken by all lanes
    assert all(lane.adapter.weights is lanes[0].adapter.weights for lane in lanes)


def test_probe_measures_all_parts(rows: TokenTable) -> None:
    machine = engine(tiny_llama(torch.float32), rows, rows.take(range(60)))
    found = probe(machine, r=4, lora_alpha=8, seconds=4.0)
    assert found.noise is not None
    assert 0 < found.noise.low <= found.noise.rows <= found.noise.high
    assert found.absorbed is not None
    assert found.absorbed.rows % 16 == 0
    assert 8 * 16 <= found.absorbed.rows <= 240  # as many steps as the time allows, every row once
    assert found.absorbed.bits > 0  # three labels of two tokens are learnt at once
    assert found.rate is not None
    tried = dict(found.rate.tried)
    assert len(tried) >= 5
    assert (
        min(tried, key=lambda rate: tried[rate]) / 3
        <= found.rate.best
        <= 3 * min(tried, key=lambda r: tried[r])
    )
    steps = np.diff(np.log(list(tried)))
    assert steps == pytest.approx(log(3))
    assert found.rate.rows >= 80


def test_absorbed_bits_are_the_gap_between_base_and_online_loss(rows: TokenTable) -> None:
    """At a vanishing learning rate nothing is absorbed."""
    machine = engine(tiny_llama(), rows)
    values = HyperParameters(r=4, lora_alpha=8, learning_rate=1e-12, batch_size=16)
    lanes = probing._lanes(machine, values, np.arange(64).reshape(8, 8), seed=0)
    assert len(list(probing._descend(machine, lanes, values, 4))) == 4
    found = probing._absorbed(machine, lanes)
    assert (found.rows, found.supervised_tokens) == (64, 128)
    assert found.bits == pytest.approx(0.0, abs=1e-6)


def test_the_best_rate_of_a_diverging_ladder_is_below_the_cliff(rows: TokenTable) -> None:
    machine = engine(tiny_llama(torch.float32), rows, rows.take(range(60)))
    values = HyperParameters(r=4, lora_alpha=8, learning_rate=1e-3, batch_size=8)
    short = probing._short_engine(machine, 80, seed=0)
    losses = probing._run_arms(short, values, [1e-6, 6e-2, 1e6], seed=0)
    assert losses[6e-2] < min(losses[1e-6], losses[1e6]) - 1
    assert probing._beyond_edge(losses) == []
    assert probing._beyond_edge({1e-3: 1.0, 3e-3: 0.5}) == [pytest.approx(9e-3)]
    assert probing._beyond_edge({1e-3: 0.4, 3e-3: 0.5}) == [pytest.approx(1e-3 / 3)]


def test_the_noise_scale_is_that_of_the_rows_own_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a vanishing learning rate the weights stay: tr(Σ)/|G|² follows from the gradient of each row alone."""
    table = labelled_table(LABELS, 640)
    machine = engine(tiny_llama(), table)
    values = HyperParameters(r=4, lora_alpha=8, learning_rate=1e-12, batch_size=16)
    monkeypatch.setattr(probing, "_law_values", lambda *_, **__: values)
    found = gradient_noise(machine, r=4, lora_alpha=8, share=1.0, epochs=1.0)
    assert found is not None
    assert found.steps == 40 - 5
    singles = probing._lanes(machine, values, np.arange(640).reshape(640, 1), seed=0)
    with machine.attached() as step:
        step(singles)
    gradients = torch.stack([lane.gradient for lane in singles])
    mean = gradients.mean(0)
    noise = float((gradients - mean).square().sum()) / 639
    exact = noise / (float(mean.square().sum()) - noise / 640)  # the sample's mean has noise of its own
    assert found.low < exact < found.high
    assert found.rows == pytest.approx(exact, rel=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_noise_scale_of_a_gpu_is_that_of_the_cpu() -> None:
    table = labelled_table(LABELS, 640)
    found = []
    for device in ("cpu", "cuda"):
        base = tiny_llama(torch.float32)
        base.model.to(device)
        found.append(gradient_noise(engine(base, table), r=4, lora_alpha=8, share=1.0, epochs=1.0))
    cpu, gpu = found
    assert cpu is not None
    assert gpu is not None
    assert gpu.rows == pytest.approx(cpu.rows, rel=0.02)


def test_rows_that_are_all_alike_have_no_noise_and_few_rows_are_not_measured() -> None:
    alike = labelled_table(LABELS, 1).take([0] * 480)
    machine = engine(tiny_llama(), alike)
    found = gradient_noise(machine, r=4, lora_alpha=8, share=0.6, epochs=1.0)
    assert found is not None
    assert found.rows == pytest.approx(0.0, abs=1e-6)
    assert useful_batches(rows=2_000, epochs=3.0, noise=found) == (8, 16)
    assert gradient_noise(machine, r=4, lora_alpha=8, share=0.5, epochs=1.0) is None, "15 steps"


def test_too_few_rows_are_measured_in_part(rows: TokenTable) -> None:
    few = rows.take(range(40))
    found = probe(engine(tiny_llama(torch.float32), few), r=4, lora_alpha=8, seconds=1.0)
    assert found.noise is None
    assert found.absorbed is None
    assert found.rate is None


def test_base_loss_is_the_engines_with_an_interval_that_covers_all_rows(rows: TokenTable) -> None:
    machine = engine(tiny_llama(), rows)
    (whole,) = machine.evaluate([None], rows)
    found = base_loss(machine, seconds=60.0, most_rows=128)
    assert (found.rows, found.supervised_tokens) == (128, 256)
    assert found.low < whole.nll < found.high
    assert found.total == pytest.approx(found.nll * 480)
    assert found.bits == pytest.approx(found.total / log(2))
    assert base_loss(machine, seconds=60.0).nll == pytest.approx(whole.nll)  # all rows
    assert base_loss(machine, seconds=0.0).rows == 16
    assert guessing_loss(97) == pytest.approx(log(97))


def test_ratio_interval_covers() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        weights = random.integers(1, 30, 40).astype(float)
        sums = weights * 2.0 + random.normal(0, weights)
        _, low, high = ratio_interval(sums, weights)
        hits += low <= 2.0 <= high
    assert 0.92 <= hits / 400 <= 0.98
    with pytest.raises(ValueError, match="two rows"):
        ratio_interval(np.ones(1), np.ones(1))
