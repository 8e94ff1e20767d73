"""What every objective must do; subclass `ObjectiveContract` in your tests.

In float64 on a tiny random model: the losses are those of your plain formula, the gradient is autograd's, rows (or
groups of rows) learn nothing from each other. Where heads are trained two trials share the micro-batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from loratune.objectives.objective import Head, Objective, Supervised

_VOCABULARY, _LENGTH, _SUPERVISED, _GROUPS = 61, 7, 3, 4


def tiny_model() -> PreTrainedModel:
    """A frozen random Llama in float64, whose logits are far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.float64).eval().requires_grad_(False)


class ObjectiveContract(ABC):
    """Every `test_` method is one promise of `Objective`."""

    def model(self) -> PreTrainedModel:
        """What it is made for; frozen, in float64."""
        return tiny_model()

    def targets(self, subject: Objective, following: torch.Tensor) -> torch.Tensor:
        """[S, …] what is asked at each position, of the tokens that follow [S]: these tokens."""
        return following

    @abstractmethod
    def objective(self, model: PreTrainedModel) -> Objective:
        """The subject."""

    @abstractmethod
    def reference(
        self, subject: Objective, states: torch.Tensor, asked: Supervised, output: Any
    ) -> torch.Tensor:
        """Its losses [S] by the plain formula, from which autograd can find the gradient, that of `asked.heads` too."""

    def _given(self, subject: Objective) -> tuple[torch.Tensor, Supervised, Any]:
        """States [S, D] of a few groups of rows, what is asked of them, and the model's output."""
        generator = torch.Generator().manual_seed(1)
        rows = _GROUPS * subject.group
        tokens = torch.randint(_VOCABULARY, (rows, _LENGTH), generator=generator)
        with torch.no_grad():
            hidden, output = subject.hidden(tokens)
        states = hidden[:, -_SUPERVISED - 1 : -1].reshape(rows * _SUPERVISED, -1)
        numbers = torch.arange(rows).repeat_interleave(_SUPERVISED)
        of_groups = torch.rand(_GROUPS, dtype=torch.float64, generator=generator) + 0.5
        asked = Supervised(
            targets=self.targets(subject, tokens[:, -_SUPERVISED:].flatten()),
            weights=of_groups[numbers // subject.group],
            rows=numbers if subject.group > 1 else None,
            heads=self._heads(subject, len(states)),
        )
        return states, self._of_groups(subject, asked), output

    def _of_groups(self, subject: Objective, asked: Supervised) -> Supervised:
        """`asked` with a beta for each group, as of several trials, and each row's likelihood under the base model."""
        if asked.rows is None:
            return asked
        betas = torch.tensor([0.3, float("nan"), 1.7, 0.05], dtype=torch.float64)
        references = -torch.linspace(8, 15, int(asked.rows[-1]) + 1, dtype=torch.float64)
        return asked._replace(betas=betas[asked.rows // subject.group], references=references[asked.rows])

    def _heads(self, subject: Objective, positions: int) -> tuple[Head, ...]:
        """Heads of two trials with half of the groups each, away from where they begin; none where none is trained."""
        if not subject.head:
            return ()
        found = []
        for number, (start, stop) in enumerate(pairwise((0, positions // 2, positions))):
            generator = torch.Generator().manual_seed(number)
            numbers = subject.initial_head(number).double()
            numbers += 0.1 * torch.randn(len(numbers), dtype=torch.float64, generator=generator)
            pieces = torch.split(numbers, [prod(shape) for _, shape in subject.head])
            values = {
                name: piece.view(shape) for (name, shape), piece in zip(subject.head, pieces, strict=True)
            }
            gradients = {name: torch.zeros_like(value) for name, value in values.items()}
            found.append(Head(start, stop, values, gradients))
        return tuple(found)

    def _part(self, subject: Objective, asked: Supervised, group: int) -> tuple[slice, Supervised]:
        """The positions of one group, and what is asked of it alone."""
        size = subject.group * _SUPERVISED
        part = slice(group * size, (group + 1) * size)
        rows = None if asked.rows is None else asked.rows[part] - group * subject.group
        heads = tuple(
            Head(0, size, head.values, None)
            for head in asked.heads
            if head.start <= part.start and part.stop <= head.stop
        )
        own = Supervised(targets=asked.targets[part], weights=asked.weights[part], rows=rows, heads=heads)
        if asked.betas is None or asked.references is None:
            return part, own
        return part, own._replace(betas=asked.betas[part], references=asked.references[part])

    def test_losses_and_gradient_are_those_of_the_formula(self) -> None:
        """The gradient of Σ weights · losses by autograd, to the rounding of float64."""
        subject = self.objective(self.model())
        states, asked, output = self._given(subject)
        losses, gradient = subject.loss_and_gradient(states, asked, output)
        leaf, heads = states.clone().requires_grad_(), _leaves(asked.heads)
        expected = self.reference(subject, leaf, asked._replace(heads=heads), output)
        of_heads = [value for head in heads for value in head.values.values()]
        slope, *slopes = torch.autograd.grad((asked.weights * expected).sum(), [leaf, *of_heads])
        assert losses.shape == (len(states),)
        assert gradient.shape == states.shape
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)
        for found, own in zip(_gradients(asked.heads), slopes, strict=True):
            torch.testing.assert_close(found, own, rtol=1e-9, atol=1e-12)
        assert all(each.abs().max() > 0 for each in (slope, *slopes)), (
            "a formula without a slope shows nothing"
        )

    def test_weights_of_zero_give_a_gradient_of_zero(self) -> None:
        """Also beside groups that have others."""
        subject = self.objective(self.model())
        states, asked, output = self._given(subject)
        part, _ = self._part(subject, asked, 1)
        weights = asked.weights.clone()
        weights[part] = 0
        _, gradient = subject.loss_and_gradient(states, asked._replace(weights=weights), output)
        assert not gradient[part].any()
        assert gradient.any()

    def test_scores_are_the_losses(self) -> None:
        """Position by position, so that rows add up to the same; whatever the weights are."""
        subject = self.objective(self.model())
        states, asked, output = self._given(subject)
        losses, _ = subject.loss_and_gradient(states, asked, output)
        with torch.no_grad():
            scores, tokens, _ = subject.score(states, asked._replace(weights=asked.weights * 0), output)
        torch.testing.assert_close(scores, losses, rtol=1e-10, atol=1e-12)
        assert tokens.dtype == torch.int32
        assert tokens.shape == losses.shape

    def test_a_group_gets_what_it_gets_alone(self) -> None:
        """Its losses and its gradient do not depend on what else is in the micro-batch."""
        subject = self.objective(self.model())
        states, asked, output = self._given(subject)
        losses, gradient = subject.loss_and_gradient(states, asked, output)
        for group in range(_GROUPS):
            part, own = self._part(subject, asked, group)
            alone, slope = subject.loss_and_gradient(states[part], own, output)
            torch.testing.assert_close(losses[part], alone, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(gradient[part], slope, rtol=1e-9, atol=1e-12)

    def test_what_is_not_finite_stays_in_its_group(self) -> None:
        """A NaN in one group's states leaves the others' losses and gradients as they were."""
        subject = self.objective(self.model())
        states, asked, output = self._given(subject)
        losses, gradient = subject.loss_and_gradient(states, asked, output)
        part, _ = self._part(subject, asked, 2)
        broken = states.clone()
        broken[part.start] = float("nan")
        others = torch.ones(len(states), dtype=torch.bool)
        others[part] = False
        healthy = [gradient.clone() for gradient in _gradients(asked.heads[:1])]
        for each in _gradients(asked.heads):
            each.zero_()
        found, slope = subject.loss_and_gradient(broken, asked, output)
        assert not torch.isfinite(found[part]).all(), "or nobody would notice"
        torch.testing.assert_close(found[others], losses[others], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(slope[others], gradient[others], rtol=1e-9, atol=1e-12)
        for kept, first in zip(_gradients(asked.heads[:1]), healthy, strict=True):
            torch.testing.assert_close(kept, first, rtol=1e-9, atol=1e-12)

    def test_every_group_counts(self) -> None:
        """Whole numbers, none below zero; a group with supervised positions counts for something."""
        subject = self.objective(self.model())
        supervised = np.arange(1, 1 + _GROUPS * subject.group)
        counts = subject.counts(supervised)
        assert counts.shape == supervised.shape
        assert np.issubdtype(counts.dtype, np.integer)
        assert (counts >= 0).all()
        assert (counts.reshape(_GROUPS, -1).sum(1) > 0).all()

    def test_a_head_begins_by_its_seed(self) -> None:
        """A head's first numbers, one for each of its parameters, are the model's."""
        subject = self.objective(self.model())
        parameters = dict(self.model().named_parameters())
        for name, shape in subject.head:
            assert tuple(parameters[name].shape) == shape
        first, again, other = (subject.initial_head(seed) for seed in (1, 1, 2))
        assert first.dtype == torch.float32
        assert first.shape == (sum(prod(shape) for _, shape in subject.head),)
        assert torch.equal(first, again)
        assert torch.equal(first, other) is not bool(subject.head)

    def test_gradients_of_a_head_add_up(self) -> None:
        """Over the micro-batches of a step; with weights of zero nothing comes to them."""
        subject = self.objective(self.model())
        states, asked, output = self._given(subject)
        subject.loss_and_gradient(states, asked, output)
        once = [gradient.clone() for gradient in _gradients(asked.heads)]
        subject.loss_and_gradient(states, asked._replace(weights=asked.weights * 0), output)
        for gradient, first in zip(_gradients(asked.heads), once, strict=True):
            assert torch.equal(gradient, first)
        subject.loss_and_gradient(states, asked, output)
        for gradient, first in zip(_gradients(asked.heads), once, strict=True):
            torch.testing.assert_close(gradient, 2 * first, rtol=1e-12, atol=0.0)


def _leaves(heads: Sequence[Head]) -> list[Head]:
    """The same values as leaves of a graph."""
    return [
        head._replace(values={name: value.clone().requires_grad_() for name, value in head.values.items()})
        for head in heads
    ]


def _gradients(heads: Sequence[Head]) -> list[torch.Tensor]:
    """All of them, head by head."""
    return [gradient for head in heads if head.gradients is not None for gradient in head.gradients.values()]
