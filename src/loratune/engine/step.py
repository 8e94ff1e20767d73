"""One training step of a pack: every live slot's next batch, in micro-batches that mix trials.

Knows the base model and the slots; nothing of evaluation, results or when trials enter.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from loratune.data.batches import Rows
from loratune.data.table import TokenTable
from loratune.engine.body import Body, FlatRows, PaddedRows
from loratune.engine.expected import ExpectedSizes
from loratune.engine.graphs import Graphs
from loratune.engine.memory import DoesNotFit, Failure, Place, Shortage, attempt, ignore
from loratune.engine.portions import Cuts, Gathered, Portion, Portions
from loratune.engine.recompute import Recompute, none
from loratune.engine.slot import Slot, clip_factors
from loratune.errors import ResourceError
from loratune.lora.packed import PackedAdapters, Plan
from loratune.lora.segments import Places
from loratune.objectives.objective import Objective, Supervised

if TYPE_CHECKING:
    from loratune.engine.together import UpdateTogether

T = TypeVar("T")


class _Prepared(NamedTuple):
    """What the updates of a step need, made before the first of them."""

    slots: Sequence[Slot]
    """The slots whose weights change."""
    factors: torch.Tensor
    """[slots that move] the multiplier that clips the slot's gradient."""
    skipped: torch.Tensor
    """[slots that move] 1 where its loss or gradient is not finite, else 0; float32."""
    numbers: torch.Tensor | None
    """What updates that are taken together need beside that."""
    read: Callable[[], list[list[float]]]
    """Losses and gradient norms of all slots, for which the host waits."""


class _Ahead(NamedTuple):
    """A micro-batch that may come next."""

    gathered: Gathered
    piece: Rows
    portion: Portion


class TrainingStep:
    """Moves all slots of a pack one optimiser step on.

    Where memory runs out among the micro-batches nothing has been updated yet: their cut is halved, for good,
    and the step begins again with the same rows. The updates come last and need no memory.
    """

    def __init__(
        self,
        body: Body,
        objective: Objective,
        packed: PackedAdapters,
        table: TokenTable,
        cuts: Cuts,
        graphs: Graphs | None = None,
        on_shortage: Callable[[Shortage], None] = ignore,
        recompute: Recompute = none,
        recomputable: Callable[[], int] = lambda: 0,
    ) -> None:
        """`recomputable`: how many layers' activations can be computed again, all of the model's or 0."""
        self._recompute, self._recomputable = recompute, recomputable
        self._known: dict[int, int] = {}
        """What `recompute` says of micro-batches by their tokens, while the slots are those of the last step."""
        self._last: Sequence[Slot] = ()
        self._graphs = graphs
        self._body = body
        self._objective = objective
        self._packed = packed
        self._table = table
        self._cuts = cuts
        self._portions = Portions(body, objective, packed, table, cuts)
        # a recording would have to know how many rows belong together, or how many positions each head has
        self._records = graphs is not None and objective.group == 1 and not objective.head
        self._expected = ExpectedSizes(table, cuts)
        self._device = body.device
        self._together = _together(self._device) if packed.triton else None
        self._on_shortage = on_shortage
        self._looks_ahead = self._device.type != "cpu"  # a CPU does nothing while the host prepares
        self._ahead: _Ahead | None = None
        self.computed_tokens = 0
        """Tokens in all micro-batches so far, those that fill up a shape included."""
        self.largest_recorded = 0
        """Tokens of the largest micro-batch for which a graph was asked, those that fill it up included."""

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a micro-batch now, at most."""
        return self._cuts.max_tokens

    def __call__(self, slots: Sequence[Slot]) -> int:
        """Train every slot on its next batch; returns the real tokens trained. One host synchronisation.

        Raises `DoesNotFit` where memory does not hold a single row; the slots are then as before.
        """
        gathered = Gathered.of(slots)
        assert gathered is not None, "a step is taken by slots"
        assert gathered.slots == list(slots), "slots that are done take no step"
        lengths = self._table.lengths[gathered.row]
        if self._graphs is not None and self._records and (expected := self._expected.new(slots)) is not None:
            self._graphs.expect(*expected)
        while isinstance(found := attempt(partial(self._prepare, gathered), self._device), Failure):
            self._make_room(found, slots, lengths)
        if self._graphs is not None:
            self._graphs.go_on()
        tokens = [int(count) for count in np.bincount(gathered.slot, lengths, minlength=len(slots))]
        self._update(found)
        if self._looks_ahead:
            self._look_ahead(slots)
        losses, norms = self._with_retry(found.read)
        for slot, loss, norm, count in zip(slots, losses, norms, tokens, strict=True):
            slot.record(loss, norm, count)
        return sum(tokens)

    def _make_room(self, failure: Failure, slots: Sequence[Slot], lengths: Rows) -> None:
        """Undo the step begun; take it without recorded graphs, else with micro-batches of half the size."""
        for slot in slots:
            slot.gradient.zero_()
        if self._graphs is not None and self._graphs.give_way():
            return
        largest = self._cuts.largest(lengths)
        recomputed = self._recomputed(slots, largest)
        place = Place.TRAINING
        if not self._cuts.halve(largest, longest=int(lengths.max())):
            layers = attempt(self._recomputable, self._device)
            if isinstance(layers, Failure) or recomputed >= layers:
                raise DoesNotFit(failure.message)
            place, self._cuts.spares = Place.ACTIVATIONS, largest
        self._on_shortage(
            Shortage(
                place=place,
                trials=tuple(slot.trial for slot in slots),
                tokens=largest,
                needed=failure.needed,
                now=self._cuts.max_tokens,
                recomputed=recomputed,
            )
        )

    def _prepare(self, gathered: Gathered) -> _Prepared:
        """All gradients, and all else that the updates need."""
        slots = gathered.slots
        totals = torch.zeros(len(slots), dtype=torch.float64, device=self._device)
        self._packed.assign([slot.member for slot in slots])
        for piece in self._portions.pieces(gathered):
            portion = self._portion(gathered, piece)
            self.computed_tokens += portion.batch.tokens.numel()
            totals += self._train(portion, slots)
        norms = torch.stack(torch._foreach_norm([slot.gradient for slot in slots]))
        moving = [slot for slot in slots if slot.moves]
        assert len(moving) in (0, len(slots)), "gradients are kept of all slots or of none"
        return _Prepared(
            slots=moving,
            factors=clip_factors(norms),
            skipped=(~(torch.isfinite(totals) & torch.isfinite(norms))).float(),
            numbers=self._together.prepare(moving)
            if self._together and moving and all(slot.one_rate for slot in moving)
            else None,
            read=_reading(torch.stack([totals, norms.double()])),
        )

    def _portion(self, gathered: Gathered, piece: Rows) -> Portion:
        """That micro-batch on the device, made now or ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.gathered.equals(gathered) and np.array_equal(ahead.piece, piece):
            return ahead.portion
        return self._portions.portion(gathered, piece)

    def _look_ahead(self, slots: Sequence[Slot]) -> None:
        """Have the first micro-batch of the next step made, if just these slots go on, before the host waits.

        It depends on its rows alone: where others come after all it is not used, and nothing else has changed.
        """
        gathered = Gathered.of(slots, ahead=1)
        if gathered is None:
            return
        piece = self._portions.pieces(gathered)[0]
        made = attempt(partial(self._portions.portion, gathered, piece), self._device)
        self._ahead = None if isinstance(made, Failure) else _Ahead(gathered, piece, made)

    def _update(self, prepared: _Prepared) -> None:
        """Move all slots on, each exactly once; the host does not wait."""
        slots, factors, skipped = prepared.slots, prepared.factors, prepared.skipped
        if self._together is not None and prepared.numbers is not None:
            self._with_retry(partial(self._together.take, slots, prepared.numbers, factors, skipped))
            return
        for slot, factor, skips in zip(slots, factors[: len(slots)], skipped[: len(slots)], strict=True):
            self._with_retry(partial(slot.clip, factor))
            self._with_retry(partial(slot.update, skips))

    def _with_retry(self, work: Callable[[], T]) -> T:
        """Work that fails, if at all, before it changes anything: tried a second time with all else given back.

        Raises `ResourceError` where that fails too: slots that have moved on must not be moved again.
        """
        if not isinstance(found := attempt(work, self._device), Failure):
            return found
        if self._graphs is not None:
            self._graphs.forget()
        if isinstance(found := attempt(work, self._device), Failure):
            raise ResourceError(
                f"memory ran out while a step of the pack was taken ({found.message}); give the device more room."
            )
        return found

    def _train(self, portion: Portion, slots: Sequence[Slot]) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns each slot's share [slots] of its mean loss."""
        layers = self._recomputed(slots, portion.batch.tokens.numel())
        weighted = self._losses(portion, layers).double() * portion.asked.weights
        return torch.segment_reduce(weighted, "sum", lengths=portion.shares, unsafe=True, initial=0.0)

    def _recomputed(self, slots: Sequence[Slot], tokens: int) -> int:
        """Number of layers whose activations a micro-batch of `tokens` tokens does not keep."""
        if self._last is not slots and list(self._last) != list(slots):
            self._known.clear()
        self._last = slots
        if tokens not in self._known:
            self._known[tokens] = self._recompute([slot.trial.hyper_parameters for slot in slots], tokens)
        wanted = self._known[tokens]
        spares = self._cuts.spares is not None and tokens >= self._cuts.spares
        if not wanted and not spares:
            return 0
        layers = self._recomputable()
        return layers if spares else min(layers, wanted)

    def _losses(self, portion: Portion, layers: int) -> torch.Tensor:
        """Losses [S] at the supervised positions; the gradients of Σ weights · losses are added to the slots'.

        Activations of the first `layers` layers are computed again.
        """
        batch, asked, _, plan, rows = portion
        tokens, positions = batch.tokens, batch.positions
        record = self._records and self._graphs is not None and self._graphs.takes(tokens.numel())
        if not record or not isinstance(rows, FlatRows) or plan.route is None or self._graphs is None:
            return self._pass(tokens, positions, asked, rows, plan, layers)
        assert isinstance(rows.bounds, torch.Tensor), "graphs are recorded on GPUs only"
        self.largest_recorded = max(self.largest_recorded, tokens.numel())
        count = len(positions)
        rest = (
            self._graphs.positions(count, tokens.numel()) - count
        )  # of the line's last token, with weight zero
        positions = nn.functional.pad(positions, (0, rest), value=tokens.numel() - 1)
        filled = tokens, positions, *(nn.functional.pad(each, (0, rest)) for each in asked[:2])
        route = plan.route
        dropout = () if route.places is None else route.places

        def body(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            own, at, targets, weights, where, ranges, pieces = tensors[:7]
            drawn = Places(*tensors[7:]) if dropout else None
            now = replace(plan, route=replace(route, pieces=pieces, places=drawn))
            return self._pass(own, at, Supervised(targets, weights), FlatRows(where, ranges), now, layers)

        tensors = (*filled, rows.places, rows.bounds, route.pieces, *dropout)
        kind = route.largest, route.rank_blocks, route.aligned, route.eights, bool(dropout), layers
        key = kind, route.runs, *(tuple(tensor.shape) for tensor in tensors)
        return self._graphs.run(key, body, tensors, kind=kind, tokens=plan.tokens)[:count]

    def _pass(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        asked: Supervised,
        rows: FlatRows | PaddedRows | None,
        plan: Plan,
        layers: int,
    ) -> torch.Tensor:
        """Forward and backward pass; returns the losses [S] at `positions`."""
        with (
            self._body.running(rows) as more,
            self._packed.routed(plan),
            self._body.recomputing(layers) as lower,
        ):
            hidden, output = self._objective.hidden(tokens, **more)
            states = Picked.apply(hidden, positions)  # type: ignore[no-untyped-call]
            losses, gradient = self._objective.loss_and_gradient(states, asked, output)
            states.backward(gradient)
            del hidden, output, states, gradient
            lower.backward()
        return losses


class Picked(torch.autograd.Function):
    """hidden [rows, T, D] → its states [S, D] at flat positions.

    The gradient is copied and not added up, which would sort the positions: where one stands there several times its
    gradients are equal (zero).
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        ctx.shape = hidden.shape
        ctx.save_for_backward(positions)
        return hidden.reshape(-1, hidden.shape[-1])[positions]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (positions,) = ctx.saved_tensors
        whole = gradient.new_zeros((ctx.shape.numel() // ctx.shape[-1], ctx.shape[-1]))
        return whole.index_copy_(0, positions, gradient).view(ctx.shape), None


def _together(device: torch.device) -> "UpdateTogether":
    from loratune.engine.together import UpdateTogether

    return UpdateTogether(device)


def _reading(numbers: torch.Tensor) -> Callable[[], list[list[float]]]:
    """Numbers for the host, which waits for what is launched up to now and for nothing after it."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    here.copy_(numbers, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def read() -> list[list[float]]:
        done.synchronize()
        return here.tolist()

    return read
