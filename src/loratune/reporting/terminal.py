"""Profile, plan, prior, memory and summary for a terminal. Knows facts and rich, not where they come from."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loratune.costs.memory import MemoryEstimate, Verdict
from loratune.maths.laws import GuideRanges
from loratune.reporting.answer import exit_sentence, next_command, verdict
from loratune.reporting.facts import RunFacts
from loratune.reporting.impacts import impact_table
from loratune.reporting.tables import (
    evidence_number,
    guide_line,
    health_lines,
    probe_lines,
    score_table,
    survey_lines,
    value_tiles,
)
from loratune.reporting.takeaways import cost_sentence, gain_sentence, headline_gains
from loratune.reporting.wording import (
    CANNOT_TELL,
    NO,
    NOTE,
    YES,
    by_weight,
    count,
    duration,
    money,
    number,
    rate,
    size,
    states,
    sureness,
    variant,
)
from loratune.values import (
    DataProfile,
    Evidence,
    ModelProfile,
    Probe,
    Recommendation,
    SearchPlan,
    StudiedTask,
    Suggested,
)

_MOST_SIGNS = 2
_BESIDE = 2
"""Lines of the summary beside answer, claims, ending and empty ones: the next command, the shell's prompt."""
_LOW = 32
"""Lines of a screen below which only what is needed is said."""
_FEWEST_LINES = 2
"""Lines that claims have on a low screen."""
_STYLES = {YES: "green", NO: "red", CANNOT_TELL: "yellow", NOTE: "dim"}
_VERDICTS: dict[Verdict, str] = {
    "fits": "This fits in {}.",
    "tight": "This is tight in {}: the prediction is too close to the limit to be safe.",
    "does not fit": "This does not fit in {}.",
}


def print_profile(console: Console, data: DataProfile, model: ModelProfile) -> None:
    """What will be trained on what, in two or three lines."""
    lines = [
        f"Model: {model.name} ({model.family}), {count(model.parameters)} parameters, {model.layers} layers; "
        f"{count(model.parameters_per_rank)} LoRA parameters per unit of rank.",
        f"Data: {data.rows} training, {data.validation_rows} validation, {data.test_rows} test rows "
        f"({data.shape}); {count(data.tokens)} tokens, {count(data.supervised_tokens)} supervised; "
        f"longest row {data.length_max}.",
    ]
    if data.labels:
        lines.append(f"Labels: {len(data.labels)}.")
    removed = {
        "duplicates taken out of validation and test": data.duplicates_removed,
        f"rows over {data.max_length} tokens left out": data.overlong,
        "prompts shortened": data.cut,
    }
    if any(removed.values()):
        lines.append("; ".join(f"{number} {what}" for what, number in removed.items() if number) + ".")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def print_plan(
    console: Console,
    plan: SearchPlan,
    *,
    final_seconds: float,
    slots: int,
    peak_bytes: int,
    memory_bytes: int | None = None,
    price_per_hour: float = 0.0,
    devices: int = 1,
) -> None:
    """The priced plan. `final_seconds`: what its stages do not hold; `slots`: trials per pack; `memory_bytes`: what the
    device offers, each of several."""
    priced = (f"price at {price_per_hour:g}/h",) if price_per_hour else ()
    table = _table("stage", "trials", "packs", "full runs", "time", *priced, right=range(1, 6))

    def times(seconds: float) -> list[str]:
        return [duration(seconds), *([money(seconds, price_per_hour)] if priced else [])]

    for stage in plan.stages:
        counts = str(stage.trials), str(stage.packs), f"{stage.cost:.2f}"
        table.add_row(escape(stage.name), *counts, *times(stage.seconds))
    stages = sum(stage.seconds for stage in plan.stages)
    table.add_row("final, beside the default recipe", "2", "1", "", *times(final_seconds))
    table.add_section()
    trials = str(plan.trials + 2)
    table.add_row("total", trials, "", f"{plan.cost:.2f}", *times(stages + final_seconds), style="bold")
    console.print(table)
    room = f" of {size(memory_bytes)}" if memory_bytes else ""
    each = f" on each of {devices} devices" if devices > 1 else ""
    _line(console, f"Packs of up to {slots} trials{each}; predicted peak memory {size(peak_bytes)}{room}.")
    for stage in plan.stages:
        if stage.note:
            _line(console, f"– {stage.name}: {stage.note}")
    for sentence in plan.dropped:
        _line(console, f"– {sentence}")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def print_survey(console: Console, data: DataProfile) -> None:
    """What a closer look at the rows found, warnings last."""
    for line in survey_lines(data):
        _line(console, line)
    for warning in data.warnings:
        console.print(f"! {warning}", markup=False, highlight=False, style="yellow")


def print_probe(console: Console, probe: Probe) -> None:
    """What the probe measured."""
    for line in probe_lines(probe):
        _line(console, line)


def print_recommendation(
    console: Console,
    recommendation: Recommendation,
    *,
    before: Recommendation | None = None,
    guide: GuideRanges | None = None,
    notes: Sequence[str] = (),
) -> None:
    """The prior: value, range, its basis and reason of each hyper-parameter; `before` is that without a probe."""
    heads = ("value", "likely range", *(("before the probe",) if before else ()))
    table = _table("", *heads, "because", right=range(1, len(heads) + 1))
    for name in ("r", "safe_r", "lora_alpha", "learning_rate", "batch_size", "epochs"):
        each = getattr(recommendation, name)
        ranges = [_range(name, each)] + ([_range(name, getattr(before, name))] if before else [])
        reason = f"{each.reason} [{each.basis}]" if each.basis else each.reason
        table.add_row(name, _value_text(name, each.value), *ranges, escape(reason))
    console.print(table)
    if guide is not None:
        _line(console, guide_line(guide))
    for note in (*recommendation.notes, *notes):
        _line(console, f"– {note}")


def _range(name: str, each: Suggested) -> str:
    return f"{_value_text(name, each.low)} … {_value_text(name, each.high)}"


def _value_text(name: str, value: float) -> str:
    return rate(value) if name == "learning_rate" else f"{value:.0f}"


def print_ledger(
    console: Console, studies: Sequence[tuple[str, str, str, str, StudiedTask]], place: str
) -> None:
    """(key, finished, directory, owner, task) of every study, and where the ledger is; a team's has owners."""
    if studies:
        owned = any(owner for *_, owner, _ in studies)
        table = _table(
            "key",
            "finished",
            "model",
            "data",
            "rows",
            "rank",
            "learning-rate optima",
            "directory",
            *(["owner"] if owned else []),
            right=(4, 5),
        )
        for key, finished, directory, owner, task in studies:
            best = min(task.optima, key=lambda each: each.nll, default=None)
            optima = f"{len(task.optima)}" + (
                f", best {rate(best.learning_rate)} at r {best.r}" if best else ""
            )
            needed = f"{task.needed_rank:.0f}" if task.needed_rank else "–"
            cells = (
                key,
                finished,
                task.model,
                task.dataset[:16],
                f"{task.rows:.0f}",
                needed,
                optima,
                directory,
                *([owner] if owned else []),
            )
            table.add_row(*map(escape, cells))
        console.print(table)
    else:
        _line(console, "No study has finished yet.")
    _line(console, place)


def print_memory(
    console: Console, estimate: MemoryEstimate, available: int, recomputed: int = 0, layers: int = 0
) -> None:
    """Bytes by part, their sum, and the verdict on a device with `available` bytes.

    `recomputed` of the `layers` keep no activations.
    """
    table = _table("part", "memory")
    for name, amount in estimate.parts.items():
        table.add_row(escape(name), size(amount))
    table.add_section()
    table.add_row("total", size(estimate.total), style="bold")
    console.print(table)
    again = f" with {recomputed} of {layers} layers recomputed" if recomputed else ""
    _line(console, _VERDICTS[estimate.verdict(available)].format(size(available) + again))


def print_summary(console: Console, facts: RunFacts) -> None:
    """The answer on one screen: fewer claims where the screen is low, at most 40 lines of 100 columns."""
    values = facts.decision.hyper_parameters
    low = console.height < _LOW
    others = [f"{name} {value}" for name, value, wide in value_tiles(facts)[4:] if not wide]
    answer = Group(
        Text(
            f"Recommended: r {values.r}, alpha {values.lora_alpha:g}, "
            f"learning rate {rate(values.learning_rate)}, batch size {values.batch_size}{variant(values)}",
            style="bold",
        ),
        *([] if low else [Text(", ".join(others), style="dim")]),
        *map(Text, verdict(facts)),
        _scores(facts),
        *(Text(f"  {gain_sentence(gain)}") for gain in headline_gains(facts)),
    )
    end = _ending(facts, low=low)
    console.print(answer)
    if not low:
        console.print()
    room = console.height - _lines(console, answer) - _lines(console, end) - _BESIDE
    _print_evidence(console, facts, lines=room if low else room - 2)
    if not low:
        console.print()
    console.print(end)
    console.print(f"  {next_command(facts)}", markup=False, highlight=False, soft_wrap=True)


def _ending(facts: RunFacts, *, low: bool) -> Table:
    """How sure, what needs the user, where it is, what it cost, why this exit code."""
    lines: list[tuple[str, str, str]] = [
        ("how sure", sureness(facts), ""),
        *(("!", text, "yellow") for text in _signs(facts)),
        ("what mattered", impact_table(facts).takeaway if facts.sensitivity and not low else "", ""),
        ("where", f"{facts.directory}/: adapter/ (PEFT), report.html, result.json, study.db", ""),
        ("cost", cost_sentence(facts), ""),
        ("exit code", exit_sentence(facts), "yellow" if facts.cut_by_clock else ""),
        ("next", "", ""),
    ]
    table = _table("", "", right=())
    table.show_header = False
    for name, text, style in lines:
        if text or name == "next":
            table.add_row(Text(name, style="dim"), Text(text, style=style))
    return table


def _signs(facts: RunFacts) -> list[str]:
    """What needs the user, a sentence each."""
    signs = [line for line in health_lines(facts) if line.kind == "no"][:_MOST_SIGNS]
    return [f"{line.action} ({line.finding.rstrip('.')})" for line in signs]


def _scores(facts: RunFacts) -> Table:
    """Base, recipe and ours; the test split where there is one, else validation."""
    heads, rows = score_table(facts)
    split = "test" if facts.recommended.test else "validation"
    shown = [index for index, head in enumerate(heads) if head.startswith(split)]
    table = _table("", *(heads[index] for index in shown), right=range(1, len(shown) + 1))
    for name, cells, ours in rows:
        if any(cells[index] != number(None) for index in shown):
            table.add_row(name, *(cells[index] for index in shown), style="bold" if ours else "")
    return table


def _print_evidence(console: Console, facts: RunFacts, *, lines: int) -> None:
    """The claims, whole, that fit on `lines` lines; the others are counted, what the gains said left out."""
    intervals = [gain.interval for gain in headline_gains(facts) if gain.interval]
    claims = by_weight([(state, each) for state, each in states(facts) if each.interval not in intervals])
    for shown in range(len(claims), -1, -1):
        table = _claims(claims[:shown])
        if _lines(console, table) <= max(_FEWEST_LINES, lines - (shown < len(claims))):
            break
    if shown:
        console.print(table)
    if shown < len(claims):
        console.print(f"  and {len(claims) - shown} more in report.html", style="dim", highlight=False)


def _claims(claims: Sequence[tuple[str, Evidence]]) -> Table:
    """The state in a word, then the claim on the lines that it needs."""
    table = _table("", "", right=())
    table.show_header = False
    for state, each in claims:
        measured = evidence_number(each)
        claim = each.claim[:1].upper() + each.claim[1:]
        text = f"{claim.rstrip('.')} ({measured})" if measured else claim
        table.add_row(Text(state, style=_STYLES[state], no_wrap=True), Text(text))
    return table


def _lines(console: Console, shown: RenderableType) -> int:
    if isinstance(shown, Table) and not shown.row_count:
        return 0
    return len(console.render_lines(shown, pad=False))


def _table(*heads: str, right: range | tuple[int, ...] | None = None) -> Table:
    """Columns from the third on (or those in `right`) are numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    numbers = range(min(2, len(heads) - 1), len(heads)) if right is None else right
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index in numbers else "left")
    return table
