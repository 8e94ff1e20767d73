"""A sequence classifier: one class, several labels or a number for each row, by a head that every trial trains itself.

Shapes: S rows, one asked state each; D hidden size; C outputs of the head. The head is the model's own `forward` while
its body returns given states, with a trial's parameters in place of the model's: what stands between body and
classifier (poolers, activations, norms) is that of the architecture. What is learnt follows from a table's answers:
whole numbers [rows] are classes, numbers [rows, C] are labels that hold (1) or not (0), numbers [rows] are to be met.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from loratune.errors import ModelError
from loratune.maths.targets import NEW_WEIGHTS, Part
from loratune.objectives.objective import Compile, Scored, Supervised
from loratune.objectives.pooling import Pooling, pooled

_FEWEST_CHOICES = 1000
"""A single row may be far worse than guessing between two classes without its trial having diverged."""


class Classification:
    """For any `…ForSequenceClassification`: trains its head, and of its body what no checkpoint gave (a pooler)."""

    group = 1
    language_model = None
    reference = None

    def __init__(self, model: PreTrainedModel, compiled: Compile = lambda function: function) -> None:
        self.model = model
        self.body: nn.Module = model.base_model
        prefix = f"{model.base_model_prefix}."
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        outside = {name for name in parameters if not name.startswith(prefix)}
        if self.body is model or not outside or model.get_output_embeddings() is not None:
            raise ModelError(
                f"a classifier must have a head over classes, {type(model).__name__} has none; "
                "load it by AutoModelForSequenceClassification."
            )
        self._new = frozenset(getattr(model, NEW_WEIGHTS, outside))
        self._initial = {
            name: value for name, value in parameters.items() if name in outside or name in self._new
        }
        self.head: tuple[Part, ...] = tuple((name, tuple(v.shape)) for name, v in self._initial.items())
        self.vocabulary = max(_FEWEST_CHOICES, int(model.config.num_labels))
        self._own_pooler = any(name.startswith(f"{prefix}pooler.") for name in self._initial)
        self._pooler: nn.Module | None = getattr(self.body, "pooler", None)
        known = signature(self.body.forward).parameters
        self._inputs = {"use_cache": False} if "use_cache" in known else {}
        self._pooling = self._find_pooling()

    def initial_head(self, seed: int) -> torch.Tensor:
        """What the checkpoint has; else matrices as transformers draws those of a new head, normal with the model's
        range, biases 0, norms 1.
        """
        spread = float(getattr(self.model.config, "initializer_range", 0.02))
        generator = torch.Generator().manual_seed(seed)
        numbers = []
        for name, shape in self.head:
            if name not in self._new:
                numbers.append(self._initial[name].flatten().float().cpu())
            elif len(shape) > 1:
                numbers.append(torch.empty(shape).normal_(0.0, spread, generator=generator).flatten())
            else:
                numbers.append(torch.full(shape, float(name.endswith("weight"))))
        return torch.cat(numbers)

    def counts(self, supervised: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Every row once."""
        return supervised

    def hidden(self, tokens: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """States [rows, T, D] of tokens [rows, T], each that of its row which the head reads."""
        output = self.body(input_ids=tokens, **self._inputs, **inputs)
        return pooled(output.last_hidden_state, self._pooling, **inputs), output

    def loss_and_gradient(
        self, states: torch.Tensor, asked: Supervised, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [S], and the gradient [S, D] of Σ weights · losses with respect to `states`.

        Cross entropy in nats, its mean over several labels, or the squared error: those of transformers' own
        classifiers. A row whose loss is not finite hands none down to the adapters; its trial's head gets what it gets.
        """
        losses = torch.empty(len(states), dtype=_loss_type(states), device=states.device)
        gradient = torch.zeros_like(states)
        for head in asked.heads:
            own = slice(head.start, head.stop)
            leaf = states[own].detach().requires_grad_()
            values = {name: value.detach().requires_grad_() for name, value in head.values.items()}
            loss = _losses(self.logits(leaf, values).to(losses.dtype), asked.targets[own])
            losses[own] = loss.detach()
            total = (asked.weights[own].to(loss.dtype) * loss).sum()
            slope, *slopes = torch.autograd.grad(total, [leaf, *values.values()])
            gradient[own] = slope.masked_fill(~torch.isfinite(losses[own]).unsqueeze(1), 0.0)
            if head.gradients is not None:
                for name, found in zip(values, slopes, strict=True):
                    head.gradients[name].add_(found)
        return losses, gradient

    def score(self, states: torch.Tensor, asked: Supervised, output: Any) -> Scored:
        """The same losses [S], and what was found in the form of the targets: the most likely class [S] int32, the
        labels more likely than not [S, C], the number [S].
        """
        losses = torch.empty(len(states), dtype=_loss_type(states), device=states.device)
        classes = not asked.targets.is_floating_point()
        found = torch.empty(
            asked.targets.shape, dtype=torch.int32 if classes else losses.dtype, device=states.device
        )
        for head in asked.heads:
            own = slice(head.start, head.stop)
            logits = self.logits(states[own], head.values).to(losses.dtype)
            losses[own] = _losses(logits, asked.targets[own])
            if classes:
                found[own] = logits.argmax(-1).to(found.dtype)
            else:
                found[own] = logits.squeeze(-1) if asked.targets.ndim == 1 else (logits > 0).to(found.dtype)
        return Scored(losses, found)

    def logits(self, states: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[S, C] of states [S, D] under one trial's head, in the head's type."""
        dtype = next(iter(values.values())).dtype
        # each row is one token long, which no padding is like: first, last and mean are the asked state
        return self._of_lines(states.unsqueeze(1), values, dtype)

    def _of_lines(
        self, lines: torch.Tensor, values: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """[S, C] of states [S, T, D] of whole rows. The body's own pooler, if it is no part of the head, runs in the
        base's type."""
        output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=lines.to(dtype))
        if self._pooler is not None and not self._own_pooler:
            output.pooler_output = self._pool(lines).to(dtype)
        given = torch.full(lines.shape[:2], self._plain, dtype=torch.int64, device=lines.device)
        with self._body_returns(output):
            found = functional_call(self.model, dict(values), kwargs={"input_ids": given})
        logits: torch.Tensor = found.logits
        return logits

    def _pool(self, lines: torch.Tensor) -> torch.Tensor:
        """[S, D] what the body's pooler makes of lines [S, T, D]."""
        assert self._pooler is not None
        if not isinstance(self._pooler, nn.Linear):
            pooled_output: torch.Tensor = self._pooler(lines)
            return pooled_output
        activation: Any = self.body.pooler_activation  # ALBERT's stands beside it
        of_first: torch.Tensor = activation(self._pooler(lines[:, 0]))
        return of_first

    @property
    def _plain(self) -> int:
        """A token that is no padding."""
        return 1 if self.model.config.get_text_config().pad_token_id == 0 else 0

    def _find_pooling(self) -> Pooling:
        """Which of a row's states the head reads, by the gradient of its outputs; raises `ModelError` for others."""
        given = torch.randn(
            1, 4, self.model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0)
        )
        parameter = next(iter(self._initial.values()))
        lines = given.to(parameter.device, parameter.dtype).requires_grad_()
        with torch.enable_grad():
            logits = self._of_lines(lines, self._initial, parameter.dtype)
            # a weighted sum: norms make plain ones constant
            weights = torch.arange(1, 1 + logits.shape[-1], device=logits.device, dtype=logits.dtype)
            (slope,) = torch.autograd.grad((logits * weights).sum(), lines)
        read = slope[0].abs().sum(-1) > 0
        if read.all() and torch.allclose(slope[0], slope[0, :1].expand_as(slope[0])):
            return Pooling.MEAN
        for pooling, place in ((Pooling.FIRST, 0), (Pooling.LAST, -1)):
            if read[place] and read.sum() == 1:
                return pooling
        raise ModelError(
            f"a classifier's head must read a row's first, last or mean state, that of {type(self.model).__name__} "
            "reads others; choose another model."
        )

    @contextmanager
    def _body_returns(self, output: BaseModelOutputWithPoolingAndCrossAttentions) -> Iterator[None]:
        def forward(*args: Any, **kwargs: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
            if self._own_pooler:  # with the trial's parameters in it by now
                output.pooler_output = self._pool(output.last_hidden_state)
            return output

        had = self.body.__dict__.get("forward")
        self.body.forward = forward
        try:
            yield
        finally:
            if had is None:
                del self.body.forward
            else:
                self.body.forward = had


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[S] of outputs [S, C], by what the targets are."""
    if not targets.is_floating_point():
        return cross_entropy(logits, targets, reduction="none")
    wanted = targets.to(logits.dtype)
    if targets.ndim == 1:
        return (logits.squeeze(-1) - wanted) ** 2
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)


def _loss_type(states: torch.Tensor) -> torch.dtype:
    return torch.float64 if states.dtype == torch.float64 else torch.float32
