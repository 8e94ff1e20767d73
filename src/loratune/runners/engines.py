"""Where the engines of a study are: a driver asks for runners on them and needs no engine of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from loratune.costs.limits import measured_peak
from loratune.data.prepare import PreparedData
from loratune.engine.pack import PackEngine
from loratune.model.device import forget_peak
from loratune.model.digest import weights_digest
from loratune.model.source import locate
from loratune.runners.local import LocalRunner
from loratune.runners.options import DEFAULT, RunnerOptions
from loratune.runners.references import References, folder_of
from loratune.runners.runner import Runner
from loratune.runners.spec import Built, EngineFacts, EngineSpec, build_on, model_cache


class Engines(Protocol):
    """Engines of one specification, wherever they are."""

    @property
    def facts(self) -> EngineFacts:
        """What a driver must know of them."""

    def runner(self, spec: EngineSpec, options: RunnerOptions = DEFAULT) -> Runner:
        """A runner on them, with the micro-batches and threads of `spec`."""

    def peak_bytes(self) -> int:
        """Most that a process of theirs has held since `forget_peak`, on its device."""

    def forget_peak(self) -> None:
        """Reset the peak."""


Host = Callable[[EngineSpec, PreparedData, PreTrainedTokenizerBase], AbstractContextManager[Engines]]
"""Starts the engines of a specification, for rows that have been read here. Raises what building an engine raises."""


def _weights_of(spec: EngineSpec) -> str:
    return spec.weights_digest or weights_digest(locate(spec.model))


class LocalEngines:
    """One engine, in this process."""

    def __init__(self, built: Built) -> None:
        self.built = built
        self.references: References | None = None
        if built.facts.needs_reference:
            self.references = References(folder_of(model_cache()), partial(_weights_of, built.spec))
        self.engine: PackEngine = built.engine
        """The engine with the micro-batches of the last runner."""
        self._tokens: tuple[int | None, int | None] = (
            built.spec.micro_batch_tokens,
            built.spec.evaluation_tokens,
        )

    @property
    def facts(self) -> EngineFacts:
        return self.built.facts

    def runner(self, spec: EngineSpec, options: RunnerOptions = DEFAULT) -> LocalRunner:
        self._adjust(spec)
        return LocalRunner(
            engine=replace(self.engine, on_shortage=options.on_shortage),
            limits=self.built.limits,
            test=self.built.data.test,
            references=self.references,
            options=options,
        )

    def _adjust(self, spec: EngineSpec) -> None:
        """What is built on the model stays as it is."""
        if spec.threads:
            torch.set_num_threads(spec.threads)
        tokens = spec.micro_batch_tokens, spec.evaluation_tokens
        if tokens != self._tokens and tokens[0] is not None:
            self.engine = self.engine.with_micro_batches(tokens[0], in_evaluation=tokens[1])
            self._tokens = tokens

    def peak_bytes(self) -> int:
        return measured_peak(self.built.base.device, self.built.limits.execution)

    def forget_peak(self) -> None:
        # what was measured with is not held any more, optimisers that refer to themselves neither
        gc.collect()
        self.engine.forget_recorded()
        forget_peak(self.built.base.device)


@contextmanager
def in_process(
    spec: EngineSpec, data: PreparedData, tokenizer: PreTrainedTokenizerBase
) -> Iterator[LocalEngines]:
    """A `Host`: the engine in this process."""
    yield LocalEngines(build_on(spec, data, tokenizer))
