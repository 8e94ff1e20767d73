"""What a trial learns: from a model's states and a table's targets to a loss, its gradient and scores per row.

The engine knows this protocol and no objective. Shapes: S supervised positions of a micro-batch, in the order of its
rows; D hidden size. Knows nothing of trials, adapters or optimisers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from loratune.maths.targets import Part


class Head(NamedTuple):
    """What one trial trains beside its adapter, and which positions are the trial's."""

    start: int
    stop: int
    values: Mapping[str, torch.Tensor]
    """Parameters by name, of the adapter's type."""
    gradients: Mapping[str, torch.Tensor] | None
    """What gradients are added to, by the same names; None where nothing is trained."""


class Supervised(NamedTuple):
    """The supervised positions of a micro-batch."""

    targets: torch.Tensor
    """[S] the token that follows, or [S, …] what the table's rows are to be answered with."""
    weights: torch.Tensor
    """[S] of each position's loss in the sum that is minimised; equal within a row, and within a group."""
    rows: torch.Tensor | None = None
    """[S] number of the position's row in the micro-batch, ascending; given where the objective groups rows."""
    row_count: int = 0
    """How many rows these are, so that the host need not ask the device; 0: one more than the last of `rows`."""
    heads: Sequence[Head] = ()
    """Head of every trial with positions here, in their order, all positions covered; empty where nothing but adapters
    is trained."""
    betas: torch.Tensor | None = None
    """[S] the `beta` of the position's trial, NaN where it names none; given where the objective groups rows."""
    references: torch.Tensor | None = None
    """[S] the row's log-likelihood under the base model, NaN where this is the model itself; None where the table has
    none (see `Objective.reference`)."""


class Scored(NamedTuple):
    """What `Objective.score` gives."""

    losses: torch.Tensor
    """[S] as `loss_and_gradient` gives them."""
    found: torch.Tensor
    """[S] int32, the token found there: right where it is the target."""
    margins: torch.Tensor | None = None
    """[S] by how much the position's group is right, in nats, below zero where it is wrong; None where groups of rows
    have no such thing."""


class Objective(Protocol):
    """One way to learn from rows; made once for a model (see `Factory`)."""

    @property
    def group(self) -> int:
        """Rows of a table that belong together, one after another: 1, or 2 for pairs.

        A batch is drawn in whole groups, and no micro-batch separates one.
        """
        ...

    @property
    def vocabulary(self) -> int:
        """Choices at a position: a loss above twice the logarithm is worse than guessing."""
        ...

    @property
    def head(self) -> tuple[Part, ...]:
        """Parameters of the model of which each trial trains its own, by their names; empty: adapters only.

        They are all the parameters of the modules that PEFT saves whole (`modules_to_save`).
        """
        ...

    @property
    def language_model(self) -> "LanguageModel | None":
        """What reads labels and writes text token by token; None where the model does neither."""
        ...

    @property
    def reference(self) -> "Objective | None":
        """What reads each row once under the bare base model, with whose losses rows are compared
        (`Supervised.references`); None where nothing is compared.
        """
        ...

    def initial_head(self, seed: int) -> torch.Tensor:
        """[numbers of the head] float32 on the CPU: what a trial with that seed begins with."""
        ...

    def counts(self, supervised: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[rows] how much each row counts in its trial's mean loss, of the rows' supervised positions [rows]."""
        ...

    def hidden(self, tokens: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """States [rows, T, D] of tokens [rows, T], and what the losses need of the model's output beside them."""
        ...

    def loss_and_gradient(
        self, states: torch.Tensor, asked: Supervised, output: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [S], and the gradient [S, D] of Σ weights · losses with respect to `states` [S, D].

        With respect to the heads it is added to their `gradients`. What is not finite stays in its row or group, and in
        its trial's head: the gradient of others does not change. A row's losses add up to what it contributes; divided
        by what counts (`counts`) they are the mean that is reported.
        """
        ...

    def score(self, states: torch.Tensor, asked: Supervised, output: Any) -> Scored:
        """The same losses [S] without gradients, and what was found; weights are not read."""
        ...


class LanguageModel(Objective, Protocol):
    """An objective whose model gives the likelihood of every token."""

    def likeliest(self, states: torch.Tensor, output: Any) -> torch.Tensor:
        """The most likely token [S] after states [S, D]."""
        ...

    def likelihood(
        self, states: torch.Tensor, owners: torch.Tensor, tokens: torch.Tensor, output: Any
    ) -> torch.Tensor:
        """Log-likelihood [P] of `tokens` [P], each after the state numbered by `owners` [P] (ascending)."""
        ...


class Compile(Protocol):
    """Gives a function of tensors back in a faster form, or as it is."""

    def __call__(self, function: Any, /) -> Any: ...


class Factory(Protocol):
    """Makes an objective for a model; raises `ModelError` where the model cannot serve it."""

    def __call__(self, model: Any, compiled: Compile) -> Objective: ...
