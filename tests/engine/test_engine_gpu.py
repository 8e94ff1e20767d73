"""The same engine on a CUDA device: same masks, PEFT's course, the CPU's results."""

import numpy as np
import pytest
import torch

from engine_fixture import engine, labelled_table, tiny_llama, trial
from loratune.engine.selfcheck import random_table, selfcheck
from loratune.lora.dropout import keep_mask, row_keys
from loratune.lora.layout import Adapter
from loratune.model.base import BaseModel
from loratune.model.device import pick_device
from loratune.values import TrialResult

pytestmark = pytest.mark.gpu
LABELS = [[5, 6, 90], [7, 90], [8, 9, 90]]


def on_gpu(base: BaseModel) -> BaseModel:
    base.model.to("cuda")
    return base


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_exactness(dtype: torch.dtype) -> None:
    check = selfcheck(on_gpu(tiny_llama(dtype)), random_table(97), steps=8)
    assert check.holds, check


def test_the_allocator_extends_its_segments() -> None:
    """So that it holds hardly more than its tensors, whatever ran before."""
    kept = torch.empty(2**26, dtype=torch.uint8, device=pick_device("cuda"))
    segments = [each for each in torch.cuda.memory_snapshot() if each["total_size"] >= kept.numel()]
    assert any(each["is_expandable"] for each in segments)


def test_masks_are_those_of_the_cpu() -> None:
    keys = torch.from_numpy(row_keys(3, 1, [0, 4])).repeat_interleave(9)
    places = torch.arange(9, dtype=torch.int32).repeat(2)
    masks = [
        keep_mask(keys.to(name), places.to(name), "q", features=33, p=0.3).cpu() for name in ("cpu", "cuda")
    ]
    assert torch.equal(*masks)


def test_labels_and_the_bare_base_beside_trials_in_half_precision() -> None:
    """Scored by the kernels: by rows and by trees, the bare base alone in the last of the evaluator's chunks."""
    table = labelled_table(LABELS, 30)
    tokens = tuple(np.array(label, np.int32) for label in LABELS)
    found = []
    for base in (tiny_llama(torch.float32), on_gpu(tiny_llama(torch.bfloat16))):
        results: list[TrialResult] = []
        adapters: list[Adapter | None] = []

        def keep(
            result: TrialResult,
            adapter: Adapter,
            results: list[TrialResult] = results,
            adapters: list[Adapter | None] = adapters,
        ) -> None:
            results.append(result)
            adapters.append(adapter)

        waiting = [trial(0, epochs=2.0), trial(1, epochs=2.0, r=8)]
        two_models = 2 * int(table.lengths.max())
        subject = engine(base, table, table, label_tokens=tokens, max_tokens_per_evaluation=two_models)
        subject.run(lambda w=waiting: w.pop() if w else None, slots=2, on_result=keep)  # type: ignore[misc]
        readings = subject.evaluate([*adapters, None], table)
        found.append(([result.nll for result in results], [reading.nll for reading in readings]))
        assert all(0 <= result.metrics["accuracy"] <= 1 for result in results)
    for on_cpu, on_cuda in zip(*found, strict=True):
        assert on_cuda == pytest.approx(on_cpu, rel=2e-2)


def test_a_pack_gives_the_results_of_the_cpu() -> None:
    table = labelled_table(LABELS, 30)
    tokens = tuple(np.array(label, np.int32) for label in LABELS)
    found: list[list[TrialResult]] = []
    for base in (tiny_llama(), on_gpu(tiny_llama())):
        results: list[TrialResult] = []

        def keep(result: TrialResult, adapter: Adapter, results: list[TrialResult] = results) -> None:
            results.append(result)

        waiting = [trial(0, epochs=2.0), trial(1, lora_dropout=0.2), trial(2, r=8, batch_size=8)]
        subject = engine(base, table, table, label_tokens=tokens)
        subject.run(lambda w=waiting: w.pop() if w else None, slots=2, on_result=keep)  # type: ignore[misc]
        found.append(sorted(results, key=lambda result: result.trial.seed))
    for on_cpu, on_cuda in zip(*found, strict=True):
        assert on_cuda.nll == pytest.approx(on_cpu.nll, rel=1e-6)  # rotary angles are float32
        assert on_cuda.metrics == pytest.approx(on_cpu.metrics, rel=1e-6)
