"""What hybrids keep for the backward pass, against what autograd saves: layers with a state are counted too."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from loratune.costs.execution import ON_CPU_PADDED
from loratune.costs.memory import estimate_pack
from loratune.model.profile import profile_of
from memory_fixture import saved_bytes, trial

ROWS, LENGTH = 8, 64
"""Tokens of a row; the delta rule works in chunks of this size, shorter rows are padded to it."""
COMMON: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2,
    "mamba_chunk_size": 16, "mamba_d_conv": 4,
}  # fmt: skip
HYBRIDS: dict[str, dict[str, Any]] = {
    "bamba": {**COMMON, **MAMBA, "num_hidden_layers": 4, "attn_layer_indices": [2]},
    "falcon_h1": {**COMMON, **MAMBA, "num_hidden_layers": 2, "mamba_d_ssm": 128},
    "qwen3_5_text": {
        **COMMON, "num_hidden_layers": 4, "head_dim": 16, "layer_types": [*["linear_attention"] * 3, "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "lfm2": {
        **COMMON, "num_hidden_layers": 3, "layer_types": ["conv", "conv", "full_attention"], "block_multiple_of": 8
    },
}  # fmt: skip


@pytest.mark.parametrize("family", HYBRIDS)
def test_activations_of_hybrids(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**HYBRIDS[family]), dtype=torch.float32)
    profile = profile_of(model, family)
    pack = [trial(4, ROWS)]
    measured = saved_bytes(model, profile, pack, LENGTH)
    predicted = estimate_pack(
        profile, pack, max_length=LENGTH, micro_batch_tokens=2**20, execution=ON_CPU_PADDED
    ).activations
    assert predicted == pytest.approx(measured, rel=0.06)
    assert "PyTorch's own operations" in profile.notes[0]
    stateful = sum(kept for _, kept in profile.recurrent_layers) * ROWS * LENGTH
    assert stateful > 0.2 * measured, "left out, the prediction would be far too low"
