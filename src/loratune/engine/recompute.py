"""Layers whose activations are not kept but recomputed in the backward pass, the first ones of a model.

The first ones, because their backward passes come last: what a layer needs while it runs again takes the place of what
the layers above it have given back. Exact: the same functions run on the same numbers, dropout masks are functions of
places (`lora.dropout`), and 4-bit layers are unpacked again. Knows no adapters, rows or losses.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from loratune.model.kept_attention import Found, keeping, repeating
from loratune.model.quiet import first_sentence
from loratune.model.rows import body_of, states_of
from loratune.values import HyperParameters

Recompute = Callable[[Sequence[HyperParameters], int], int]
"""Number of layers computed again, by the trials in memory and the tokens of the micro-batch."""


def none(trials: Sequence[HyperParameters], tokens: int) -> int:
    """All activations are kept."""
    return 0


_CHECKED_TOKENS = 12
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05
"""Gradients may differ by this share of their norm; where a layer's gradient is missing they are off by .1 and more."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks of the decoder: its longest list of modules of one class; empty where none is."""
    lists = [list(module) for module in body_of(model).modules() if isinstance(module, nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])


class _Call(NamedTuple):
    """A layer that has run and whose activations are gone."""

    run: Callable[..., Any]
    x: torch.Tensor
    """Its input, a leaf of its own graph."""
    others: tuple[Any, ...]
    keywords: dict[str, Any]
    attention: deque[Found]


class Recomputation:
    """One micro-batch's layers that have run inside `recomputing`, and their backward passes."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._top: torch.Tensor | None = None
        """What the last of them gave, as the layers above read it; its gradient is collected there."""

    def runs(self, form: Callable[..., Any], *, last: bool, starts: bool = False) -> Callable[..., Any]:
        """A layer's function, changed so that it keeps its input alone.

        `last`: whether the layers above it keep what they need. `starts`: whether the first layer's input wants a
        gradient, of which there is no need while nothing below it is trained.
        """

        def run(x: torch.Tensor, *others: Any, **keywords: Any) -> Any:
            if self._top is not None and x is not self._top:
                raise ValueError("the layers do not read each other's results")
            own = x.detach().requires_grad_(starts or bool(self._calls))
            with keeping() as attention:
                found = form(own, *others, **keywords)
            y = _states(found)
            self._calls.append(_Call(form, own, others, keywords, attention))
            self._top = y.detach().requires_grad_(last)
            return self._top if found is y else (self._top, *found[1:])

        return run

    def backward(self) -> torch.Tensor | None:
        """Go on from the gradient that the layers above left; returns that of the first layer's input, if any."""
        gradient = None if self._top is None else self._top.grad
        self._top = None
        while self._calls and gradient is not None:
            run, x, others, keywords, attention = self._calls.pop()
            with repeating(attention):
                y = _states(run(x, *others, **keywords))
            if y.requires_grad:
                y.backward(gradient)  # type: ignore[no-untyped-call]
            del y
            gradient = x.grad
        self._calls.clear()
        return gradient


def _states(found: Any) -> torch.Tensor:
    """The hidden states among what a layer gives."""
    states: torch.Tensor = found if isinstance(found, torch.Tensor) else found[0]
    return states


@contextmanager
def recomputing(layers: Sequence[nn.Module], *, starts: bool = False) -> Iterator[Recomputation]:
    """In this block these layers, the first ones of a model, keep their inputs alone.

    For the forward pass, the backward pass of what lies above them and then `Recomputation.backward`.
    """
    found = Recomputation()
    before = [layer._compiled_call_impl for layer in layers]
    try:
        for layer, form in zip(layers, before, strict=True):
            plain = layer._call_impl if form is None else form
            layer._compiled_call_impl = found.runs(plain, last=layer is layers[-1], starts=starts)
        yield found
    finally:
        for layer, form in zip(layers, before, strict=True):
            layer._compiled_call_impl = form


def why_not(model: PreTrainedModel) -> str:
    """Why a model's layers cannot be computed again, a clause; empty where they can.

    No flag of transformers says whether layers hand each other more than hidden states: gradients are compared.
    """
    layers = decoder_layers(model)
    parameter = next(each for each in model.parameters() if each.is_floating_point())
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(_CHECKED_TOKENS, device=parameter.device)[None] * 7 % vocabulary
    if not layers:
        return "it has no list of equal layers"

    def states() -> torch.Tensor:
        return states_of(model, tokens)

    try:
        with torch.enable_grad():
            expected = _plain_gradient(layers[0], states)
            with recomputing(layers, starts=True) as lower:
                states().float().square().sum().backward()  # type: ignore[no-untyped-call]
                found = lower.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of transformers or torch
        return first_sentence(error)[:80]
    if found is None:
        return "its layers pass no gradients on"
    deviation = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not deviation <= _TOLERANCE.get(parameter.dtype, _HALF_TOLERANCE):
        return f"its layers hand each other more than hidden states (deviation {deviation:.2g})"
    return ""


def _plain_gradient(layer: nn.Module, states: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Gradient of Σ states² with respect to the input of that layer, all activations kept."""
    inputs: list[torch.Tensor] = []

    def leaf(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.append(given[0].detach().requires_grad_())
        return (inputs[0], *given[1:])

    handle = layer.register_forward_pre_hook(leaf)
    try:
        states().float().square().sum().backward()  # type: ignore[no-untyped-call]
    finally:
        handle.remove()
    assert inputs[0].grad is not None
    return inputs[0].grad
