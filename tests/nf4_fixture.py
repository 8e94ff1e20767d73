"""A small Llama packed into 4 bits by loratune, and the same by transformers and bitsandbytes alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from loratune.model.base import BaseModel, load_model
from tiny import save_tiny_model

HIDDEN = 64


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32 weights."""
    return save_tiny_model(tmp_path_factory.mktemp("plain"), hidden=HIDDEN)


@pytest.fixture
def packed(plain_folder: Path) -> BaseModel:
    return load_model(str(plain_folder), dtype="nf4", device="cpu")


def by_bitsandbytes(
    folder: Path, dtype: torch.dtype, *, double: bool = True, storage: torch.dtype = torch.uint8
) -> PreTrainedModel:
    """As QLoRA's users load it, nothing of loratune's in it."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double,
            bnb_4bit_quant_storage=storage,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # on some processors it would multiply in bfloat16
            module.support_avx512bf16_for_cpu = False
    return model.eval().requires_grad_(False)
