"""The memory model against whole training steps of the real engine: every living tensor counted."""

import pytest
import torch

from engine_fixture import REFERENCE
from live_bytes import LiveBytes
from loratune.costs.execution import ON_CPU, ON_CPU_PADDED
from loratune.costs.memory import estimate_pack, tokens_in_flight
from loratune.engine.pack import PackEngine
from loratune.values import HyperParameters, Trial
from memory_fixture import LENGTH, base, table, trial
from tensors import tensor_bytes

MIXED = [trial(1, 2), trial(8, 4), trial(64, 2, ("q_proj", "down_proj")), trial(16, 8)]
CASES = {
    "mixed pack": (MIXED, 100, 4, 10**6),
    "one trial": ([trial(8, 16)], 100, 4, 10**6),
    "micro-batches": ([trial(8, 16)] * 4, 100, 4, 512),
    "many logits": ([trial(8, 8)] * 2, 4_000, 16, 10**6),
    "large adapters": ([trial(64, 1)] * 8, 100, 4, 10**6),
    "attention only": ([trial(8, 8, ("q_proj", "v_proj"))] * 2, 100, 4, 10**6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("case", "flat"), [*((case, True) for case in CASES), ("mixed pack", False), ("one trial", False)]
)
def test_the_peak_of_a_step_is_the_sum_of_the_parts(case: str, flat: bool, dtype: torch.dtype) -> None:
    check(*CASES[case], flat=flat, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("case", "flat", "recomputed"),
    [("mixed pack", True, 1), ("mixed pack", True, 4), ("one trial", False, 3), ("many logits", True, 4)],
)
def test_the_peak_with_activations_computed_again(
    case: str, flat: bool, recomputed: int, dtype: torch.dtype
) -> None:
    """Of some of the four layers or of all."""
    check(*CASES[case], flat=flat, dtype=dtype, recomputed=recomputed)


def test_logits_are_made_in_chunks() -> None:
    check([trial(8, 16)] * 2, 20_000, 32, 10**6, flat=True, dtype=torch.bfloat16)


def check(
    pack: list[HyperParameters],
    vocabulary: int,
    supervised: int,
    micro_batch: int,
    *,
    flat: bool,
    dtype: torch.dtype,
    recomputed: int = 0,
) -> None:
    """Steady memory is exact, the peak within 4 %."""
    model, rows = base(dtype, vocabulary), table(vocabulary, supervised)
    engine = PackEngine(
        base=model,
        train=rows,
        validation=rows.take(range(2)),
        study_seed=0,
        cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=micro_batch,
        launch_tokens=10**9,
        paths=None if flat else REFERENCE,
        recompute=lambda trials, tokens: recomputed,
    )
    assert engine.chosen_paths.rows.flat == flat
    counted = LiveBytes([*model.model.parameters(), *model.model.buffers()])
    with counted:
        slots = [engine.slot(Trial(hyper_parameters=hp, seed=seed)) for seed, hp in enumerate(pack)]
        with engine.attached() as step:
            step(slots)
            counted.peak = counted.live
            step(slots)
    estimate = estimate_pack(
        model.profile,
        pack,
        max_length=LENGTH,
        micro_batch_tokens=micro_batch,
        execution=ON_CPU if flat else ON_CPU_PADDED,
        supervised=supervised / LENGTH,
        recomputed=recomputed,
    )
    assert counted.live == pytest.approx(estimate.steady - estimate.weights, rel=0.001, abs=4096)
    assert tensor_bytes(estimate) - estimate.weights == pytest.approx(counted.peak, rel=0.04)


@pytest.mark.parametrize(("flat", "tokens"), [(True, 128), (False, 256)])
def test_padding_counts_where_rows_are_padded(flat: bool, tokens: int) -> None:
    """8 rows, together 100 tokens: a line of 128, or with the longest row a rectangle of 8 times 32."""
    execution = ON_CPU if flat else ON_CPU_PADDED
    known = 100 if flat else None
    assert tokens_in_flight([trial(4, 8)], LENGTH, 10**6, execution, known) == tokens
