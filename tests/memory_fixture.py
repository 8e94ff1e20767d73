"""A small Llama and rows of one length, for counting what whole steps hold in memory."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loratune.data.table import TokenTable
from loratune.model.base import BaseModel
from loratune.model.profile import profile_of
from loratune.values import ALL_LINEAR, HyperParameters

LENGTH = 32


def base(
    dtype: torch.dtype, vocabulary: int, hidden: int = 96, inner: int = 256, layers: int = 4
) -> BaseModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    return BaseModel(model=model, tokenizer=None, profile=profile_of(model, "random"))


def table(vocabulary: int, supervised: int) -> TokenTable:
    """Rows of one length, their last tokens supervised."""
    flags = (np.arange(LENGTH) >= LENGTH - supervised).tolist()
    rows = np.random.default_rng(0).integers(0, vocabulary, (64, LENGTH)).tolist()
    return TokenTable.from_rows([(row, flags) for row in rows])


def trial(r: int, batch_size: int, targets: tuple[str, ...] = ALL_LINEAR) -> HyperParameters:
    return HyperParameters(
        r=r, lora_alpha=r, learning_rate=1e-3, batch_size=batch_size, epochs=2.0, target_modules=targets
    )
