"""Memory while text is written, against the real engine: every living tensor counted."""

import pytest
import torch

from engine_fixture import REFERENCE, frozen
from families import random_model
from live_bytes import LiveBytes
from loratune.costs.activations import evaluation_bytes
from loratune.costs.execution import ON_CPU_PADDED
from loratune.costs.generation import Generation, cached_bytes, cached_tokens, writing_bytes
from loratune.costs.limits import Limits
from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.model.profile import profile_of
from memory_fixture import base

ROWS, PROMPT, NEW = 48, 40, 33


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_cache_and_a_prompts_evaluation_are_what_writing_needs(dtype: torch.dtype) -> None:
    model = base(dtype, 100, 96, 256, 4)
    model.model.generation_config.eos_token_id = None
    lengths = [PROMPT - (i % 2) for i in range(ROWS)]  # of one length they need no mask, and less
    table = TokenTable.from_rows(
        [([1 + i % 90] * (n + 1), [False] * n + [True]) for i, n in enumerate(lengths)]
    )
    at_once = 4 * PROMPT
    engine = PackEngine(
        base=model,
        train=table,
        validation=table,
        study_seed=0,
        cost=lambda trial: 1.0,
        max_tokens_per_evaluation=at_once,
        cached_tokens=2**14,
        paths=REFERENCE,
    )
    known = [*model.model.parameters(), *model.model.buffers()]
    counted = LiveBytes(known)
    with counted, engine.attached():
        engine.write([None], table, max_new_tokens=2)
        counted.peak = kept = counted.live
        engine.write([None], table, max_new_tokens=NEW)
    measured = counted.peak - kept
    prompts = evaluation_bytes(
        model.profile, tokens=at_once, models=1, supervised=1.0, execution=ON_CPU_PADDED
    )
    cache = cached_bytes(model.profile, ROWS * (PROMPT + NEW - 1))
    plain = ROWS * (PROMPT + NEW - 1) * model.profile.cached_features * model.profile.bytes_per_parameter
    # copies of keys that several queries share are counted, and made on some paths alone
    assert plain < measured < 1.05 * (prompts + cache)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen3", "phi"])
def test_features_in_the_cache_are_those_of_the_model(family: str) -> None:
    model = random_model(family)
    profile = profile_of(model, family)
    output = model(input_ids=torch.arange(5)[None], use_cache=True)
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in output.past_key_values.layers)
    assert profile.cached_features == kept / 5


def test_as_many_rows_as_fit() -> None:
    """Twice the room, about twice the tokens, until there are more than are worth it; never less than a row."""
    limits = Limits(
        model=frozen(random_model("llama")).profile,
        max_length=64,
        micro_batch_tokens=64,
        device_bytes=2**34,
        execution=ON_CPU_PADDED,
    )
    assert cached_tokens(limits) == 2**14
    fixed = writing_bytes(limits, 0)
    for extra in (2**22, 2**23):
        small = Limits(
            model=limits.model,
            max_length=64,
            micro_batch_tokens=64,
            device_bytes=fixed + extra,
            execution=ON_CPU_PADDED,
        )
        tokens = cached_tokens(small)
        assert 64 <= tokens < 2**14
    assert writing_bytes(limits, 2000) > writing_bytes(limits, 1000) > fixed


def test_seconds_by_hand() -> None:
    """100 rows of 50 tokens at their end, 20 side by side: 5 batches of 10 steps of .2 s at twice the rows."""
    written = Generation(
        max_new_tokens=10,
        validation_rows=25,
        test_rows=50,
        prompt_tokens=40.0,
        longest=50,
        cached_tokens=1000,
        steps=((5, 0.08), (10, 0.1)),
    )
    assert written.seconds(4, 25, forward=1000.0) == pytest.approx(5 * 10 * 0.2 + 100 * 40 / 1000)
    assert written.finalists_seconds(1000.0) == written.seconds(4, 25, 1000.0)
    assert written.test_seconds(1000.0) == written.seconds(3, 50, 1000.0)
    assert written.seconds(1, 2, 1000.0) == pytest.approx(
        10 * 0.08 + 2 * 40 / 1000
    )  # launches, whatever the rows
    assert written.seconds(1, 6, 1000.0) == pytest.approx(10 * 0.084 + 6 * 40 / 1000)
