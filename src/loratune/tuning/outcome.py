"""What a run came to: the facts that the report shows, the claims of the final run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import loratune
from loratune.analysis.diagnose import combined, of_run
from loratune.analysis.final import Final, FinalModel, Writer, held_out
from loratune.analysis.sensitivity import sensitivity
from loratune.analysis.written import write_rows
from loratune.data.table import TokenTable
from loratune.engine.scoring import table_rows
from loratune.errors import ModelError, OutputError, ResourceError
from loratune.files.read_json import parse_json
from loratune.lora.peft_io import saved_config
from loratune.metrics import NLL, Metric, find, margin_in_nats, metrics, searched_by
from loratune.reporting.facts import Floats, Gain, ModelScores, RunCost, RunFacts
from loratune.reporting.opponent import gains_over_opponent
from loratune.runners.local import early_stopping
from loratune.runners.runner import AdapterFile, Runner
from loratune.search.field import believed
from loratune.tuning.forecast import Forecast
from loratune.tuning.lessons import survived
from loratune.tuning.options import CommonOptions, TuneOptions, data_options
from loratune.tuning.workbench import Workbench
from loratune.values import (
    Decision,
    Evidence,
    HyperParameters,
    TrainingRecord,
    TrialResult,
    Truncation,
)
from loratune.values.analysis import Diagnosis
from loratune.values.events import Note, Tell
from loratune.values.plain import from_plain

_FILE = "result.json"
_EARLIER = frozenset({"max_length"})
"""Keys of `recommended` that are no hyper-parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """A finished run directory of `tune` or `train`."""

    directory: Path
    hyper_parameters: HyperParameters
    training: TrainingRecord
    validation_nll: float | None
    """The adapter's, nats per supervised token."""

    @property
    def adapter(self) -> Path:
        return self.directory / "adapter"

    @property
    def classifies(self) -> bool:
        """Whether a head answers for a row as a whole, and no text is written."""
        return self.training.classifier is not None


def training_record(
    options: CommonOptions, bench: Workbench, *, seed: int, epochs: float, patience: int
) -> TrainingRecord:
    """The record of a final run on this workbench."""
    stopping = early_stopping(bench.data.train, bench.data.validation, epochs, patience)
    return TrainingRecord(
        model=options.model,
        data=options.data,
        data_fingerprint=bench.data.fingerprint,
        data_options=asdict(data_options(options)),
        prompt=bench.data.prompt,
        dtype=bench.facts.dtype,
        weight_format=bench.profile.weight_format,
        seed=seed,
        rows=bench.data.train.examples,
        objective=options.learns,
        max_length=bench.data.profile.max_length,
        evaluations=stopping.evaluations,
        patience=patience,
        end_of_turn=str(bench.tokenizer.eos_token or ""),
        classifier=bench.engines.facts.classifier,
        modules_to_save=bench.engines.facts.modules_to_save,
    )


def load_run(directory: Path) -> TrainedRun:
    """Read `result.json`. Raises `OutputError` where there is none, or one of a version that kept too little."""
    path = directory / _FILE
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        values = parse_json(path.read_text(encoding="utf-8"))
        chosen = values["recommended"] if "recommended" in values else values["hyper_parameters"]
        return TrainedRun(
            directory=directory,
            hyper_parameters=HyperParameters.from_dict(
                {name: value for name, value in chosen.items() if name not in _EARLIER}
            ),
            training=from_plain(TrainingRecord, values["training"]),
            validation_nll=values["metrics"]["validation"].get("nll"),
        )
    except OSError:
        raise OutputError(
            f"a finished run must hold {_FILE}, but {directory} does not; give the --out of tune or train "
            "(--resume finishes an unfinished tune)."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path} must say how the adapter was trained, which this version writes under 'training' "
            f"({type(error).__name__}: {error}); run tune or train again."
        ) from None


_PACKAGES = ("torch", "transformers", "peft", "optuna", "numpy")


def named_targets(chosen: HyperParameters, file: AdapterFile) -> HyperParameters:
    """The hyper-parameters of a final adapter with its modules by name, as the PEFT config beside it has them."""
    return replace(
        chosen,
        learning_rate=file.hyper_parameters.learning_rate,
        target_modules=tuple(sorted(saved_config(file.folder).target_modules or ())),
    )


def run_facts(
    *,
    runner: Runner,
    options: TuneOptions,
    bench: Workbench,
    priced: Forecast,
    results: list[TrialResult],
    decision: Decision,
    truncation: Truncation | None,
    final: Final,
    cut: bool,
    stopped: bool,
    cost: RunCost,
    before: tuple[Diagnosis, ...],
    shortages: tuple[str, ...],
) -> RunFacts:
    """Everything that the report shows of the run; `runner` looks at the adapter."""
    context = priced.context
    gains = _gains(final, bench, options.optimised)
    earlier = [Evidence(claim=note) for note in priced.corrections.notes]
    evidence = (
        *decision.evidence,
        *earlier,
        *_cut_note(cut, stopped),
        *survived(shortages),
        *_final_claims(final, gains),
    )
    margin = margin_in_nats(context.wishes.metric, context.wishes.margin)
    diagnoses = combined(before, of_run(bench.subject, runner, final, results, margin=margin))
    evidence += tuple(each.to_evidence() for each in diagnoses)
    chosen = named_targets(decision.hyper_parameters, final.file)
    facts = RunFacts(
        model=options.model,
        data=options.data,
        directory=options.out,
        strategy=options.strategy,
        metric=options.optimised,
        optimised=find(options.optimised).info,
        margin=_margin(options, context.wishes.margin),
        budget=options.budget,
        seed=options.seed,
        profile=bench.data.profile,
        parameters_per_rank=context.model.parameters_per_rank,
        adapter_parameters=final.adapter.layout.size,
        plan=priced.plan,
        results=tuple(results),
        decision=replace(decision, hyper_parameters=chosen, evidence=evidence),
        recommended=_scores(final.recommended),
        default_recipe=_scores(final.default_recipe),
        base_model=_scores(final.base_model),
        cost=cost,
        gains=gains,
        validation_weights=context.data.validation_weights,
        truncation=truncation,
        diagnoses=diagnoses,
        sensitivity=sensitivity(
            decision.hyper_parameters, believed(context, results), bench.subject, bench.limits
        ),
        versions=versions(),
        notes=(*bench.notes, *final.notes),
        cut_by_clock=cut,
        stopped=stopped,
        training=training_record(
            options,
            bench,
            seed=_seed(final, options.seed),
            epochs=chosen.epochs,
            patience=options.patience,
        ),
        held_out=held_out(
            final,
            bench.data.test,
            bench.tokenizer,
            bench.data.labels,
            write=_writer(runner, options, bench, final),
            kind=bench.facts.classifier,
        ),
        proxy=priced.corrections.carried,
    )
    rows = table_rows(bench.data.validation)
    return replace(facts, fair_gains=gains_over_opponent(facts, metrics(options.optimised), rows))


def _writer(runner: Runner, options: TuneOptions, bench: Workbench, final: Final) -> Writer | None:
    """What is shown where labels say nothing; where that cannot be, likelihoods alone are."""
    if not bench.writes_shown:
        return None

    def write(rows: Sequence[int]) -> list[tuple[str, str]]:
        try:
            return write_rows(
                runner, final.file, bench.data.test, rows, bench.tokenizer, given=options.max_new_tokens
            )
        except (ModelError, ResourceError):
            return []

    return write


def _margin(options: TuneOptions, searched: float) -> float:
    """Margin in the unit of the user's metric; the search may have gone by another."""
    metric = find(options.optimised)
    return searched if searched_by(metric) is metric else options.margin or metric.info.margin


def versions() -> dict[str, str]:
    """Versions of the packages that a result may depend on."""
    return {"loratune": loratune.__version__, **{name: version(name) for name in _PACKAGES}}


def _seed(final: Final, otherwise: int) -> int:
    result = final.recommended.result
    return otherwise if result is None else result.asked.seed


def _scores(model: FinalModel | None) -> ModelScores:
    if model is None:
        return ModelScores()
    return ModelScores(
        validation=model.validation.metrics if model.validation else {}, test=model.test.metrics
    )


def _gains(final: Final, bench: Workbench, chosen: str) -> tuple[Gain, ...]:
    """Paired over rows, on both splits, over the base model and the default recipe, by every metric measured.

    One of several that the NLL decides is enough: their rows score the same.
    """
    splits: tuple[tuple[str, TokenTable], ...] = (
        ("validation", bench.data.validation),
        ("test", bench.data.test),
    )
    found = []
    for split, table in splits:
        rows = table_rows(table)
        ours = getattr(final.recommended, split)
        for over, model in (("base model", final.base_model), ("default recipe", final.default_recipe)):
            theirs = getattr(model, split) if model else None
            if theirs is None:
                continue
            pairs: list[tuple[Metric, Floats, Floats]] = [(NLL, ours.example_nll, theirs.example_nll)]
            pairs += [
                (metric, ours.example_scores[metric.column], theirs.example_scores[metric.column])
                for metric in metrics(chosen)
                if metric.column in ours.example_scores.keys() & theirs.example_scores.keys()
                and not (bench.data.classifier is not None and metric.info.of_tokens)
            ]
            found += [
                Gain.from_rows(mine, other, over=over, split=split, metric=metric, rows=rows)
                for metric, mine, other in pairs
            ]
    return tuple(found)


def _final_claims(final: Final, gains: tuple[Gain, ...]) -> list[Evidence]:
    """Claims on the test split only: it was evaluated once, after all choices."""
    claims = [Evidence(claim=text) for text in final.notes]
    for gain in gains:
        if gain.split != "test" or gain.interval is None:
            continue
        what = f"{gain.info.title} is {gain.info.better(1.0)}"
        claims.append(
            Evidence(
                claim=f"on the test rows the recommended adapter's {what} than the {gain.over}'s",
                value=gain.value,
                unit=gain.info.unit,
                interval=gain.interval,
                margin=0.0,
                holds=True if gain.interval[0] > 0 else False if gain.interval[1] < 0 else None,
            )
        )
    return claims


def _cut_note(cut: bool, stopped: bool) -> list[Evidence]:
    text = "the clock cut the search before it was settled; --resume continues it, with a new clock"
    if stopped:
        text = "the search was stopped by request before it was settled; --resume continues it"
    return [Evidence(claim=text)] if cut else []


def write_report(
    facts: RunFacts, directory: Path, tell: Tell, cost: Callable[[], RunCost] | None = None
) -> RunFacts:
    """`report.html`, or a note where matplotlib is not installed; returns the facts that it shows.

    `cost`: what the run has taken, asked for when the figures are drawn, so that every document says the same.
    """
    from loratune.reporting.documents import draw, write_html

    try:
        drawn = draw(facts)
    except ImportError as error:
        tell(Note(text=str(error)))
        drawn = None
    if cost is not None:
        facts = replace(facts, cost=cost())
    if drawn is not None:
        write_html(facts, directory, drawn)
    return facts
