"""A loaded base model: frozen, in eval mode, with its tokenizer and its shapes."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loratune.values import ModelProfile


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """What the engine trains adapters on. `model` is in eval mode and no parameter requires a gradient."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    profile: ModelProfile

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype
