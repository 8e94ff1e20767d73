"""Tiny frozen models and random rows for the tests of the packed engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from families import random_model
from loratune.data.table import TokenTable
from loratune.engine.machinery import Paths
from loratune.engine.pack import PackEngine
from loratune.kernels.launch import KernelPath
from loratune.lora.layout import Adapter, Target, initial_adapters
from loratune.model.base import BaseModel
from loratune.model.profile import adaptable_layers
from loratune.model.rows import FlatPath
from loratune.values import HyperParameters, ModelProfile, Trial

VOCABULARY = 97
REFERENCE = Paths(low_rank=KernelPath(False, "asked for"), rows=FlatPath(False, "asked for"), compiled=False)
"""The slow paths in plain PyTorch, with which the fast ones are compared."""


def frozen(model: PreTrainedModel, dtype: torch.dtype = torch.float64) -> BaseModel:
    model = model.to(dtype).eval().requires_grad_(False)
    config = model.config.get_text_config()
    profile = ModelProfile(
        name="tiny",
        family=config.model_type,
        hidden_size=config.hidden_size,
        layers=2,
        attention_heads=4,
        vocabulary=config.vocab_size,
        parameters=0,
        embedding_parameters=0,
        targets=adaptable_layers(model),
    )
    return BaseModel(model=model, tokenizer=None, profile=profile)


def tiny_llama(dtype: torch.dtype = torch.float64) -> BaseModel:
    """Weights wide enough that the logits are far from uniform, so that mistakes show."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return frozen(LlamaForCausalLM(config), dtype)


def tiny_family(family: str, dtype: torch.dtype = torch.float64) -> BaseModel:
    model = random_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return frozen(model, dtype)


def trial(seed: int = 0, fraction: float = 1.0, **changes: Any) -> Trial:
    facts: dict[str, Any] = {"r": 4, "lora_alpha": 8, "learning_rate": 3e-3, "batch_size": 4}
    return Trial(hyper_parameters=HyperParameters(**(facts | changes)), seed=seed, fraction=fraction)


def engine(
    base: BaseModel, train: TokenTable, validation: TokenTable | None = None, **changes: Any
) -> PackEngine:
    """Small micro-batches, so that trials are mixed and cut."""
    facts: dict[str, Any] = {"study_seed": 0, "cost": lambda _: 1.0, "launch_tokens": 16}
    facts |= {"max_tokens_per_micro_batch": 128}
    return PackEngine(
        base=base, train=train, validation=train if validation is None else validation, **(facts | changes)
    )


def labelled_table(labels: list[list[int]], rows: int, seed: int = 0) -> TokenTable:
    """A random prompt, then the tokens of one of the labels."""
    random = np.random.default_rng(seed)
    chosen = random.integers(0, len(labels), rows)
    pairs = []
    for label in chosen:
        prompt = random.integers(0, VOCABULARY, random.integers(3, 12)).tolist()
        completion = labels[label]
        pairs.append((prompt + completion, [False] * len(prompt) + [True] * len(completion)))
    return TokenTable.from_rows(pairs, labels=chosen.tolist())


def initial_adapter(
    hyper_parameters: HyperParameters,
    targets: Sequence[Target],
    *,
    seed: int,
    base_dtype: torch.dtype,
    device: torch.device,
) -> Adapter:
    """One of `initial_adapters`."""
    wanted = [(hyper_parameters, targets, seed)]
    return initial_adapters(wanted, base_dtype=base_dtype, device=device)[0]
