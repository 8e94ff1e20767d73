"""The metric tried before anything is trained: on what it will be compared with, and on a few rows of the base model.

What is wrong with it is found here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from loratune.analysis.subject import Subject
from loratune.data.prepare import PreparedData
from loratune.data.recognise import recognise
from loratune.data.shapes import examples
from loratune.data.sources import DataOptions, find_sources
from loratune.data.table import TokenTable
from loratune.data.turns import last_turns
from loratune.engine.scoring import Scoring
from loratune.errors import DataError, InputError
from loratune.metrics import BUILT_IN, Metric, Outputs, UnscorableRow
from loratune.runners.runner import Evaluated, Runner, ScoringJob, only
from loratune.values import Problem

ROWS = 32
_FEW_TOKENS = 8
"""Tokens that the base model writes of each row: enough for a function to show what it returns."""


def try_metric(subject: Subject, runner: Runner, data: PreparedData, options: DataOptions) -> tuple[str, ...]:
    """Score the base model on a few validation rows, and the references against themselves; notes on what is odd.

    Raises `InputError` where the metric fails or gives anything but a finite score for each row, `DataError` where it
    cannot score a row.
    """
    scoring = subject.scoring
    notes: tuple[str, ...] = ()
    if scoring.generates:
        _check_prompts(scoring.metric, data)
        references = [*scoring.references(data.validation), *scoring.references(data.test)]
        notes = _check(scoring, references, options)
        _check(scoring, scoring.references(data.train), options)  # what is learnt must be right by it too
    if scoring.metric.name in BUILT_IN:
        return notes
    table = subject.validation.take(subject.sampled_rows(ROWS))
    few = min(_FEW_TOKENS, scoring.max_new_tokens)
    job = ScoringJob(
        adapters=(None,), split="validation", rows=ROWS, labels=scoring.asks_labels, max_new_tokens=few
    )
    done = only(runner.run([job]))
    assert isinstance(done, Evaluated)
    return (*notes, *_remarks(scoring.metric, scoring.outputs(done.evaluations[0], table), table))


def _check_prompts(metric: Metric, data: PreparedData) -> None:
    """Raise `InputError` where nothing is written, or there is nothing to write after."""
    if data.classifier is not None:
        numbers = data.classifier.problem is Problem.NUMBER
        raise InputError(
            f"--metric {metric.name} scores text that a model writes, and --task classification has a head that writes "
            f"none; choose {'nll or correlation' if numbers else 'nll, accuracy or f1'}."
        )
    if all(len(turn.prompt) < 2 for turn in last_turns(data.validation)):
        raise InputError(
            f"--metric {metric.name} needs rows with a prompt, after which text is generated, and these rows are "
            f"{data.profile.shape}; choose nll, or give rows with prompt and completion."
        )


def _check(scoring: Scoring, references: Sequence[str], options: DataOptions) -> tuple[str, ...]:
    try:
        return scoring.metric.check(references)
    except UnscorableRow as error:
        tokenizer = scoring.tokenizer
        assert tokenizer is not None

        def plain(text: str) -> str:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return scoring.decoded([np.array(ids, np.int32)])[0]

        place = _place_of(options, tokenizer, references[error.row], plain)
        said = " ".join(references[error.row].split())[:60]
        raise DataError(
            f"--metric {scoring.metric.name} needs {error.rule}, got {said!r} in {place or options.data}; "
            f"{error.advice}, or choose another metric."
        ) from None


def _place_of(
    options: DataOptions,
    tokenizer: PreTrainedTokenizerBase,
    completion: str,
    plain: Callable[[str], str],
) -> str:
    """`train.jsonl:17`, the first row whose last answer is this text; empty where none is.

    `plain`: an answer as a row has it, what a chat template writes after it included → as it is compared.
    """
    sources = find_sources(options)
    shape = recognise(sources["train"], options, tokenizer)
    for source in sources.values():
        for example in examples(shape, source):
            answers = [segment.text for segment in example.segments if segment.learned]
            if answers and completion in answers[-1] and plain(answers[-1]) == completion:
                return example.place
    return ""


def _remarks(metric: Metric, outputs: Outputs, table: TokenTable) -> tuple[str, ...]:
    scores = metric.scores(outputs)
    references = outputs.references
    generated = None if outputs.generated is None else references
    perfect = metric.scores(replace(outputs, texts=references, generated=generated))
    if scores is None or perfect is None:
        return ()
    info = metric.info
    base, best = metric.value(scores, outputs.rows), metric.value(perfect, outputs.rows)
    if info.loss(best) <= info.loss(base):
        return ()
    return (
        f"On {len(table)} rows the {info.title} of the references against themselves is {info.text(best)}, worse than "
        f"the base model's {info.text(base)}, while a {'larger' if info.larger_is_better else 'smaller'} one counts as "
        "better: see larger_is_better of loratune.metrics.metric.",
    )
