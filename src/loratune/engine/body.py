"""How a model's layers run on a micro-batch: flat rows in one line, compiled or not. Knows nothing of losses."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from loratune.data.batches import MicroBatch, to_device
from loratune.engine.compiled import CompiledLayers
from loratune.model.rows import Bounds, bounds_of, flat


class Line(NamedTuple):
    """Where the rows of a flat micro-batch lie."""

    places: torch.Tensor
    """[1, N] place of every token in its row."""
    bounds: Bounds

    @classmethod
    def of(cls, batch: MicroBatch) -> "Line | None":
        """None where the micro-batch is padded."""
        if not batch.flat:
            return None
        device = batch.tokens.device
        return cls(to_device(batch.places[None], device), bounds_of(batch.edges, device))


class Body:
    """A model whose layers are put into the form in which they run."""

    def __init__(self, model: PreTrainedModel, layers: CompiledLayers | None = None) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._layers = layers

    @contextmanager
    def running(self, line: Line | None) -> Iterator[dict[str, torch.Tensor]]:
        """For forward and backward passes of one micro-batch; gives the model's inputs beside the tokens.

        Only flat micro-batches run compiled.
        """
        if line is None:
            yield {}
            return
        with flat(self.model, line.bounds), self._layers.active() if self._layers else nullcontext():
            yield {"position_ids": line.places}
