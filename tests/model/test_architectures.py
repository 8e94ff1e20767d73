"""The table in docs/architectures.md is what the engine does: each architecture in a pack against PEFT alone, float64.

A few architectures compute parts of themselves in float32 whatever their weights are in; there a pack is as far from
PEFT as PEFT is from itself when its rows are padded by one more token.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, Llama4ForConditionalGeneration

from engine_fixture import engine, frozen, trial
from loratune.engine.reference import train_alone
from loratune.engine.selfcheck import deviation, random_table
from loratune.errors import ModelError
from loratune.lora.peft_io import save_adapter
from loratune.model.architecture import auto_class, name_body
from loratune.model.base import BaseModel, load_model
from loratune.model.profile import profile_from_config, profile_of
from loratune.model.quiet import quiet
from loratune.model.rows import flat_path
from test_exactness import against_peft, worst

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
STEPS = 3
ROUNDING = 1e-8
SINGLE = 1.2e-7
"""What float32 rounds to."""
PLAIN = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2,
    "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GROUPED = {**PLAIN, "num_key_value_heads": 2, "intermediate_size": 48}
HEADS = {**GROUPED, "head_dim": 8}
WINDOW = {**HEADS, "sliding_window": 8}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURE = {**HEADS, **EXPERTS}
SHARED = {**MIXTURE, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}
OLD = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LATENT = {
    **GROUPED, **EXPERTS, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_chunk_size": 8}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
EYE = {"hidden_size": 16, "intermediate_size": 16}
QWEN_EYE = {**EYE, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
GEMMA_EYE = {**EYE, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}

SHAPES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": HEADS,
    "phi3": GROUPED,
    "glm4": HEADS,
    "gemma2": WINDOW,
    "gemma3": {"text_config": WINDOW, "vision_config": GEMMA_EYE, "mm_tokens_per_image": 1},
    "gemma4_text": {
        **WINDOW, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
        "global_head_dim": 8,
    },
    "qwen2_5_vl": {"text_config": {**GROUPED, "rope_parameters": MROPE}, "vision_config": QWEN_EYE},
    "qwen3_vl": {
        "text_config": {**HEADS, "rope_parameters": MROPE},
        "vision_config": {**QWEN_EYE, "deepstack_visual_indexes": []},
    },
    "gpt2": OLD,
    "gpt_neox": {**PLAIN, "intermediate_size": 48},
    "falcon": {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": MIXTURE,
    "qwen3_moe": SHARED,
    "olmoe": MIXTURE,
    "gpt_oss": {**MIXTURE, "sliding_window": 8},
    "llama4_text": {**MIXTURE, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
    "deepseek_v2": {**LATENT, "head_dim": 4},
    "deepseek_v3": LATENT,
    "jamba": {
        **GROUPED, **EXPERTS, "mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
    },
    "bamba": {**GROUPED, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **GROUPED, **EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16
    },
    "nemotron_h": {
        **MIXTURE, "num_hidden_layers": 4, "layers_block_type": ["mamba", "attention", "moe", "mlp"],
        "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 4, "n_groups": 1, "chunk_size": 8,
        "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    },
    "qwen3_next": {**SHARED, **LINEAR},
    "qwen3_5_text": {**HEADS, **LINEAR},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
}  # fmt: skip
TRIALS = (
    trial(1, r=2, warmup_ratio=0.0),
    trial(2, r=8, lora_alpha=8, lora_dropout=0.2, batch_size=3, warmup_ratio=0.0),
    trial(3, r=3, lora_alpha=12, learning_rate=5e-3, batch_size=2, weight_decay=0.1, warmup_ratio=0.0),
)


def told() -> dict[str, list[str]]:
    """The page's rows by architecture: rows, what is adapted, what stays frozen, arithmetic."""
    lines = re.findall(r"^\| .*?`(\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    with quiet():
        config = CONFIG_MAPPING[family](**SHAPES[family])
        return name_body(auto_class(config).from_config(config))


def base_of(family: str) -> BaseModel:
    model = model_of(family)
    for each in (model.config, model.config.get_text_config()):
        each._experts_implementation = "eager"  # the others know no float64
    return frozen(model)


def test_the_page_tells_of_all_that_are_tried() -> None:
    assert set(told()) == set(SHAPES)


@pytest.mark.parametrize("family", SHAPES)
def test_as_the_page_says(family: str) -> None:
    base = base_of(family)
    rows, adapted, frozen_parts, arithmetic = told()[family]
    assert ("flat" if flat_path(base.model, longest=24).flat else "padded") == rows
    assert {name.rpartition(".")[2] for name, _, _ in base.profile.targets} == set(
        re.findall(r"`(\w+)`", adapted)
    )
    linears = {
        name.rpartition(".")[2] for name, part in base.model.named_modules() if hasattr(part, "in_features")
    }
    assert set(re.findall(r"`(\w+)`", frozen_parts)) <= linears
    found = worst(against_peft(base, TRIALS, STEPS))
    if found >= ROUNDING:
        assert arithmetic == "partly float32"
        assert found < 10 * max(SINGLE, own_noise(base)), "farther from PEFT than PEFT is from itself"


def own_noise(base: BaseModel) -> float:
    """How far PEFT is from itself where its rows have one more token of padding."""
    table = random_table(base.profile.vocabulary)
    packs = engine(base, table)
    far = []
    for each in TRIALS:
        adapter = packs.initial(each)
        plain, padded = (
            train_alone(
                base.model, each, adapter.layout.targets, table, packs.batches(each), steps=STEPS, pad=pad
            )
            for pad in (0, 1)
        )
        far.append(deviation(padded, plain, adapter.weights))
    return worst(far)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "qwen3_vl"])
def test_a_text_tower_is_trained_where_it_stands(family: str, tmp_path: Path) -> None:
    """From a folder, the sight part frozen beside it; PEFT puts the adapter on the whole model."""
    model_of(family).save_pretrained(tmp_path / "model")
    base = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    assert base.profile == profile_from_config(str(tmp_path / "model"), dtype="float32", device="cpu")
    assert all("language_model" in name for name, _, _ in base.profile.targets)
    packs = engine(base, random_table(base.profile.vocabulary))
    adapter = packs.initial(TRIALS[0])
    adapter.weights.add_(torch.randn(adapter.weights.shape, generator=torch.Generator().manual_seed(0)))
    tokens = torch.arange(9)[None]
    with packs.attached(), torch.no_grad():
        plain = base.model(input_ids=tokens).logits
    save_adapter(adapter, tmp_path / "adapter", base.model)
    whole = auto_class(base.model.config).from_pretrained(tmp_path / "model")
    with quiet(), torch.no_grad():
        adapted = PeftModel.from_pretrained(whole, tmp_path / "adapter")
        assert set(adapter.views()) == {
            name.removeprefix("base_model.model.")
            for name, part in adapted.named_modules()
            if hasattr(part, "lora_A")
        }
        assert not torch.allclose(adapted(input_ids=tokens).logits, plain)


def test_llama_4_is_loaded_from_its_whole_checkpoint(tmp_path: Path) -> None:
    eye = {**EYE, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
           "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}  # fmt: skip
    config = CONFIG_MAPPING["llama4"](text_config=SHAPES["llama4_text"], vision_config=eye)
    with quiet():
        Llama4ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    base = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    assert {name.rpartition(".")[2] for name, _, _ in base.profile.targets} == {
        "q_proj", "k_proj", "v_proj", "o_proj"
    }  # fmt: skip
    assert "stay frozen" in base.profile.notes[0]


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1"])
def test_generated_text_of_hybrids_is_refused(family: str) -> None:
    base = base_of(family)
    table = random_table(base.profile.vocabulary, rows=3, longest=12)
    assert any("pass a state" in note for note in profile_of(base.model, "m").notes)
    with pytest.raises(ModelError, match=r"padding on the left .* choose another --metric"):
        engine(base, table).evaluate([None], table, max_new_tokens=2)
