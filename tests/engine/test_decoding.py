"""Greedy decoding of a pack against PEFT and transformers' `generate`, token for token, each row alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from engine_fixture import VOCABULARY, engine, frozen, tiny_family, tiny_llama, trial
from families import random_model
from loratune.data.table import TokenTable
from loratune.engine import decoding
from loratune.engine.pack import PackEngine
from loratune.errors import ModelError
from loratune.lora.layout import Adapter
from loratune.lora.peft_io import save_adapter
from loratune.model.base import BaseModel

NEW = 14
TRIALS = (
    trial(r=2, lora_alpha=4.0),
    trial(seed=1, r=8, lora_alpha=8.0, target_modules=("q_proj", "v_proj")),
    trial(seed=2, r=5, lora_alpha=20.0),
)


def prompts_table(rows: int = 5, vocabulary: int = VOCABULARY) -> TokenTable:
    """Prompts of 1 to 19 tokens, each with a completion of three."""
    random = np.random.default_rng(3)
    lengths = [1, 19, *random.integers(2, 16, rows - 2)]
    pairs = [(random.integers(1, vocabulary, n + 3).tolist(), [False] * int(n) + [True] * 3) for n in lengths]
    return TokenTable.from_rows(pairs)


def adapters(pack: PackEngine, size: float = 0.3) -> list[Adapter]:
    """Of the trials, with numbers far from zero in B as well."""
    found = pack.initials(TRIALS)
    for number, adapter in enumerate(found):
        noise = torch.randn(
            adapter.weights.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64
        )
        adapter.weights.add_(size * noise.to(adapter.weights.dtype))
    return found


def by_transformers(
    base: BaseModel, adapter: Adapter | None, prompt: list[int], folder: Path, ends: list[int]
) -> list[int]:
    """One row by itself, without the end token."""
    model: Any = base.model
    if adapter is not None:
        save_adapter(adapter, folder, base.model)
        model = PeftModel.from_pretrained(base.model, folder, autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(base.dtype)
    tokens = torch.tensor([prompt])
    try:
        written = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    finally:
        if adapter is not None:
            model.unload()
    stop = next((i for i, token in enumerate(written) if token in ends), len(written))
    return list(written[:stop])


def ends_of(base: BaseModel, ends: list[int]) -> BaseModel:
    base.model.generation_config.eos_token_id = ends
    return base


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_pack_writes_what_peft_writes_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    base = ends_of(tiny_llama(dtype), [5, 17, 41, 60])
    table = prompts_table()
    pack = engine(base, table, cached_tokens=400)
    models = [*adapters(pack), None]
    (*found, bare) = pack.evaluate(models, table, max_new_tokens=NEW)
    lengths = set()
    for number, (evaluation, adapter) in enumerate(zip((*found, bare), models, strict=True)):
        assert evaluation.generated is not None
        for i in range(len(table)):
            tokens, supervised = table.row(i)
            prompt = tokens[~supervised].tolist()
            alone = by_transformers(base, adapter, prompt, tmp_path / str(number), [5, 17, 41, 60])
            assert evaluation.generated[i].tolist() == alone, (number, i)
            lengths.add(len(alone))
    assert NEW in lengths, "some rows reach the limit"
    assert len(lengths) > 2, "and others end earlier, at different places"
    assert len({tuple(map(tuple, each.generated or ())) for each in (*found, bare)}) == len(models)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text", "phi3", "qwen3"])
def test_architectures(family: str, tmp_path: Path) -> None:
    """Learnt positions, windows shorter than the prompts, fused projections: the bare base and one adapter."""
    base = ends_of(tiny_family(family), [5])
    table = prompts_table(vocabulary=200)
    pack = engine(base, table, cached_tokens=300)
    (adapter,) = pack.initials([trial(r=2)])
    adapter.weights.add_(0.05)
    for model, evaluation in zip(
        (None, adapter), pack.evaluate([None, adapter], table, max_new_tokens=NEW), strict=True
    ):
        assert evaluation.generated is not None
        for i in (0, 1):
            tokens, supervised = table.row(i)
            alone = by_transformers(base, model, tokens[~supervised].tolist(), tmp_path / "adapter", [5])
            assert evaluation.generated[i].tolist() == alone


def test_neither_batches_nor_neighbours_change_a_row() -> None:
    base = ends_of(tiny_llama(), [5, 17])
    table = prompts_table(9)
    wide, narrow = (engine(base, table, cached_tokens=n) for n in (10_000, 1))
    models = [*adapters(wide), None]
    ill = wide.initials([TRIALS[0]])[0]
    ill.weights.fill_(float("nan"))
    together = wide.evaluate([*models, ill], table, max_new_tokens=NEW)
    alone = [narrow.evaluate([model], table, max_new_tokens=NEW)[0] for model in models]
    for ours, theirs in zip(together, alone, strict=False):
        assert ours.generated is not None
        assert theirs.generated is not None
        assert [row.tolist() for row in ours.generated] == [row.tolist() for row in theirs.generated]


def test_a_row_ends_where_the_context_does() -> None:
    base = ends_of(tiny_llama(), [])
    table = prompts_table()
    pack = engine(base, table, context_length=21)
    (found,) = pack.evaluate([None], table, max_new_tokens=NEW)
    assert found.generated is not None
    prompts = table.lengths - 3
    assert [len(row) for row in found.generated] == [min(NEW, 21 - int(n)) for n in prompts]


def test_the_last_answer_of_a_conversation_is_written() -> None:
    """After all turns before it, the given answers among them."""
    base = ends_of(tiny_llama(), [])
    tokens = list(range(1, 13))
    flags = [False, False, True, True, False, False, False, True, True, True, False, False]
    chat = TokenTable.from_rows([(tokens, flags)])
    plain = TokenTable.from_rows([(tokens[:10], [False] * 7 + [True] * 3)])
    pack = engine(base, chat)
    (one,), (other,) = (pack.evaluate([None], table, max_new_tokens=5) for table in (chat, plain))
    assert one.generated is not None
    assert other.generated is not None
    assert one.generated[0].tolist() == other.generated[0].tolist()


def test_memory_that_runs_out_makes_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ends_of(tiny_llama(), [5])
    table = prompts_table()
    expected = engine(base, table).evaluate([None], table, max_new_tokens=NEW)[0].generated
    pack = engine(base, table, cached_tokens=2**20)
    begin = decoding.GreedyDecoder._begin
    tried = []

    def short(self: Any, members: Any, prompts: Any, at_once: int | None = None) -> Any:
        tried.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return begin(self, members, prompts, at_once)

    monkeypatch.setattr(decoding.GreedyDecoder, "_begin", short)
    (found,) = pack.evaluate([None], table, max_new_tokens=NEW)
    assert max(tried) == len(table)
    assert found.generated is not None
    assert expected is not None
    assert [row.tolist() for row in found.generated] == [row.tolist() for row in expected]


def test_a_model_whose_cache_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = frozen(random_model("llama"))
    table = prompts_table(vocabulary=200)
    monkeypatch.setattr(decoding, "DynamicCache", _Forgets)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM does not .its states deviate"):
        engine(base, table).evaluate([None], table, max_new_tokens=2)


class _Forgets(decoding.DynamicCache):
    """Keeps other values than it was given."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().update(keys, 0.5 * values, *args, **kwargs)
