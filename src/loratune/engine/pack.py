"""The pack: trials enter slots, train together, are read, leave, and make room for the next.

Knows the base model, the rows and the trials it is handed; nothing of strategies, studies or files.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from os import cpu_count
from time import perf_counter

import numpy as np
import numpy.typing as npt

from loratune.data.batches import TrialBatches, subset
from loratune.data.table import TokenTable
from loratune.engine.compiled import CompiledLayers
from loratune.engine.cuts import Cuts
from loratune.engine.evaluate import Evaluation, Evaluator
from loratune.engine.graphs import Graphs
from loratune.engine.head import Head
from loratune.engine.labels import LabelScorer, LabelTokens
from loratune.engine.live import EarlyStopping, LiveTrial
from loratune.engine.paths import Paths, choose_paths
from loratune.engine.resources import memory_errors
from loratune.engine.slot import Slot
from loratune.engine.step import TrainingStep
from loratune.lora.init import initial_adapter
from loratune.lora.layout import Adapter, find_targets
from loratune.lora.packed import PackedAdapters
from loratune.model.base import BaseModel
from loratune.values import CurvePoint, Trial, TrialResult

ADVICE = "plan with a smaller --device-memory, use fewer slots, or shorten the rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotProgress:
    """One live trial."""

    trial: Trial
    step: int
    total_steps: int
    loss: float
    """Of the last step, nats per supervised token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackProgress:
    """A pack after one step."""

    slots: tuple[SlotProgress, ...]
    tokens: int
    """Real tokens trained in this step."""
    seconds: float
    """Of this step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackEngine:
    """Trains and evaluates packs on one base model and one dataset."""

    base: BaseModel
    train: TokenTable
    validation: TokenTable
    study_seed: int
    """Seed of the shuffle that fractions are cut from, and of the validation subset."""
    cost: Callable[[Trial], float]
    """Cost of a whole trial in full-run equivalents."""
    label_tokens: LabelTokens | None = None
    """Tokens of every label's completion; with it accuracy and macro-F1 can be measured."""
    labels_at_end: bool = True
    """Whether they are measured for every trial at its end; that costs more than the NLL of all rows."""
    validation_subset_size: int = 256
    """Rows of the readings during training."""
    evaluations_per_trial: int = 4
    """Readings of a trial, the last of them on all validation rows at its end."""
    max_tokens_per_micro_batch: int = 2048
    launch_tokens: int | None = None
    """Cost of one more micro-batch in tokens; None: 64 on a CPU, 1,024 on a GPU."""
    paths: Paths | None = None
    """Which paths to take; None chooses the fastest that are right here."""

    @cached_property
    def _cuts(self) -> Cuts:
        default = 64 if self.base.device.type == "cpu" else 1024
        return Cuts(
            max_tokens=self.max_tokens_per_micro_batch,
            launch_tokens=default if self.launch_tokens is None else self.launch_tokens,
            flat=self.chosen_paths.rows.flat,
        )

    @cached_property
    def chosen_paths(self) -> Paths:
        """Which paths the engine takes here, and why."""
        return choose_paths(self.base) if self.paths is None else self.paths

    @cached_property
    def _head(self) -> Head:
        compiled = CompiledLayers(self.base.model) if self.chosen_paths.compiled else None
        return Head(self.base.model, compiled)

    @cached_property
    def _graphs(self) -> Graphs | None:
        return Graphs(self.base.profile.parameters) if self.chosen_paths.compiled else None

    @cached_property
    def _packed(self) -> PackedAdapters:
        names = [name for name, _, _ in self.base.profile.targets]
        return PackedAdapters(self.base.model, names, triton=self.chosen_paths.low_rank.triton)

    @cached_property
    def _evaluator(self) -> Evaluator:
        # no activations are kept, so a forward pass holds more rows
        return Evaluator(self._head, self._packed, replace(self._cuts, max_tokens=2 * self._cuts.max_tokens))

    @cached_property
    def _labels(self) -> LabelScorer | None:
        return None if self.label_tokens is None else LabelScorer(self._evaluator, self.label_tokens)

    @cached_property
    def _subset(self) -> TokenTable:
        rows = np.random.default_rng(self.study_seed).permutation(len(self.validation))
        return self.validation.take(np.sort(rows[: self.validation_subset_size]))

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with memory_errors(ADVICE), self._packed.attached():
            yield

    def batches(self, trial: Trial) -> TrialBatches:
        """The rows of a trial, step by step."""
        hyper_parameters = trial.hyper_parameters
        return TrialBatches(
            rows=subset(len(self.train), trial.fraction, self.study_seed),
            batch_size=hyper_parameters.batch_size,
            epochs=hyper_parameters.epochs,
            seed=trial.seed,
        )

    def initial(self, trial: Trial) -> Adapter:
        """The adapter with which a trial starts: PEFT's for its seed."""
        return initial_adapter(
            trial.hyper_parameters,
            find_targets(self.base.profile.targets, trial.hyper_parameters.target_modules),
            seed=trial.seed,
            base_dtype=self.base.dtype,
            device=self.base.device,
        )

    def slot(self, trial: Trial) -> Slot:
        """A trial before its first step."""
        return Slot(trial, self.initial(trial), self.batches(trial), vocabulary=self._head.vocabulary)

    def slots(self, trials: Sequence[Trial]) -> list[Slot]:
        """Trials before their first step; their initial weights are drawn by as many threads as there are cores."""
        _ = self._head  # made once, before the threads
        with ThreadPoolExecutor(cpu_count()) as pool:
            return list(pool.map(self.slot, trials))

    def training_step(self) -> TrainingStep:
        """What moves slots one step on; only works inside `run` or `attached`."""
        return TrainingStep(self._head, self._packed, self.train, self._cuts, self._graphs)

    @contextmanager
    def attached(self) -> Iterator[TrainingStep]:
        """For measuring and checking: the step with the hooks in place."""
        with self._ready():
            yield self.training_step()

    def run(
        self,
        next_trial: Callable[[], Trial | None],
        *,
        slots: int,
        on_result: Callable[[TrialResult, Adapter], None],
        on_progress: Callable[[PackProgress], None] | None = None,
        should_stop: Callable[[Trial, tuple[CurvePoint, ...]], bool] | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        """Train trials, at most `slots` at once, until `next_trial` returns None and all have ended.

        A freed slot is offered at the next step boundary, and again after every result, since a result may
        bring new trials. `should_stop` is asked after every reading but the last. `on_result` gets each
        result with its adapter (with early stopping, the best one). Raises `ResourceError` when memory does
        not suffice; any exception, Ctrl-C included, leaves the model as it was.
        """
        live: list[LiveTrial] = []
        offered = True
        with self.attached() as step:
            while True:
                entering: list[Trial] = []
                while offered and len(live) + len(entering) < slots:
                    trial = next_trial()
                    offered = trial is not None
                    if trial is not None:
                        entering.append(trial)
                readings = self.evaluations_per_trial
                for slot in self.slots(entering):
                    live.append(LiveTrial(slot, readings=readings, stopping=early_stopping))
                if not live:
                    return
                progress = self._step(step, live)
                self._read(live, should_stop)
                ended = [entry for entry in live if entry.ended]
                live = [entry for entry in live if not entry.ended]
                for result, adapter in self._results(ended):
                    on_result(result, adapter)
                    offered = True
                if on_progress is not None:
                    on_progress(progress)

    def _step(self, step: TrainingStep, live: Sequence[LiveTrial]) -> PackProgress:
        before = [entry.slot.trained_tokens for entry in live]
        started = perf_counter()
        tokens = step([entry.slot for entry in live])
        seconds = perf_counter() - started
        for entry, count in zip(live, before, strict=True):
            entry.seconds += seconds * (entry.slot.trained_tokens - count) / max(1, tokens)
        return PackProgress(
            slots=tuple(
                SlotProgress(
                    trial=entry.trial,
                    step=entry.slot.step,
                    total_steps=entry.slot.total_steps,
                    loss=entry.slot.losses[-1],
                )
                for entry in live
            ),
            tokens=tokens,
            seconds=seconds,
        )

    def _read(
        self,
        live: Sequence[LiveTrial],
        should_stop: Callable[[Trial, tuple[CurvePoint, ...]], bool] | None,
    ) -> None:
        """Evaluate the trials whose reading is due, those on the same rows together."""
        due = [entry for entry in live if entry.reading_due]
        for table, entries in (
            (self._subset, [entry for entry in due if not entry.reads_all_rows]),
            (self.validation, [entry for entry in due if entry.reads_all_rows]),
        ):
            if not entries:
                continue
            started = perf_counter()
            evaluations = self._evaluator.evaluate([entry.slot.adapter for entry in entries], table)
            seconds = (perf_counter() - started) / len(entries)
            for entry, evaluation in zip(entries, evaluations, strict=True):
                entry.seconds += seconds
                entry.read(evaluation)
        for entry in due:
            if should_stop and not entry.ended and should_stop(entry.trial, tuple(entry.curve)):
                slot = entry.slot
                entry.stopped = f"stopped by the search at step {slot.step} of {slot.total_steps}"

    def _results(self, ended: Sequence[LiveTrial]) -> Iterator[tuple[TrialResult, Adapter]]:
        complete = [entry for entry in ended if entry.final is not None]
        started = perf_counter()
        asked = complete if self.labels_at_end else []
        predictions = self._predict([entry.adapter() for entry in asked], self.validation)
        for entry in complete:
            entry.seconds += (perf_counter() - started) / len(complete)
        by_entry = dict(zip(map(id, asked), predictions, strict=True))
        for entry in ended:
            labels = self.validation.row_labels
            result = entry.result(self.cost(entry.trial), labels, by_entry.get(id(entry)))
            yield result, entry.adapter()

    def _predict(
        self, models: Sequence[Adapter | None], table: TokenTable
    ) -> Sequence[npt.NDArray[np.int64] | None]:
        if self._labels is None or table.row_labels is None or not models:
            return [None] * len(models)
        return self._labels.predict(models, table)

    def evaluate(
        self, models: Sequence[Adapter | None], table: TokenTable, *, labels: bool = False
    ) -> list[Evaluation]:
        """Adapters (None: the bare base) on the rows of any table; `labels` asks for predictions too."""
        with self._ready():
            evaluations = self._evaluator.evaluate(models, table)
            if not labels:
                return evaluations
            predictions = self._predict(models, table)
        return [replace(e, predictions=p) for e, p in zip(evaluations, predictions, strict=True)]
