"""Tiny random models of several architectures, for tests of loading, targets and memory."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED, "tie_word_embeddings": True},
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 8},
    "mistral": _GROUPED,
    "phi": {**_COMMON, "intermediate_size": 48},
    "phi3": _GROUPED,
    "gpt2": {
        "vocab_size": 260,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gpt_neox": {**_COMMON, "intermediate_size": 48},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_GROUPED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
}


def random_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model of that family with random weights."""
    torch.manual_seed(0)
    values = {**FAMILIES, **EXPERTS}[family]
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**values), dtype=dtype)


def save_family(family: str, folder: Path) -> Path:
    """Safetensors and config.json, no tokenizer."""
    random_model(family).save_pretrained(folder)
    return folder
