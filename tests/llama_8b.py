"""An 8B Llama's shapes, packs of it and a GPU that holds them: for the tests of the memory model."""

from functools import lru_cache
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loratune.costs.execution import ON_CUDA
from loratune.costs.limits import Limits
from loratune.costs.memory import MemoryEstimate, estimate_pack
from loratune.model.profile import profile_of
from loratune.values import ALL_LINEAR, HyperParameters, ModelProfile

GIB = 2**30
ROWS = 8


def trial(r: int = 4, batch_size: int = ROWS, targets: tuple[str, ...] = ALL_LINEAR) -> HyperParameters:
    return HyperParameters(
        r=r, lora_alpha=2 * r, learning_rate=1e-3, batch_size=batch_size, target_modules=targets
    )


@lru_cache
def llama_8b() -> ModelProfile:
    """Shapes of Llama-3.1-8B, built on the meta device."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        return profile_of(LlamaForCausalLM._from_config(config, dtype=torch.bfloat16), "llama-8b")


def on_cuda(pack: list[HyperParameters], model: ModelProfile | None = None, **changes: Any) -> MemoryEstimate:
    facts: dict[str, Any] = {"max_length": 128, "micro_batch_tokens": 4096, "execution": ON_CUDA}
    return estimate_pack(model or llama_8b(), pack, **facts | changes)


def limits(**changes: Any) -> Limits:
    facts: dict[str, Any] = {"max_length": 512, "micro_batch_tokens": 2048, "device_bytes": 40 * GIB}
    return Limits(model=llama_8b(), execution=ON_CUDA, **facts | changes)
