"""The packed engine on one base model and one dataset: trains packs, evaluates adapters, from one place.

Knows the base model, the rows and the trials it is handed; nothing of strategies, studies or files.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from loratune.data.batches import Rows, TrialBatches, batches_of, sampled_rows
from loratune.data.table import TokenTable
from loratune.data.turns import last_turns
from loratune.engine.body import Body
from loratune.engine.decoding import GreedyDecoder, Tokens, end_tokens
from loratune.engine.evaluate import Evaluation, Evaluator
from loratune.engine.graphs import Graphs
from loratune.engine.labels import LabelScorer, LabelTokens
from loratune.engine.live import EarlyStopping
from loratune.engine.loop import Callbacks, PackLoop, PackProgress, Work
from loratune.engine.machinery import Machinery, Machines, Paths
from loratune.engine.memory import DoesNotFit, Failure, Place, Shortage, attempt, ignore, memory_errors
from loratune.engine.portions import Cuts
from loratune.engine.recompute import Recompute, none
from loratune.engine.scoring import Scoring
from loratune.engine.slot import Slot
from loratune.engine.step import TrainingStep
from loratune.lora.layout import Adapter, InitialHead, find_targets, initial_adapters
from loratune.lora.packed import PackedAdapters
from loratune.maths.sizes import CAPACITY, LAUNCH_TOKENS
from loratune.model.base import BaseModel
from loratune.model.device import trim_heap
from loratune.objectives.objective import Factory, Objective
from loratune.objectives.registry import USUAL
from loratune.values import CurvePoint, Trial, TrialResult

T = TypeVar("T")

ADVICE = "plan with a smaller --device-memory, use fewer slots, or shorten the rows"


@dataclass(frozen=True, kw_only=True, eq=False)
class PackEngine:
    """How packs are trained and evaluated on one base model and one dataset: a value, changed by `replace`.

    What is built on the model belongs to `machines`, which all values made from one another share.
    """

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
    scoring: Scoring = field(default_factory=Scoring)
    """What is measured of a trial's last evaluation."""
    validation_subset_size: int = 256
    """Rows of the readings during training."""
    evaluations_per_trial: int = 4
    """Readings of a trial, the last of them on all validation rows at its end."""
    max_tokens_per_micro_batch: int = 2048
    """Size at first: halved where memory runs out."""
    max_tokens_per_evaluation: int | None = None
    """The same without gradients; None: twice as many, for no activations are kept."""
    cached_tokens: int = 2**15
    """Tokens of the rows that are decoded side by side, padding included; halved where memory runs out."""
    context_length: int | None = None
    """Tokens of a row that the model takes; None: no limit is known."""
    launch_tokens: int | None = None
    """Cost of one more micro-batch in tokens; None: what it is on the device."""
    objective: Factory = USUAL
    """What trials learn; see `objectives`."""
    paths: Paths | None = None
    """Which paths to take; None chooses the fastest that are right here."""
    recompute: Recompute = none
    """Layers whose activations are computed again instead of being kept, where they can be."""
    on_shortage: Callable[[Shortage], None] = ignore
    """Called with every out-of-memory error that was recovered from."""

    machines: Machines = field(default_factory=Machines)
    """Keeps what is built on the base model; `dataclasses.replace` hands it on."""

    @cached_property
    def machinery(self) -> Machinery:
        """What is built on the base model."""
        longest = int(max(self.train.lengths.max(), self.validation.lengths.max()))
        return self.machines.serving(self.base, self.paths, longest, self.objective)

    def with_micro_batches(self, tokens: int, *, in_evaluation: int | None = None) -> Self:
        """The same with micro-batches of `tokens` tokens; what is compiled stays."""
        self.forget_recorded()
        return replace(self, max_tokens_per_micro_batch=tokens, max_tokens_per_evaluation=in_evaluation)

    def forget_recorded(self) -> None:
        """Free the memory of recorded graphs whose shapes no longer occur."""
        if self._graphs is not None:
            self._graphs.forget()

    @cached_property
    def _cuts(self) -> Cuts:
        default = LAUNCH_TOKENS[self.base.device.type]
        return Cuts(
            max_tokens=self.max_tokens_per_micro_batch,
            launch_tokens=default if self.launch_tokens is None else self.launch_tokens,
            flat=self.chosen_paths.rows.flat,
            recorded=self._graphs.largest if self._graphs is not None else 0,
            line=self._graphs.line if self._graphs is not None else None,
            group=self._objective.group,
        )

    @property
    def chosen_paths(self) -> Paths:
        """Which paths the engine takes here, and why."""
        return self.machinery.paths

    @property
    def _body(self) -> Body:
        return self.machinery.body

    @property
    def _objective(self) -> Objective:
        return self.machinery.objective

    @property
    def _graphs(self) -> Graphs | None:
        return self.machinery.graphs

    @property
    def _packed(self) -> PackedAdapters:
        return self.machinery.packed

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the parameters that each trial trains beside its adapter."""
        return tuple(name for name, _ in self._objective.head)

    @property
    def group(self) -> int:
        """Rows that belong together, by what is learnt."""
        return self._objective.group

    @property
    def needs_reference(self) -> bool:
        """Whether what is learnt compares with the base model's likelihoods."""
        return self._objective.reference is not None

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a micro-batch in training now, at most."""
        return self._cuts.max_tokens

    def largest_micro_batch(self, lengths: Rows) -> int:
        """Tokens of the largest micro-batch of a step on rows of these lengths, padding included."""
        return self._cuts.largest(lengths)

    @cached_property
    def _evaluator(self) -> Evaluator:
        tokens = self.max_tokens_per_evaluation or 2 * self._cuts.max_tokens
        return Evaluator(
            self._body,
            self._objective,
            self._packed,
            replace(self._cuts, max_tokens=tokens, recorded=0, line=None),
            keeps_tokens=self.scoring.keeps_tokens,
        )

    @cached_property
    def _labels(self) -> LabelScorer | None:
        return None if self.label_tokens is None else LabelScorer(self._evaluator, self.label_tokens)

    @cached_property
    def _decoder(self) -> GreedyDecoder:
        return GreedyDecoder(
            self._evaluator,
            end_tokens(self.base.model, self.scoring.tokenizer),
            cached_tokens=self.cached_tokens,
        )

    def sampled_rows(self, rows: int | None) -> Rows:
        """[rows] ascending, at most all there are; of one shuffle, so that samples are nested; None: all."""
        return sampled_rows(len(self.validation), rows, seed=self.study_seed, group=self.group)

    def reference_likelihoods(self, table: TokenTable) -> npt.NDArray[np.float64]:
        """[rows] log-likelihood of each row's supervised tokens under the bare base, with which preferences compare.

        On the paths on which trials are trained. Raises `ResourceError` where memory does not hold one row.
        """
        objective = self._objective.reference or self._objective
        reader = Evaluator(self._body, objective, self._packed, self._evaluator.cuts)
        with self._ready():
            (found,) = self._halving(
                lambda: reader.evaluate([None], table), self._evaluator.cuts, 1, table.lengths
            )
        return -found.example_nll

    def sample(self, rows: int | None) -> TokenTable:
        """`rows` validation rows, the same every time."""
        return self.validation.take(self.sampled_rows(rows))

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with memory_errors(ADVICE), self._packed.attached():
            yield

    def batches(self, trial: Trial) -> TrialBatches:
        """The rows of a trial, step by step."""
        return batches_of(trial, len(self.train), study_seed=self.study_seed, group=self.group)

    def initial(self, trial: Trial) -> Adapter:
        """The adapter with which a trial starts: PEFT's for its seed, the objective's head beside it."""
        return self.initials([trial])[0]

    def initials(self, trials: Sequence[Trial]) -> list[Adapter]:
        """`initial` of many, each with weights of its own."""
        recipes = [trial.hyper_parameters for trial in trials]
        targets = [find_targets(self.base.profile.targets, recipe.target_modules) for recipe in recipes]
        wanted = zip(recipes, targets, (trial.seed for trial in trials), strict=True)
        head = InitialHead(self._objective.head, self._objective.initial_head)
        found = initial_adapters(list(wanted), base_dtype=self.base.dtype, device=self.base.device, head=head)
        lengths = cache(self._packed.row_lengths)
        for adapter in found:
            for name, magnitude in adapter.layout.magnitude_views(adapter.weights).items():
                magnitude.copy_(lengths(name))
        return found

    def slot(self, trial: Trial, initial: Adapter | None = None) -> Slot:
        """A trial before its first step, with all the memory that it will need between steps.

        `initial`: what it starts with and trains; None: `self.initial`.
        """
        adapter = self.initial(trial) if initial is None else initial
        slot = Slot(trial, adapter, self.batches(trial), vocabulary=self._objective.vocabulary)
        slot.allocate()
        return slot

    def slots(self, trials: Sequence[Trial]) -> list[Slot]:
        """Trials before their first step."""
        return [self.slot(*pair) for pair in zip(trials, self.initials(trials), strict=True)]

    def training_step(self) -> TrainingStep:
        """What moves slots one step on; only works inside `run` or `attached`."""
        return TrainingStep(
            self._body,
            self._objective,
            self._packed,
            self.train,
            self._cuts,
            self._graphs,
            self.on_shortage,
            self.recompute,
            lambda: self.machinery.recomputable,
        )

    @contextmanager
    def attached(self) -> Iterator[TrainingStep]:
        """The step with the hooks in place, for measuring and checking."""
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
        """`results` to the end: `on_result` gets each result with its adapter."""
        found = self.results(
            next_trial,
            slots=slots,
            on_progress=on_progress,
            should_stop=should_stop,
            early_stopping=early_stopping,
        )
        with closing(found):
            for result, adapter in found:
                on_result(result, adapter)

    def results(
        self,
        next_trial: Callable[[], Trial | None],
        *,
        slots: int,
        on_progress: Callable[[PackProgress], None] | None = None,
        should_stop: Callable[[Trial, tuple[CurvePoint, ...]], bool] | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> Generator[tuple[TrialResult, Adapter], None, None]:
        """Train trials, at most `slots` at once, until `next_trial` returns None and all have ended.

        Yields each result with its adapter (with early stopping, the best one) as it comes; training waits for
        the next one to be asked for. A freed slot is offered at the next step boundary, and again after every
        result, since a result may bring new trials. `should_stop` is asked after every reading but the last.
        To be closed where it is not run to its end: until then the model has the hooks of the pack.

        Where memory runs out micro-batches are halved, and then half of the trials parked until others have
        ended; no step is taken twice and results differ by rounding only. Raises `ResourceError` where a single
        trial does not fit; any exception, Ctrl-C included, leaves the model as it was.
        """
        callers = Callbacks(next_trial=next_trial, on_progress=on_progress, should_stop=should_stop)
        with self.attached() as step:
            work = Work(
                step=step,
                enter=self.slots,
                read=self.read,
                predict=self.predict,
                attempt=self.attempt,
                validation=self.validation,
                sample=self.sample(early_stopping.rows if early_stopping else self.validation_subset_size),
                readings=self.evaluations_per_trial,
                labels_at_end=self.labels_at_end,
                scoring=self.scoring,
                cost=self.cost,
                on_shortage=self.on_shortage,
            )
            slots = min(slots, CAPACITY)
            yield from PackLoop(work, callers, slots=slots, early_stopping=early_stopping).results()

    def attempt(self, work: Callable[[], T]) -> T | Failure:
        """What `work` returns; where memory runs out, tried again without the recorded graphs, if there are any."""
        found = attempt(work, self.base.device)
        if isinstance(found, Failure) and self._graphs is not None and self._graphs.forget():
            found = attempt(work, self.base.device)
        return found

    def read(self, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        """`evaluate`, inside `attached`. Raises `DoesNotFit` where a single row of one model is too much."""
        work = partial(self._evaluator.evaluate, models, table)
        return self._halving(work, self._evaluator.cuts, len(models), table.lengths)

    def predict(
        self,
        models: Sequence[Adapter | None],
        table: TokenTable,
        known: Sequence[Evaluation] | None = None,
    ) -> Sequence[npt.NDArray[np.int64] | None]:
        """[rows] the most likely label of each row, per model, inside `attached`; None where there are no labels.

        `known`: each model's evaluation on these rows, where there is one: it settles most rows of a trained model.
        """
        labels = self._labels
        if labels is None or table.row_labels is None or not models or table.answers is not None:
            return [None] * len(models)
        work = partial(labels.predict, models, table, known)
        return self._halving(work, self._evaluator.cuts, len(models), table.lengths)

    def write(
        self, models: Sequence[Adapter | None], table: TokenTable, *, max_new_tokens: int
    ) -> list[list[Tokens]]:
        """What each model writes by itself in place of each row's last answer [models][rows], inside `attached`.

        At most `max_new_tokens`, and what the model's context leaves. Raises `ModelError` where the model cannot.
        """
        prompts = [turn.prompt for turn in last_turns(table)]
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        limits = np.full(len(prompts), max_new_tokens)
        if self.context_length is not None:
            limits = np.clip(self.context_length - lengths, 1, max_new_tokens)
        work = partial(self._decoder.decode, models, prompts, limits)
        return self._halving(work, self._decoder.cuts, len(models), lengths + limits)

    def _halving(self, work: Callable[[], T], cuts: Cuts, models: int, lengths: Rows) -> T:
        """An evaluation of `models` models, with micro-batches halved, for good, as often as memory runs out."""
        everything = models * int(lengths.sum())
        if everything >= cuts.max_tokens:
            trim_heap(self.base.device)  # what steps left there would stay beside what this takes
        while isinstance(found := self.attempt(work), Failure):
            tokens = min(cuts.max_tokens, everything)
            if not cuts.halve(tokens, longest=int(lengths.max())):
                raise DoesNotFit(found.message)
            shortage = Shortage(
                place=Place.EVALUATION, trials=(), tokens=tokens, needed=found.needed, now=cuts.max_tokens
            )
            self.on_shortage(shortage)
        return found

    def evaluate(
        self,
        models: Sequence[Adapter | None],
        table: TokenTable,
        *,
        labels: bool = False,
        max_new_tokens: int = 0,
    ) -> list[Evaluation]:
        """Adapters (None: the bare base) on the rows of any table.

        `labels` asks for predictions too, `max_new_tokens` for generated text of at most that length.
        """
        with self._ready():
            evaluations = self.read(models, table)
            if labels:
                predicted = zip(evaluations, self.predict(models, table, evaluations), strict=True)
                evaluations = [
                    each if found is None else replace(each, predictions=found) for each, found in predicted
                ]
            if max_new_tokens:
                written = self.write(models, table, max_new_tokens=max_new_tokens)
                evaluations = [
                    replace(each, generated=tuple(rows))
                    for each, rows in zip(evaluations, written, strict=True)
                ]
        return evaluations
