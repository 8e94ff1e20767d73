"""Packs that learn from a teacher's soft targets instead of tokens: the engine against a known truth.

The teacher is the base model plus an update of exact rank, so the smallest rank that can follow it is known.
Only the objective differs from ordinary training; batches, packs, optimiser and readings are the engine's own.

Shapes as in `objectives.causal`: S supervised positions, D hidden size, V vocabulary.
"""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from loratune.engine.pack import PackEngine
from loratune.lora.layout import Target
from loratune.objectives.causal import Causal
from loratune.objectives.objective import Objective, Scored, Supervised


def planted_teacher(
    model: PreTrainedModel, targets: tuple[Target, ...], *, r: int, strength: float, seed: int
) -> PreTrainedModel:
    """A copy of `model` whose targeted weights have a random update of exact rank `r` added.

    The update B·A has independent normal entries in both factors and `strength` times the Frobenius norm of
    the weight it is added to; its singular values are nearly equal, so that no rank below `r` comes close.
    """
    # one configuration for both, so that the attention which the engine puts in place is the teacher's too
    teacher = copy.deepcopy(model, {id(model.config): model.config})
    generator = torch.Generator().manual_seed(seed)
    for name, inputs, outputs in targets:
        weight = teacher.get_submodule(name).weight
        a = torch.randn(r, inputs, generator=generator, dtype=torch.float64)
        b = torch.randn(outputs, r, generator=generator, dtype=torch.float64)
        update = b @ a
        update *= strength * weight.double().norm() / update.norm()
        weight.data += update.to(weight.dtype).view_as(weight)
    return teacher


class Taught(Causal):
    """The loss is KL(teacher ‖ student) in nats per position; the true tokens play no part.

    The teacher's hidden states travel beside the student's as features D to 2D, so whoever picks the
    supervised positions picks them for both.
    """

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel) -> None:
        super().__init__(model)
        self._teacher: nn.Module = teacher.get_decoder()

    def hidden(self, tokens: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """Last hidden states [rows, T, 2D], the student's and the teacher's, and the student's output."""
        states, output = super().hidden(tokens, **inputs)
        with torch.no_grad():
            taught = self._teacher(input_ids=tokens, use_cache=False, **inputs).last_hidden_state
        return torch.cat([states, taught], -1), output

    def loss_and_gradient(
        self, states: torch.Tensor, asked: Supervised, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """KL [S] and the gradient [S, 2D] of Σ weights · KL; the teacher's half of it is zero."""
        losses = torch.empty(len(states), dtype=states.dtype, device=states.device)
        gradient = torch.zeros_like(states)
        width = states.shape[1] // 2
        for part in self.chunks(len(states)):
            leaf = states[part, :width].detach().requires_grad_()
            with torch.enable_grad():
                loss = self._divergence(leaf, states[part, width:], output)[0]
                (gradient[part, :width],) = torch.autograd.grad((loss * asked.weights[part]).sum(), leaf)
            losses[part] = loss.detach()
        return losses, gradient

    def score(self, states: torch.Tensor, asked: Supervised, output: Any) -> Scored:
        """KL [S], and the target where both find the same token most likely [S], else -1."""
        losses = torch.empty(len(states), dtype=states.dtype, device=states.device)
        agree = torch.empty(len(states), dtype=torch.bool, device=states.device)
        width = states.shape[1] // 2
        for part in self.chunks(len(states)):
            losses[part], agree[part] = self._divergence(states[part, :width], states[part, width:], output)
        return Scored(losses, torch.where(agree, asked.targets, -1).to(torch.int32))

    def _divergence(
        self, states: torch.Tensor, taught: torch.Tensor, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        student = torch.log_softmax(self.logits(states, output), -1)
        with torch.no_grad():
            teacher = torch.log_softmax(self.logits(taught, output), -1)
        agree = student.argmax(-1) == teacher.argmax(-1)
        return (teacher.exp() * (teacher - student)).sum(-1), agree


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillingEngine(PackEngine):
    """A `PackEngine` whose every NLL is the divergence from `teacher`, in nats per supervised position."""

    teacher: PreTrainedModel

    @cached_property
    def _objective(self) -> Objective:
        return Taught(self.base.model, self.teacher)
