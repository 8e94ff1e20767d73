"""An objective as a third party would write it: prefer a row to the one behind it, without a reference model.

For rows c (chosen) and r (rejected) of a pair with log-likelihoods s: softplus(-β (s_c - s_r)), shared out evenly among
the pair's supervised positions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import softplus

from loratune.objectives.causal import Causal
from loratune.objectives.objective import Scored, Supervised

BETA = 0.3


class PairMargin(Causal):
    """Scores both rows; a coefficient for each; then the likelihood's own gradient with weights by row."""

    group = 2

    def counts(self, supervised: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A pair counts once, by its first row."""
        return np.asarray(np.arange(len(supervised)) % 2 == 0, np.int64)

    def loss_and_gradient(
        self, states: torch.Tensor, asked: Supervised, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            losses, margin, pairs = self._pairs(states, asked, output)
        assert asked.rows is not None
        sign = 1 - 2 * (asked.rows % 2)  # of a row's own negative log-likelihood
        coefficient = BETA * torch.sigmoid(-BETA * margin)[pairs] * sign
        # a position's loss is its share of the pair's: Σ weights · losses is the weight times the pair's loss
        own = asked._replace(weights=asked.weights * coefficient)
        _, gradient = super().loss_and_gradient(states, own, output)
        return losses, gradient

    def score(self, states: torch.Tensor, asked: Supervised, output: Any) -> Scored:
        losses, margin, pairs = self._pairs(states, asked, output)
        right = (margin > 0)[pairs]
        return Scored(losses, torch.where(right, asked.targets, -1).to(torch.int32))

    def _pairs(
        self, states: torch.Tensor, asked: Supervised, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses [S], margins [pairs] s_c - s_r, and the pair of each position [S]."""
        assert asked.rows is not None
        nll = super().score(states, asked, output).losses
        pairs = asked.rows // 2
        count = int(pairs.max()) + 1
        margin = nll.new_zeros(count).index_add_(0, pairs, nll * (2 * (asked.rows % 2) - 1))
        positions = torch.bincount(pairs, minlength=count)
        return (softplus(-BETA * margin) / positions)[pairs], margin, pairs
