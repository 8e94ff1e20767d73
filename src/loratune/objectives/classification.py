"""One class for each row, by the head of a sequence classifier, of which every trial trains its own.

Shapes: S rows, one asked state each (a decoder's last token, an encoder's first); D hidden size; C classes. The head is
the model's own `forward` while its body returns given states, with a trial's parameters in place of the model's: what
stands between body and classifier (poolers, activations, norms) is that of the architecture.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from loratune.errors import ModelError
from loratune.maths.targets import Part
from loratune.objectives.objective import Asked, Compile

_FEWEST_CHOICES = 1000
"""A single row may be far worse than guessing between two classes without its trial having diverged."""


class Classification:
    """For any `…ForSequenceClassification`; the table's `answers` [rows] are the classes."""

    group = 1

    def __init__(self, model: PreTrainedModel, compiled: Compile = lambda function: function) -> None:
        self.model = model
        self.body: nn.Module = model.base_model
        prefix = f"{model.base_model_prefix}."
        self._initial = {
            name: value.detach() for name, value in model.named_parameters() if not name.startswith(prefix)
        }
        if self.body is model or not self._initial or model.get_output_embeddings() is not None:
            raise ModelError(
                f"a classifier must have a head over classes, {type(model).__name__} has none; "
                "load it by AutoModelForSequenceClassification."
            )
        self.head: tuple[Part, ...] = tuple((name, tuple(v.shape)) for name, v in self._initial.items())
        self.vocabulary = max(_FEWEST_CHOICES, int(model.config.num_labels))
        self._pooler: Callable[[torch.Tensor], torch.Tensor] | None = getattr(self.body, "pooler", None)

    def initial_head(self, seed: int) -> torch.Tensor:
        """Matrices as transformers draws those of a new head, normal with the model's range; biases 0, norms 1."""
        spread = float(getattr(self.model.config, "initializer_range", 0.02))
        generator = torch.Generator().manual_seed(seed)
        numbers = []
        for name, shape in self.head:
            if len(shape) > 1:
                numbers.append(torch.empty(shape).normal_(0.0, spread, generator=generator).flatten())
            else:
                numbers.append(torch.full(shape, float(name.endswith("weight"))))
        return torch.cat(numbers)

    def counts(self, supervised: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Every row once."""
        return supervised

    def hidden(self, tokens: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """Last hidden states [rows, T, D] of tokens [rows, T]."""
        output = self.body(input_ids=tokens, use_cache=False, **inputs)
        return output.last_hidden_state, output

    def loss_and_gradient(
        self, states: torch.Tensor, asked: Asked, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy [S] in nats, and the gradient [S, D] of Σ weights · losses with respect to `states`.

        A row whose loss is not finite hands none down to the adapters; its trial's head gets what it gets.
        """
        losses = torch.empty(len(states), dtype=_loss_type(states), device=states.device)
        gradient = torch.zeros_like(states)
        for head in asked.heads:
            own = slice(head.start, head.stop)
            leaf = states[own].detach().requires_grad_()
            values = {name: value.detach().requires_grad_() for name, value in head.values.items()}
            loss = self._losses(leaf, values, asked.targets[own])
            losses[own] = loss.detach()
            total = (asked.weights[own].to(loss.dtype) * loss).sum()
            slope, *slopes = torch.autograd.grad(total, [leaf, *values.values()])
            gradient[own] = slope.masked_fill(~torch.isfinite(losses[own]).unsqueeze(1), 0.0)
            if head.gradients is not None:
                for name, found in zip(values, slopes, strict=True):
                    head.gradients[name].add_(found)
        return losses, gradient

    def score(self, states: torch.Tensor, asked: Asked, output: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy [S] in nats and the most likely class [S], without gradients."""
        losses = torch.empty(len(states), dtype=_loss_type(states), device=states.device)
        likeliest = torch.empty(len(states), dtype=torch.int32, device=states.device)
        for head in asked.heads:
            own = slice(head.start, head.stop)
            logits = self.logits(states[own], head.values).to(losses.dtype)
            losses[own] = nn.functional.cross_entropy(logits, asked.targets[own], reduction="none")
            likeliest[own] = logits.argmax(-1)
        return losses, likeliest

    def _losses(
        self, states: torch.Tensor, values: Mapping[str, torch.Tensor], targets: torch.Tensor
    ) -> torch.Tensor:
        logits = self.logits(states, values)
        return nn.functional.cross_entropy(logits.to(_loss_type(states)), targets, reduction="none")

    def logits(self, states: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[S, C] of states [S, D] under one trial's head, in the head's type."""
        dtype = next(iter(values.values())).dtype
        alone = states.unsqueeze(1)  # each row is one token long: first, last and mean are the asked state
        pooled = None if self._pooler is None else self._pooler(alone).to(dtype)
        alone = alone.to(dtype)
        output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=alone, pooler_output=pooled)
        unread = torch.zeros(len(states), 1, dtype=torch.int64, device=states.device)
        with self._body_returns(output):
            found = functional_call(self.model, dict(values), kwargs={"input_ids": unread})
        logits: torch.Tensor = found.logits
        return logits

    @contextmanager
    def _body_returns(self, output: Any) -> Iterator[None]:
        had = self.body.__dict__.get("forward")
        self.body.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            if had is None:
                del self.body.forward
            else:
                self.body.forward = had


def _loss_type(states: torch.Tensor) -> torch.dtype:
    return torch.float64 if states.dtype == torch.float64 else torch.float32
