"""Facts as rows and sentences of text, shared by the terminal and the HTML page. Knows no markup."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log2

from loratune.maths.laws import GuideRanges
from loratune.reporting.facts import RunCost, RunFacts
from loratune.reporting.opponent import OPPONENT, fair_opponent
from loratune.reporting.wording import count, duration, interval, number, rate, size
from loratune.values import ALL_LINEAR, DataProfile, Evidence, HyperParameters, Probe, Stage, TrialState

_NAMES = ("rank", "learning rate")
"""Units that are names and stand before their number."""


def value_tiles(facts: RunFacts) -> list[tuple[str, str, bool]]:
    """(name, value, wide) of every recommended hyper-parameter."""
    values = facts.decision.hyper_parameters
    targets = values.target_modules
    ranks = [rank for _, rank in values.rank_pattern]
    by_layer = f" ({min(ranks)} to {max(ranks)} by layer)" if ranks else ""
    return [
        ("r", f"{values.r}{by_layer}", bool(ranks)),
        ("lora_alpha", f"{values.lora_alpha:g}", False),
        ("learning_rate", rate(values.learning_rate), False),
        ("batch_size", str(values.batch_size), False),
        ("epochs", f"{values.epochs:g}", False),
        ("lora_dropout", f"{values.lora_dropout:g}", False),
        ("weight_decay", f"{values.weight_decay:g}", False),
        ("warmup_ratio", f"{values.warmup_ratio:g}", False),
        ("max_length", str(facts.profile.max_length), False),
        *([("variant", values.variant, True)] if values.variant else []),
        ("trainable parameters", count(facts.adapter_parameters), False),
        ("target_modules", "all linear layers" if targets == ALL_LINEAR else ", ".join(targets), True),
    ]


def recipe_table(facts: RunFacts) -> list[tuple[str, str, str]]:
    """(name, recommended, default recipe) as the final run had them, steps included; empty where one was not run."""
    final = [each for each in facts.results if each.asked.stage is Stage.FINAL]
    ours = next((each for each in final if facts.is_recommended(each.trial.hyper_parameters)), None)
    other = next((each for each in final if not facts.is_recommended(each.trial.hyper_parameters)), None)
    if ours is None or other is None:
        return []
    mine, theirs = ours.trial.hyper_parameters, other.trial.hyper_parameters
    names = (
        "r",
        "lora_alpha",
        "learning_rate",
        "batch_size",
        "epochs",
        "lora_dropout",
        "weight_decay",
        "warmup_ratio",
    )
    rows = [(name, _value(mine, name), _value(theirs, name)) for name in names]
    if mine.variant:
        rows.append(("variant", mine.variant, theirs.variant or "plain LoRA"))
    return [
        *rows,
        ("steps", str(ours.steps), str(other.steps)),
        ("tokens", count(ours.trained_tokens), count(other.trained_tokens)),
    ]


def _value(values: HyperParameters, name: str) -> str:
    value = getattr(values, name)
    return rate(value) if name == "learning_rate" else f"{value:g}"


def score_table(facts: RunFacts) -> tuple[list[str], list[tuple[str, list[str], bool]]]:
    """Heads, then (model, cells, whether it is ours): every metric that was measured, by split."""
    opponent = fair_opponent(facts)
    models = (
        ("base model", facts.base_model, False),
        ("default recipe", facts.default_recipe, False),
        *(((OPPONENT, opponent.scores, False),) if opponent.best else ()),
        ("recommended", facts.recommended, True),
    )
    columns = [
        (split, info)
        for split in ("validation", "test")
        for info in facts.shown_metrics
        if any(info.name in getattr(scores, split) for _, scores, _ in models)
    ]
    heads = [f"{split} {info.title}" for split, info in columns]
    rows = [
        (title, [info.text(getattr(scores, split).get(info.name)) for split, info in columns], ours)
        for title, scores, ours in models
    ]
    return heads, rows


def evidence_number(evidence: Evidence) -> str:
    """`0.001 nats, 95 % [-0.002, 0.004], margin 0.005`, or `rank 8`; empty for a note."""
    parts = []
    if evidence.value is not None and isfinite(evidence.value):
        parts.append(_quantity(number(evidence.value, 3), evidence.unit))
    if bounds := interval(evidence.interval):
        parts.append(f"95 % {bounds}")
    if evidence.margin is not None:
        parts.append(f"margin {evidence.margin:g}")
    return ", ".join(parts)


def _quantity(value: str, unit: str) -> str:
    return f"{unit} {value}" if unit in _NAMES else f"{value} {unit}".strip()


def survey_lines(data: DataProfile) -> list[str]:
    """Lengths, redundancy, labels, kind of task, near-duplicates and the base model's NLL, as far as they are known."""
    lines = []
    if data.length_quantiles:
        lengths = ", ".join(f"{share:.0%} ≤ {length}" for share, length in data.length_quantiles)
        lines.append(f"Row lengths in tokens: {lengths}; {data.unique_tokens} different tokens.")
    if data.label_counts:
        most = log2(sum(1 for rows in data.label_counts if rows) or 1)
        lines.append(
            f"{len(data.labels)} labels, entropy {data.label_entropy:.2f} of at most {most:.2f} bits; the most "
            f"frequent has {data.label_imbalance:.3g} times the rows of the least."
        )
    survey = data.survey
    if survey is None:
        return lines
    lines.append(f"Kind of task: {survey.kind} ({survey.kind_reason}).")
    lines.append(f"The text compresses {survey.compression_ratio:.1f} times.")
    if near := survey.near_duplicates:
        leaks = "; ".join(f"{found} of {rows} {split} rows" for split, rows, found in near.leaks)
        lines.append(
            f"Near-duplicates (at least {near.threshold:.0%} of the tokens shared): {near.training} of {near.rows} "
            f"training rows; almost in training: {leaks or 'not looked for'}."
        )
    if loss := survey.base_loss:
        lines.append(
            f"Base model: {loss.nll:.3f} nats per supervised token, 95 % [{loss.low:.3f}, {loss.high:.3f}] on "
            f"{loss.rows} rows; at most {count(loss.bits)} bits to learn in all training rows."
        )
    return lines


def length_bars(data: DataProfile) -> list[tuple[str, int, float]]:
    """(tokens, training rows, share of the fullest bin) of each length bin."""
    fullest = max((rows for _, _, rows in data.length_histogram), default=0)
    return [
        (f"{first}–{last}" if last > first else str(first), rows, rows / fullest)
        for first, last, rows in data.length_histogram
    ]


def guide_line(guide: GuideRanges) -> str:
    """What the published guide says for this kind of task."""
    low, high = guide.ranks
    return (
        f"The published guide, for this kind of task: rank {low} to {high}{' and more' if guide.open_above else ''}, "
        f"learning rate {rate(guide.learning_rates[0])} to {rate(guide.learning_rates[1])}, "
        f"batch size {guide.batch_sizes[0]} to {guide.batch_sizes[1]}."
    )


def probe_lines(probe: Probe) -> list[str]:
    """What was measured, part by part, and what was not."""
    lines = [f"Probe, {probe.seconds:.0f} s:"]
    if noise := probe.noise:
        top = number(noise.high, 3) if isfinite(noise.high) else "no upper end"
        lines.append(
            f"  gradient noise scale {number(noise.rows, 3)} rows, 90 % [{number(noise.low, 3)}, {top}], "
            f"over {noise.steps} steps"
        )
    if test := probe.rate:
        tried = ", ".join(f"{rate(each)}: {number(nll, 3)}" for each, nll in test.tried)
        edge = "" if test.inside else ", at the edge of what was tried"
        lines.append(
            f"  learning-rate test on {test.rows} rows (rank {test.r}, batch {test.batch_size}), NLL at {tried}; "
            f"best {rate(test.best)}{edge}"
        )
    if taken := probe.absorbed:
        lines.append(
            f"  one pass over {taken.rows} rows absorbed {taken.bits:.0f} bits, "
            f"{taken.bits / max(1, taken.supervised_tokens):.2f} per supervised token"
        )
    names = {"gradient noise scale": probe.noise, "learning-rate test": probe.rate}
    missing = [name for name, part in names.items() if part is None]
    if missing:
        lines.append(f"  not measured for want of rows: {', '.join(missing)}")
    return lines


HEALTHY = (
    "Nothing wrong was found: no step of the final run had to be skipped, its loss never rose and stayed high, its "
    "gradients did not jump, its validation NLL neither turned upwards nor was still falling in a straight line, its "
    "adapter is not stronger than the layers that it changes, and the rows hold no learnt padding, no held-out row and "
    "no text that the base model does not know."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthLine:
    """One sign, or the sentence that there is none."""

    mark: str
    kind: str
    """`yes` for nothing wrong, `no` for what needs the user, `note` for what was set right already."""
    finding: str
    action: str = ""
    """What has been done and what to do."""


def health_lines(facts: RunFacts) -> list[HealthLine]:
    """One line per diagnosis, those that need the user first; empty where the run was not examined."""
    if facts.diagnoses is None:
        return []
    if not facts.diagnoses:
        return [HealthLine(mark="✓", kind="yes", finding=HEALTHY)]
    lines = [
        HealthLine(
            mark="!" if each.remedy else "–",
            kind="no" if each.remedy else "note",
            finding=each.finding,
            action=" ".join(text for text in (each.done, each.remedy) if text),
        )
        for each in facts.diagnoses
    ]
    return sorted(lines, key=lambda line: line.kind != "no")


def divergence_sentence(facts: RunFacts) -> str:
    """How many trials of the search diverged and from which learning rate on: that is how a bracket finds its end."""
    diverged = [result for result in facts.results if result.state is TrialState.DIVERGED]
    if not diverged:
        return ""
    lowest = min(result.trial.hyper_parameters.learning_rate for result in diverged)
    chosen = facts.decision.hyper_parameters.learning_rate
    return (
        f"{len(diverged)} of {len(facts.results)} trials diverged, at learning rates from {lowest:.2g} on; "
        f"the recommended one is {chosen:.2g}."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelinePart:
    """A stretch of the bar."""

    name: str
    percent: float
    """Share of the whole."""
    time: str


def timeline_parts(cost: RunCost) -> list[TimelinePart]:
    """Parts in the order in which they come, without those that took no time; they sum to 100 %."""
    whole = sum(seconds for _, seconds in cost.timeline)
    return [
        TimelinePart(name=name, percent=100 * seconds / whole, time=duration(seconds))
        for name, seconds in cost.timeline
        if seconds > 0
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A quantity as it was predicted and as it came."""

    name: str
    predicted: str
    taken: str
    ratio: str
    """Taken over predicted; a dash where one is not known."""


def predictions(cost: RunCost) -> list[Prediction]:
    """Time and memory."""
    pairs = (
        ("time", duration, cost.predicted_seconds, cost.seconds),
        ("peak memory", lambda value: size(int(value)), cost.predicted_bytes, cost.measured_bytes),
    )
    return [
        Prediction(
            name=name,
            predicted=words(predicted) if predicted else "–",
            taken=words(taken) if taken else "not measured",
            ratio=f"{taken / predicted:.2f}" if predicted and taken else "–",
        )
        for name, words, predicted, taken in pairs
    ]
