"""Causal language modelling: the likelihood of every supervised token after those before it, never the full logits.

Shapes: S supervised positions, D hidden size, V vocabulary. Knows nothing of trials or adapters.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from loratune.errors import ModelError
from loratune.maths.targets import Part
from loratune.objectives.objective import Compile, LanguageModel, Objective, Scored, Supervised

_CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Logits held at a time: 64 MiB in float32 on a CPU; on a GPU 512 MiB, to launch less."""


class Causal:
    """The decoder and the head of a model, called one after the other.

    The head is the model's own `forward` while its decoder returns given hidden states, so that scaling,
    soft caps and biases are those of the architecture.
    """

    group = 1
    head: tuple[Part, ...] = ()
    reference: Objective | None = None

    def __init__(self, model: PreTrainedModel, compiled: Compile = lambda function: function) -> None:
        self.model = model
        self._slope = compiled(_slope)
        self.decoder = model.get_decoder()
        if self.decoder is None or self.decoder is model:
            raise ModelError(
                f"the model must have a decoder below its head, {type(model).__name__} has none; "
                "use a causal language model."
            )
        self.vocabulary = int(model.config.get_text_config().vocab_size)

    @property
    def language_model(self) -> LanguageModel:
        return self

    def initial_head(self, seed: int) -> torch.Tensor:
        """Nothing: the model's own head is frozen."""
        return torch.empty(0)

    def counts(self, supervised: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Every supervised token counts."""
        return supervised

    def hidden(self, tokens: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """Last hidden states [rows, T, D] of tokens [rows, T], and the decoder's whole output."""
        output = self.decoder(input_ids=tokens, **{"use_cache": False, **inputs})
        return output.last_hidden_state, output

    @contextmanager
    def _decoder_returns(self, output: Any) -> Iterator[None]:
        had = self.decoder.__dict__.get("forward")
        self.decoder.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            if had is None:
                del self.decoder.forward
            else:
                self.decoder.forward = had

    def logits(self, states: torch.Tensor, output: Any) -> torch.Tensor:
        """Logits [S, V] in the base's type of states [S, D]; `output` is what the decoder returned."""
        replaced = copy.copy(output)
        replaced.last_hidden_state = states.unsqueeze(0)
        with self._decoder_returns(replaced):
            unread = torch.zeros(1, states.shape[0], dtype=torch.int64, device=states.device)
            logits: torch.Tensor = self.model(input_ids=unread, use_cache=False).logits
        return logits[0]

    def chunks(self, count: int) -> Iterator[slice]:
        """Cuts of `count` positions whose logits are held at a time."""
        size = max(16, _CHUNK_ELEMENTS[self.model.device.type] // self.vocabulary)
        for start in range(0, count, size):
            yield slice(start, min(count, start + size))

    def loss_and_gradient(
        self, states: torch.Tensor, asked: Supervised, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """NLL [S] in nats, and the gradient [S, D] of Σ weights · NLL with respect to `states`.

        A position whose loss is not finite gets a gradient of exactly zero before the head's product: some
        CPUs' matrix units (AMX in half precision) carry a NaN from one row into its neighbour.
        """
        losses = torch.empty(len(states), dtype=_loss_type(states), device=states.device)
        gradient = torch.empty_like(states)
        for part in self.chunks(len(states)):
            leaf = states[part].detach().requires_grad_()
            logits = self.logits(leaf, output)
            loss, slope = self._slope(logits.detach(), asked.targets[part], asked.weights[part])
            (gradient[part],) = torch.autograd.grad(logits, leaf, slope)
            losses[part] = loss
        return losses, gradient

    def score(self, states: torch.Tensor, asked: Supervised, output: Any) -> Scored:
        """NLL [S] in nats and the most likely token [S], without gradients."""
        losses = torch.empty(len(states), dtype=_loss_type(states), device=states.device)
        likeliest = torch.empty(len(states), dtype=torch.int32, device=states.device)
        for part in self.chunks(len(states)):
            logits = self.logits(states[part], output).to(losses.dtype)
            chosen = logits.gather(1, asked.targets[part].unsqueeze(1)).squeeze(1)
            likeliest[part] = logits.argmax(-1)
            losses[part] = _log_sum_exp_(logits) - chosen
            del logits  # before the next chunk has its own
        return Scored(losses, likeliest)

    def likeliest(self, states: torch.Tensor, output: Any) -> torch.Tensor:
        """The most likely token [S] after states [S, D]."""
        parts = [self.logits(states[part], output).argmax(-1) for part in self.chunks(len(states))]
        return torch.cat(parts)

    def likelihood(
        self, states: torch.Tensor, owners: torch.Tensor, tokens: torch.Tensor, output: Any
    ) -> torch.Tensor:
        """Log-likelihood [P] of `tokens` [P], each after the state numbered by `owners` [P] (ascending)."""
        found = torch.empty(len(tokens), dtype=_loss_type(states), device=states.device)
        for part in self.chunks(len(states)):
            edges = torch.tensor([part.start, part.stop], device=owners.device)
            first, last = torch.searchsorted(owners, edges).tolist()
            logits = self.logits(states[part], output).to(found.dtype)
            local, chosen = owners[first:last] - part.start, tokens[first:last]
            likely = logits[local, chosen]
            found[first:last] = likely - _log_sum_exp_(logits)[local]
            del logits
        return found


def _slope(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL [S] of `targets`, and the gradient [S, V] of Σ weights · NLL with respect to the logits [S, V]."""
    likelihood = torch.log_softmax(logits.to(_loss_type(logits)), -1)
    loss = -likelihood.gather(1, targets.unsqueeze(1)).squeeze(1)
    if not torch.compiler.is_compiling():  # in place: fresh memory would take longer than the arithmetic
        of_target = torch.exp(-loss).sub_(1)
        slope = likelihood.exp_().scatter_(1, targets.unsqueeze(1), of_target.unsqueeze(1))
        slope.mul_(weights.to(slope.dtype).unsqueeze(1))
        slope.masked_fill_(~torch.isfinite(loss).unsqueeze(1), 0.0)
        return loss, slope.to(logits.dtype)
    place = torch.arange(logits.shape[1], device=logits.device)
    slope = (likelihood.exp() - (place == targets.unsqueeze(1)).to(likelihood.dtype)) * weights.to(
        likelihood.dtype
    ).unsqueeze(1)
    slope = torch.where(torch.isfinite(loss).unsqueeze(1), slope, torch.zeros_like(slope))
    return loss, slope.to(logits.dtype)


def _log_sum_exp_(logits: torch.Tensor) -> torch.Tensor:
    """`torch.logsumexp(logits, -1)`, which takes the memory of `logits` [S, V] once more, in place of them."""
    top = logits.amax(-1, keepdim=True)
    top.masked_fill_(top.isinf(), 0.0)
    return logits.sub_(top).exp_().sum(-1).log_().add_(top.squeeze(-1))


def _loss_type(states: torch.Tensor) -> torch.dtype:
    return torch.float64 if states.dtype == torch.float64 else torch.float32
