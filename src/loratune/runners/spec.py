"""An engine as a value that can be sent: what a process needs to know, and the one way from it to an engine.

A spec can be pickled and holds no arrays: a worker reads rows and weights itself, and refuses others than were meant.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from loratune.costs.generation import cached_tokens, longest_answer
from loratune.costs.limits import Limits, execution_of, limits_here, why_packed
from loratune.costs.readings import plan_readings
from loratune.data.prepare import PreparedData, prepare
from loratune.data.sources import DataOptions
from loratune.data.stored import read_rows as stored_rows
from loratune.data.survey import check_embeddings
from loratune.data.table import TokenTable
from loratune.engine.labels import labelling_passes
from loratune.engine.machinery import Paths, choose_paths
from loratune.engine.pack import PackEngine
from loratune.engine.scoring import Scoring
from loratune.errors import DataError, ModelError, panics_as
from loratune.lora.layout import find_targets
from loratune.lora.outputs import has_bias, output_layer
from loratune.lora.peft_io import modules_to_save
from loratune.maths.laws import passes
from loratune.maths.targets import check_rank
from loratune.metrics import Metric, Needs, named
from loratune.model.architecture import longest_row, read_config
from loratune.model.base import BaseModel, load_model
from loratune.model.device import DType, limit_memory, parse_memory, pick_device
from loratune.model.digest import weights_digest
from loratune.model.nf4 import NF4
from loratune.model.sharded import Exchange, Shard
from loratune.model.source import locate
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.objectives.registry import OBJECTIVES
from loratune.values import (
    ALL_LINEAR,
    CAUSAL,
    Classifier,
    DataFacts,
    ModelProfile,
    Problem,
    SearchContext,
    TrialCosts,
    Wishes,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """A base model, rows, and how packs are trained and read."""

    model: str
    """A folder, a .gguf file or a hub name."""
    data: DataOptions
    rows: str | None = None
    """A folder of tokenised rows (`data.stored`), which are taken as they are; None: `data` is read."""
    dtype: DType = "auto"
    weight_format: str | None = None
    """`plain` or `nf4`; None: as `dtype` says, and where that is `auto` `nf4` if the base does not fit otherwise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    device_memory: str | None = None
    """What may be taken, such as 24GiB, on a GPU the context included; None: what the device has."""
    recompute: str = "auto"
    """Layers whose activations are computed again: auto, none, all or a number."""
    objective: str = CAUSAL.objective
    """One of `OBJECTIVES`."""
    metric: str = "nll"
    """Its name, or `package.module:function`, which `build` imports: never build a spec from somebody else's folder."""
    max_new_tokens: int | None = None
    """Most tokens of a row's generated text; None: those of the longest completion in training and validation rows."""
    labels_at_end: bool | None = None
    """Whether labels are predicted at the end of every trial; None: where the metric asks for it."""
    epochs: float | Literal["auto"] = 1.0
    """Epochs of the runs that readings and costs are planned for; auto: by the number of rows."""
    target_modules: tuple[str, ...] = ALL_LINEAR
    """Layers that must be there, and allow `ranks`."""
    ranks: tuple[int, ...] = ()
    dora: bool = False
    """Whether trials may be DoRA."""
    paths: Paths | None = None
    """Which paths the engine takes; None: the fastest that are right on the device."""
    micro_batch_tokens: int | None = None
    """Size in training, as measured; None: what memory is predicted to allow."""
    evaluation_tokens: int | None = None
    """The same in evaluation; None: twice that number."""
    threads: int = 0
    """torch's, as measured; 0: the process's own number."""
    shard: tuple[int, int] = (0, 1)
    """Which of how many processes this one is that hold the base model's linear layers between them."""
    rows_digest: str = ""
    """What `PreparedData.fingerprint` must be; empty: whatever it is."""
    weights_digest: str = ""
    """What `model.digest.weights_digest` must be; empty: whatever it is."""

    def sealed(self, data: PreparedData) -> Self:
        """The same for another process, with digests of these rows and weights. Reads parts of the weights."""
        digest = weights_digest(locate(self.model))
        return replace(self, rows_digest=data.fingerprint, weights_digest=digest)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFacts:
    """What a driver must know of an engine that is somewhere else."""

    profile: ModelProfile
    dtype: str
    """What is computed in, such as `float32`."""
    device: str
    """cpu, or cuda:N."""
    device_name: str
    """The maker's name for it; on a CPU the processor and its cores."""
    limits: Limits
    """What fits in memory."""
    paths: Paths
    group: int = 1
    """Rows that belong together, by what is learnt."""
    needs_reference: bool = False
    """Whether what is learnt compares with the base model's likelihoods."""
    classifier: Classifier | None = None
    """What a head answers, and in which unit numbers are learnt; None where completions are."""
    modules_to_save: tuple[str, ...] = ()
    """PEFT's names of a trained head."""
    output_layer: str = ""
    """The layer that gives a head's answers."""
    notes: tuple[str, ...] = ()
    """What was settled where the user left it open, a sentence each."""
    devices: int = 1
    """Engines that trials of a search are shared out over; limits are of each."""
    beyond: tuple[int, ...] = ()
    """Bytes of memory that each of them has beyond the limits, where they differ."""

    @property
    def on_cpu(self) -> bool:
        """Whether trials are trained on a CPU."""
        return self.device == "cpu"


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """What a spec stands for, in this process."""

    spec: EngineSpec
    """The specification with the weight format as it was settled here."""
    data: PreparedData
    base: BaseModel
    engine: PackEngine
    limits: Limits
    """What fits in memory."""
    notes: tuple[str, ...] = ()
    """The notes of `EngineFacts`."""

    @cached_property
    def facts(self) -> EngineFacts:
        """Facts for a process without an engine."""
        device = self.base.device
        cuda = device.type == "cuda"
        return EngineFacts(
            profile=self.base.profile,
            dtype=str(self.base.dtype).removeprefix("torch."),
            device=str(device),
            device_name=torch.cuda.get_device_name(device)
            if cuda
            else f"{platform.processor()} {os.cpu_count()}",
            limits=self.limits,
            paths=self.engine.chosen_paths,
            group=self.engine.group,
            needs_reference=self.engine.needs_reference,
            notes=self.notes,
            **self._head,
        )

    @property
    def _head(self) -> dict[str, Any]:
        if self.data.classifier is None:
            return {}
        return {
            "classifier": self.data.classifier,
            "modules_to_save": tuple(modules_to_save(self.base.model, self.engine.head)),
            "output_layer": output_layer(self.base.model),
        }


def build(spec: EngineSpec, folder: Path, exchange: Exchange | None = None) -> Built:
    """Read rows, load the model, make the engine. Large rows are kept in files in `folder`.

    `exchange`: how processes hear of each other, where `spec.shard` has several.

    Raises `InputError` of all kinds for wrong input, other rows or weights than `spec` names included;
    `ResourceError` for a device that is absent or too small.
    """
    tokenizer = load_tokenizer(spec.model, cache=model_cache(), classifies=spec.data.kind.has_answers)
    if spec.rows is not None:
        return build_on(spec, stored_rows(Path(spec.rows)), tokenizer, exchange)
    return build_on(spec, read_rows(spec.model, spec.data, tokenizer, folder), tokenizer, exchange)


def build_on(
    spec: EngineSpec,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    exchange: Exchange | None = None,
) -> Built:
    """`build`, on rows that have been read."""
    cache = model_cache()
    _check_same(spec, data)
    longest = max(int(table.lengths.max(initial=0)) for table in (data.train, data.validation, data.test))
    _limit_memory(spec)
    reason = _why_packed(spec, longest)
    packs = bool(reason) or spec.weight_format == NF4
    base = load_model(
        spec.model,
        dtype=NF4 if packs else spec.dtype,
        device=spec.device,
        cache=cache,
        classifier=data.classifier,
        share=None if exchange is None else Shard(*spec.shard, exchange),
    )
    if spec.dora and base.weight_format == NF4:
        raise ModelError(
            f"DoRA needs the base's weights as they are, and {spec.model} is held in 4 bits (nf4); give "
            "--dtype bfloat16, or leave DoRA out."
        )
    if spec.dora and base.profile.shards > 1:
        raise ModelError(
            "DoRA needs the base's weights where it is trained, and --shard-base spreads them; leave one of them out."
        )
    data, unit = _in_one_unit(data, base)
    check_embeddings(data, base.profile.vocabulary, tokenizer)
    for rank in spec.ranks:
        check_rank(find_targets(base.profile.targets, spec.target_modules), rank)
    paths = choose_paths(base, longest=longest, dora=spec.dora) if spec.paths is None else spec.paths
    limits = limits_here(base, paths, data.train, data.validation, spec.device_memory, spec.recompute)
    if spec.micro_batch_tokens is not None:
        limits = replace(limits, micro_batch_tokens=spec.micro_batch_tokens)
    engine = _engine(spec, data, base, paths, limits, tokenizer)
    settled = replace(spec, weight_format=base.weight_format)
    return Built(
        spec=settled,
        data=data,
        base=base,
        engine=engine,
        limits=limits,
        notes=tuple(each for each in (reason, unit) if each),
    )


def _limit_memory(spec: EngineSpec) -> None:
    """Give this process, on a GPU, no more than the spec allows."""
    allowed = None
    if spec.device_memory is not None:
        allowed = parse_memory(spec.device_memory) - execution_of("cuda").runtime
    limit_memory(pick_device(spec.device), allowed)


def _why_packed(spec: EngineSpec, longest: int) -> str:
    """A sentence where the base model is held in 4 bits without having been asked for; else empty."""
    settled = spec.dtype != "auto" or spec.weight_format is not None
    if settled or spec.shard[1] > 1 or spec.data.kind.has_answers:
        return ""
    return why_packed(spec.model, device=spec.device, memory=spec.device_memory, longest=longest)


def _engine(
    spec: EngineSpec,
    data: PreparedData,
    base: BaseModel,
    paths: Paths,
    limits: Limits,
    tokenizer: PreTrainedTokenizerBase,
) -> PackEngine:
    scoring, finding = scoring_of(spec, data, tokenizer), labelling_passes(data.label_tokens, data.validation)
    facts = SearchContext(
        data=data_facts(data),
        costs=trial_costs(scoring.metric, data, finding),
        wishes=Wishes(epochs=passes(spec.epochs, data.train.examples), metric=spec.metric),
    )
    readings = plan_readings(facts, len(data.validation))
    return PackEngine(
        base=base,
        train=data.train,
        validation=data.validation,
        study_seed=spec.data.seed,
        cost=facts.cost,
        label_tokens=data.label_tokens or None,
        labels_at_end=scoring.asks_labels if spec.labels_at_end is None else spec.labels_at_end,
        scoring=scoring,
        validation_subset_size=readings.rows,
        evaluations_per_trial=readings.count,
        max_tokens_per_micro_batch=limits.micro_batch_tokens,
        recompute=limits.recomputed_in,
        max_tokens_per_evaluation=spec.evaluation_tokens,
        cached_tokens=cached_tokens(limits) if data.classifier is None else 1,
        context_length=context_length(spec.model) if data.classifier is None else None,
        objective=OBJECTIVES[spec.objective],
        paths=paths,
    )


def scoring_of(spec: EngineSpec, data: PreparedData, tokenizer: PreTrainedTokenizerBase) -> Scoring:
    """What is measured of an evaluation; code that `spec.metric` names is imported."""
    metric, most = named(spec.metric), 0
    if metric.needs is Needs.GENERATION:
        most = spec.max_new_tokens or longest_answer([data.train, data.validation])
    return Scoring(metric=metric, tokenizer=tokenizer, labels=data.labels, max_new_tokens=most)


def _in_one_unit(data: PreparedData, base: BaseModel) -> tuple[PreparedData, str]:
    """Numbers to be met with mean 0 and variance 1 over the training rows, and a sentence about it; without a bias in
    the head, which could not give the mean back, with a mean square of 1.
    """
    kind, answers = data.classifier, data.train.row_answers
    if kind is None or kind.problem is not Problem.NUMBER or answers is None:
        return data, ""
    centre = float(answers.mean()) if has_bias(base.model) else 0.0
    scale = float(np.sqrt(((answers - centre) ** 2).mean())) or 1.0

    def scaled(table: TokenTable) -> TokenTable:
        assert table.answers is not None
        return replace(table, answers=(table.answers - centre) / scale)

    note = (
        f"The numbers of the training rows have a mean of {float(answers.mean()):.4g} and a standard deviation of "
        f"{float(answers.std()):.4g}, in whose units they are learnt; the finished adapter "
        "predicts them in their own unit."
    )
    changed = replace(
        data,
        train=scaled(data.train),
        validation=scaled(data.validation),
        test=scaled(data.test),
        classifier=replace(kind, centre=centre, scale=scale),
    )
    return changed, note


def _check_same(spec: EngineSpec, data: PreparedData) -> None:
    """Raise `DataError` or `ModelError` where rows or weights are not those that are meant."""
    if spec.rows_digest and data.fingerprint != spec.rows_digest:
        raise DataError(
            f"the rows of {spec.data.data} must be those that the study began with ({spec.rows_digest}), found "
            f"{data.fingerprint}; put the files back as they were, or begin a new study."
        )
    if not spec.weights_digest:
        return
    found = weights_digest(locate(spec.model))
    if found != spec.weights_digest:
        raise ModelError(
            f"the weights of {spec.model} must be those that the study began with ({spec.weights_digest}), found "
            f"{found}; give the same model, or begin a new study."
        )


def model_cache() -> Path:
    """Where unpacked .gguf weights are kept: $LORATUNE_CACHE, else the user's cache folder."""
    return Path(os.environ.get("LORATUNE_CACHE") or Path.home() / ".cache" / "loratune")


def context_length(model: str, *, classifies: bool = False) -> int | None:
    """The longest row in tokens that the model's configuration allows; None where it sets no limit.

    A .gguf file's configuration takes as long to read as its weights, so its limit is left to the user.
    """
    source = locate(model, weights=False)
    return None if source.gguf is not None else longest_row(read_config(source, classifies=classifies))


def read_rows(
    model: str, options: DataOptions, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> PreparedData:
    """The rows as tokens; large ones are kept in files in `folder`. Raises `DataError`, `ModelError` (tokenizer)."""
    with panics_as(
        f"the tokenizer of {model} must take every row, but broke off", "download the model again"
    ):
        return prepare(
            options,
            tokenizer,
            end_of_turn=-1 if options.kind.has_answers else end_of_turn_id(tokenizer),
            model_limit=context_length(model, classifies=options.kind.has_answers),
            cache=folder,
        )


def data_facts(data: PreparedData) -> DataFacts:
    """What a strategy knows of the rows."""
    classifies = data.classifier is not None
    labels = data.validation.row_truth if data.labels or classifies else None
    return DataFacts(
        rows=data.train.examples,
        tokens=int(data.train.lengths.sum()),
        supervised_tokens=int(data.train.supervised_counts.sum()),
        validation_tokens=int(data.validation.lengths.sum()),
        validation_weights=data.validation.weights,
        validation_labels=labels,
        labels=len(data.labels),
    )


def trial_costs(metric: Metric, data: PreparedData, labelling: float) -> TrialCosts:
    """What evaluations cost; `labelling` as `engine.labels.labelling_passes` gives it. No pace yet."""
    return TrialCosts(
        evaluation_passes=metric.passes(bool(data.labels), labelling), labelling_passes=labelling
    )
