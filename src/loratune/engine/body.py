"""How a model's layers run on a micro-batch: flat or padded rows, compiled or not. Knows nothing of losses.

All layers share one compiled function (their weights and tables are its inputs), with a free number of tokens. The
adapters' operators stay in one piece inside the compiled layers.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
import torch._dynamo
from torch import nn
from transformers import PreTrainedModel

from loratune.data.batches import MicroBatch, to_device
from loratune.engine.recompute import Recomputation, decoder_layers, recomputing
from loratune.model.long_attention import PackedRows
from loratune.model.rows import Bounds, bounds_of, flat, sees_ahead

_FORMS = 64
"""Most compiled forms of one layer: with and without gradients, of its input too, for each model of a process."""

P = ParamSpec("P")
T = TypeVar("T")


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """The function through `torch.compile`, for any number of tokens; it is compiled when it is first called."""
    # some versions of torch tell everybody about a choice that only they could make otherwise
    warnings.filterwarnings(
        "ignore", r"\s*Online softmax is disabled on the fly", UserWarning, module=r"torch\._inductor"
    )
    return torch.compile(function, dynamic=True)


_SMALL = 300e6
"""Parameters below which one compilation less is worth more than the gradient of the first layer's input, which nobody
needs: half a per cent of a step of 30 layers."""


class CompiledLayers:
    """Compiled forms of a model's layers, used inside `active` only."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = decoder_layers(model)
        self._compiled = [compiled(layer._call_impl) for layer in self._layers]
        small = sum(each.numel() for each in model.parameters()) < _SMALL
        self._embeddings = model.get_input_embeddings() if small else None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Layers called in this block run compiled."""
        for layer, form in zip(self._layers, self._compiled, strict=True):
            layer._compiled_call_impl = form
        alike = self._embeddings.register_forward_hook(_like_the_others) if self._embeddings else None
        try:
            # a layer's scale is a constant: as a variable it is found to be one only when all has been traced
            with torch._dynamo.config.patch(recompile_limit=_FORMS, specialize_float=True):
                yield
        finally:
            if alike is not None:
                alike.remove()
            for layer in self._layers:
                layer._compiled_call_impl = None


def _like_the_others(module: nn.Module, inputs: tuple[Any, ...], states: torch.Tensor) -> None:
    """A forward hook of the embeddings: the first layer's input wants a gradient as those of the others do, so that
    one compiled form serves all.
    """
    if torch.is_grad_enabled() and not states.requires_grad:
        states.requires_grad_()


class FlatRows(NamedTuple):
    """Where the rows of a flat micro-batch lie."""

    places: torch.Tensor
    """[1, N] place of every token in its row."""
    bounds: Bounds
    line: PackedRows | None = None
    """The same for the host; None in a recording, which serves other rows too."""

    @classmethod
    def of(cls, batch: MicroBatch) -> "FlatRows | None":
        """None where the micro-batch is padded."""
        if not batch.flat:
            return None
        device = batch.tokens.device
        edges = batch.edges
        line = PackedRows(edges, len(batch.counts))
        return cls(to_device(batch.places[None], device), bounds_of(edges, device), line)


class PaddedRows(NamedTuple):
    """What of a padded micro-batch belongs to rows."""

    real: torch.Tensor
    """[rows, T] 1 where a token is a row's, 0 where it is padding."""

    @classmethod
    def of(cls, batch: MicroBatch) -> "PaddedRows":
        """The padded rows of a micro-batch that is not flat."""
        real = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        return cls(to_device(real.astype(np.int64), batch.tokens.device))


class Body:
    """A model whose layers are put into the form in which they run."""

    def __init__(
        self, model: PreTrainedModel, layers: CompiledLayers | None = None, *, first_position: int = 0
    ) -> None:
        """`first_position`: of a flat row's first token, as `FlatPath` has it."""
        self.model = model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._layers = layers
        self._first = first_position
        self._blocks = decoder_layers(model)

    @cached_property
    def sees_ahead(self) -> bool:
        """Whether a token sees those after it."""
        return sees_ahead(self.model)

    def rows(self, batch: MicroBatch) -> FlatRows | PaddedRows | None:
        """Where its rows lie; None where the model need not know."""
        found = FlatRows.of(batch)
        if found is not None:
            return found._replace(places=found.places + self._first) if self._first else found
        return PaddedRows.of(batch) if self.sees_ahead else None

    @contextmanager
    def running(
        self, rows: FlatRows | PaddedRows | None, *, bare: bool = False
    ) -> Iterator[dict[str, torch.Tensor]]:
        """The model's inputs beside the tokens, for forward and backward passes of one micro-batch.

        Only flat micro-batches run compiled, and not those of the `bare` base: a compiled form of their own would take
        longer than all that a run asks of it.
        """
        if rows is None:
            yield {}
        elif isinstance(rows, PaddedRows):
            yield {"attention_mask": rows.real}
        else:
            with (
                flat(self.model, rows.bounds, line=rows.line),
                self._layers.active() if self._layers and not bare else nullcontext(),
            ):
                yield {"position_ids": rows.places}

    @contextmanager
    def recomputing(self, count: int) -> Iterator[Recomputation]:
        """Inside `running`: the first `count` layers keep their inputs alone."""
        with recomputing(self._blocks[:count]) as lower:
            yield lower
