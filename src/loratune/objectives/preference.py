"""Preference pairs: the chosen answer to a prompt is to be likelier than the rejected one (DPO, ORPO, SimPO).

Shapes: S supervised positions of the answers, P pairs, a pair's chosen row before its rejected one; D hidden size. Both
rows are scored first; that gives a coefficient for each row, and the gradient is the likelihood's own with these as
weights. A trial's `beta` comes with its positions, so one micro-batch holds trials of many.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from loratune.errors import ModelError
from loratune.objectives.causal import Causal
from loratune.objectives.objective import Compile, Scored, Supervised
from loratune.values.tasks import GAMMA_OF_BETA, PREFERENCE

_FEWEST_CHOICES = 1000
"""A batch of few pairs may lose far more than a guess would without its trial having diverged."""


class Answers(NamedTuple):
    """What is known of the pairs of a micro-batch; every tensor is [P]."""

    chosen: torch.Tensor
    """Log-likelihood of the chosen answer, summed over its tokens."""
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    beta: torch.Tensor


class Preference(Causal):
    """What DPO, ORPO and SimPO share: everything but the formula."""

    group = 2
    beta: ClassVar[float]
    """Beta of a trial that names none."""

    def __init__(self, model: PreTrainedModel, compiled: Compile = lambda function: function) -> None:
        super().__init__(model, compiled)
        self.vocabulary = max(_FEWEST_CHOICES, self.vocabulary)

    def counts(self, supervised: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A pair counts once, by its first row."""
        return np.asarray(np.arange(len(supervised)) % 2 == 0, np.int64)

    def loss_and_gradient(
        self, states: torch.Tensor, asked: Supervised, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A pair's loss in equal shares [S] of its positions, and the gradient [S, D] of Σ weights · losses.

        A pair whose loss is not finite hands none down.
        """
        with torch.no_grad():
            answers = self._answers(states, asked, output)
        with torch.enable_grad():
            sums = [sum_.requires_grad_() for sum_ in answers[:2]]
            losses, _ = self.formula(answers)
            slopes = torch.stack(torch.autograd.grad(losses.sum(), sums), 1)
        slopes = slopes.masked_fill(~torch.isfinite(losses).unsqueeze(1), 0.0).nan_to_num_(0.0, 0.0, 0.0)
        assert asked.rows is not None
        # a likelihood's slope is the negative one of its loss; a position's weight is the same within a pair
        own = asked._replace(weights=asked.weights * -slopes.flatten()[asked.rows])
        _, gradient = super().loss_and_gradient(states, own, output)
        return _shared(losses.detach(), answers)[asked.rows // 2].to(_loss_type(states)), gradient

    def score(self, states: torch.Tensor, asked: Supervised, output: Any) -> Scored:
        """The same losses [S]; right where the chosen answer is preferred; margins [S] of each position's pair."""
        with torch.no_grad():
            answers = self._answers(states, asked, output)
            losses, margins = self.formula(answers)
        assert asked.rows is not None
        pairs = asked.rows // 2
        found = torch.where((margins > 0)[pairs], asked.targets, -1).to(torch.int32)
        return Scored(_shared(losses, answers)[pairs].to(_loss_type(states)), found, margins[pairs])

    @abstractmethod
    def formula(self, answers: Answers) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and margins [P] of pairs; a margin is above zero where the chosen answer is preferred, in nats, and
        compares between betas."""

    def _answers(self, states: torch.Tensor, asked: Supervised, output: Any) -> Answers:
        """Answers in float64: a sum over hundreds of tokens is to be exact to parts of a nat."""
        assert asked.rows is not None
        nll = Causal.score(self, states, asked, output).losses.double()
        count = asked.row_count or int(asked.rows[-1]) + 1
        sums = nll.new_zeros(count).index_add_(0, asked.rows, -nll)
        tokens = nll.new_zeros(count).index_add_(0, asked.rows, torch.ones_like(nll))
        if self.reference is not None:
            sums = sums - self._references(asked, sums)
        beta = _of_rows(asked.betas, asked.rows, count)
        beta = torch.full_like(sums, self.beta) if beta is None else beta.nan_to_num(self.beta)
        return Answers(sums[::2], sums[1::2], tokens[::2], tokens[1::2], beta[::2])

    def _references(self, asked: Supervised, sums: torch.Tensor) -> torch.Tensor:
        """[rows] log-likelihoods under the base model; of a model that is the base, its own."""
        known = _of_rows(asked.references, asked.rows, len(sums))
        if known is None:
            raise ModelError(
                f"{type(self).__name__} compares with the base model's likelihoods, but the rows have none."
            )
        return torch.where(known.isnan(), sums, known)


class Dpo(Preference):
    """Direct preference optimisation: -log σ(β m), where m is by how much more than in the base model the chosen answer
    is likelier than the rejected one (TRL's loss type `sigmoid`, the reference being the base without adapters)."""

    beta = PREFERENCE.betas["dpo"]

    def __init__(self, model: PreTrainedModel, compiled: Compile = lambda function: function) -> None:
        super().__init__(model, compiled)
        self.reference = Causal(model)

    def formula(self, answers: Answers) -> tuple[torch.Tensor, torch.Tensor]:
        margin = answers.chosen - answers.rejected
        return softplus(-answers.beta * margin), margin


class Orpo(Preference):
    """Odds-ratio preference optimisation: the chosen answer's NLL per token, and beta (the paper's λ) times -log σ of
    the log odds ratio of the two likelihoods per token. No reference."""

    beta = PREFERENCE.betas["orpo"]

    def formula(self, answers: Answers) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected = answers.chosen / answers.chosen_tokens, answers.rejected / answers.rejected_tokens
        odds = chosen - rejected - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))
        return -chosen + answers.beta * softplus(-odds), chosen - rejected


class Simpo(Preference):
    """Simple preference optimisation: -log σ(β (m - γ/β)), where m is the difference of the log-likelihoods per token
    and the target margin γ is half of beta (TRL's `CPOConfig(loss_type="simpo", cpo_alpha=0)`). No reference."""

    beta = PREFERENCE.betas["simpo"]

    def formula(self, answers: Answers) -> tuple[torch.Tensor, torch.Tensor]:
        margin = answers.chosen / answers.chosen_tokens - answers.rejected / answers.rejected_tokens
        return softplus(-answers.beta * (margin - GAMMA_OF_BETA)), margin


def _log_one_minus_exp(values: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) of x < 0, exact near 0 and far from it."""
    return torch.log(-torch.expm1(values))


def _shared(losses: torch.Tensor, answers: Answers) -> torch.Tensor:
    """[P] what each position bears of its pair's loss."""
    return losses / (answers.chosen_tokens + answers.rejected_tokens)


def _of_rows(values: torch.Tensor | None, rows: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """[count] of values [S] that are equal within a row."""
    if values is None or rows is None:
        return None
    return values.new_zeros(count, dtype=torch.float64).index_copy_(0, rows, values.double())


def _loss_type(states: torch.Tensor) -> torch.dtype:
    return torch.float64 if states.dtype == torch.float64 else torch.float32
