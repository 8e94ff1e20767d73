"""A data profile, the guide and a probe as sentences and rows, shared by the terminal and the HTML page."""

from math import isfinite, log2

from loratune.maths.guide import GuideRanges
from loratune.reporting.wording import count, number, rate
from loratune.values import DataProfile, Probe


def survey_lines(data: DataProfile) -> list[str]:
    """Lengths, redundancy, labels, kind of task, near-duplicates and the base model's NLL, as far as they are known."""
    lines = []
    if data.length_quantiles:
        told = ", ".join(f"{share:.0%} ≤ {length}" for share, length in data.length_quantiles)
        lines.append(f"Row lengths in tokens: {told}; {data.unique_tokens} different tokens.")
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
