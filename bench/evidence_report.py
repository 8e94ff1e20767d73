"""From the runs of `bench/evidence_grid.py` to committed results, figures and the measured parts of `docs/evidence.md`.

PYTHONPATH=src:bench python bench/evidence_report.py --collect FOLDER --tables FOLDER   # once, after the runs
PYTHONPATH=src:bench python bench/evidence_report.py [--results bench/results --docs docs]
PYTHONPATH=src:bench python bench/evidence_report.py --rows                             # lines for maths/tables

Everything that the document tells in numbers stands between `<!-- measured: NAME -->` and `<!-- end -->` and is
written from `bench/results/evidence_*`; the rest of the document is left alone.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from pathlib import Path

import numpy as np

from evidence_analysis import (
    Grid,
    Interval,
    across,
    ratio_exponent,
    slope,
    smallest_adequate,
)
from evidence_grid import SIZES
from evidence_plots import draw_optima, draw_ranks, draw_rates
from evidence_second import tell_second
from evidence_store import Evidence, collect, tables_without
from loratune.maths import laws
from loratune.maths.curves import needed_rank
from loratune.maths.learned import (
    RANK_SPREAD,
    RATE_SPREAD,
    rank_residuals,
    rate_residuals,
)
from loratune.maths.transfer import Residual, Spread, believe
from measured_tables import OPTIMUM_COLUMNS


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def tell_tasks(evidence: Evidence) -> str:
    lines = []
    for dataset, facts in evidence.facts.items():
        tokens = facts["supervised_tokens"]
        runs = [run for run in evidence.grid.runs if run.dataset == dataset]
        lines.append(
            (
                dataset,
                facts["kind"],
                facts["labels"] or "",
                f"{facts['epochs']:g}",
                facts["mean_length"],
                " / ".join(f"{value:,}" for value in tokens.values()),
                len(facts["validation_supervised"]),
                facts["base_nll"],
                f"{len(runs)} ({sum(not isfinite(run.nll) for run in runs)})",
            )
        )
    header = (
        "task",
        "kind",
        "labels",
        "epochs",
        "tokens per row",
        f"supervised tokens, {SIZES[0]:,} / {SIZES[1]:,} rows",
    )
    return table((*header, "validation rows", "base NLL", "runs (diverged)"), lines)


def tell_ranks(evidence: Evidence) -> str:
    """Every rank at its own learning rate, and the smallest that the test lets through."""
    lines = []
    for dataset, rows in evidence.grid.tasks:
        tests = evidence.tests(dataset, rows)
        for test in tests[::-1]:
            compared = test.comparison
            ends = compared.interval if compared else None
            lines.append(
                (
                    f"{dataset}, {rows:,} rows",
                    test.rank,
                    f"{test.rate:.2g}" + ("" if test.inside else " (edge)"),
                    f"{test.nll:.4f}",
                    f"{test.at_shared_rate:.4f}" if isfinite(test.at_shared_rate) else "not run or diverged",
                    f"{test.exact_match:.3f}",
                    f"{compared.difference:+.4f} ({ends[0]:+.4f} to {ends[1]:+.4f})"
                    if compared and ends
                    else "",
                    str(compared.verdict) if compared else "reference",
                )
            )
    header = (
        "task",
        "rank",
        "best learning rate",
        "NLL there",
        "NLL at the largest rank's rate",
        "exact match",
    )
    return table((*header, "NLL above the largest rank's (95 %)", "verdict"), lines)


def tell_needed(evidence: Evidence) -> str:
    """Needed ranks by two rules, and the seeds' spread."""
    lines = []
    for dataset, rows in evidence.grid.tasks:
        tests = evidence.tests(dataset, rows)
        noise = evidence.grid.seed_noise(dataset, rows)
        relative = evidence.grid.relative_noise(dataset, rows)
        spread = f"{noise.variance**0.5:.4f} ({100 * relative:.2f} %), {noise.degrees:.0f} degrees"
        rank = needed_rank(evidence.studied(dataset, rows).optima)
        lines.append(
            (
                f"{dataset}, {rows:,} rows",
                min(tests, key=lambda test: test.nll).rank,
                smallest_adequate(tests),
                f"{rank:.1f}" if rank else "",
                spread if noise.known else "",
            )
        )
    header = ("task", "rank with the lowest NLL", "smallest shown adequate", "power law at the margin")
    return table((*header, "seed sd, nats"), lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponent:
    """One exponent as measured in one place."""

    task: str
    dataset: str
    found: Interval
    curves: int


def exponents(evidence: Evidence) -> dict[str, list[Exponent]]:
    """By what it is the exponent of."""
    grid = evidence.grid
    found: dict[str, list[Exponent]] = {name: [] for name in EXPECTED}
    for dataset, rows in grid.tasks:
        name = f"{dataset}, {rows:,} rows"
        sd = grid.relative_noise(dataset, rows)
        measured = slope(grid.by_rank(dataset, rows), lambda c: c.place.rank, sd)
        if measured:
            found["rank, alpha = 2r"].append(
                Exponent(task=name, dataset=dataset, found=measured[0], curves=measured[1])
            )
        for alpha in grid.constant_alphas(dataset, rows):
            curves = grid.by_rank(dataset, rows, alpha)
            measured = slope(curves, lambda c: c.place.rank, sd)
            if measured:
                found["rank, alpha constant"].append(
                    Exponent(
                        task=f"{name}, alpha {alpha:g}",
                        dataset=dataset,
                        found=measured[0],
                        curves=measured[1],
                    )
                )
            for one in curves:
                for other in grid.by_rank(dataset, rows):
                    change = other.place.lora_alpha / alpha
                    if other.place.rank == one.place.rank and change != 1 and one.best[2] and other.best[2]:
                        place = f"{name}, rank {one.place.rank}, {alpha:g} to {other.place.lora_alpha:g}"
                        ratio = ratio_exponent(one, other, change, sd)
                        found["alpha, rank constant"].append(
                            Exponent(task=place, dataset=dataset, found=ratio, curves=2)
                        )
        found["batch size"] += _batch_exponents(grid, dataset, rows, sd)
    found["rows"] = list(_row_exponents(grid))
    return found


EXPECTED = {
    "rank, alpha = 2r": f"{laws.RANK_EXPONENT + laws.ALPHA_EXPONENT:.2f}",
    "rank, alpha constant": f"{laws.RANK_EXPONENT:.2f}",
    "alpha, rank constant": f"{laws.ALPHA_EXPONENT:.2f}",
    "batch size": f"{laws.BATCH_EXPONENT:.2f}",
    "rows": f"{laws.EXAMPLES_EXPONENT:.2f}",
}
"""The laws' exponents (`maths/laws.py`)."""


def _batch_exponents(grid: Grid, dataset: str, rows: int, sd: float) -> Iterator[Exponent]:
    for rank in sorted({place.rank for place in grid.curves}):
        curves = grid.by_batch(dataset, rows, rank)
        measured = slope(curves, lambda c: c.place.batch_size, sd) if len(curves) > 1 else None
        if measured:
            name = f"{dataset}, {rows:,} rows, rank {rank}"
            yield Exponent(task=name, dataset=dataset, found=measured[0], curves=measured[1])


def _row_exponents(grid: Grid) -> Iterator[Exponent]:
    """Mean over the ranks whose optimum is inside at both sizes."""
    for dataset in dict.fromkeys(dataset for dataset, _ in grid.tasks):
        sizes = sorted({rows for name, rows in grid.tasks if name == dataset})
        if len(sizes) < 2:
            continue
        small, large = (
            {curve.place.rank: curve for curve in grid.by_rank(dataset, size) if curve.best[2]}
            for size in (sizes[0], sizes[-1])
        )
        sd = grid.relative_noise(dataset, sizes[-1])
        each = [
            ratio_exponent(small[rank], large[rank], sizes[-1] / sizes[0], sd, seed=rank)
            for rank in small.keys() & large.keys()
        ]
        if each:
            mean = float(np.mean([e.value for e in each]))
            half = float(np.mean([(e.high - e.low) / 2 for e in each])) / len(each) ** 0.5
            interval = Interval(value=mean, low=mean - half, high=mean + half)
            yield Exponent(task=dataset, dataset=dataset, found=interval, curves=2 * len(each))


def tell_exponents(evidence: Evidence) -> str:
    """Each exponent where it was measured, and over datasets."""
    lines: list[tuple[object, ...]] = []
    for name, found in exponents(evidence).items():
        lines += [(name, each.task, each.found.told(), each.curves, EXPECTED[name]) for each in found]
        datasets = dict.fromkeys(each.dataset for each in found)
        means = [
            float(np.mean([e.found.value for e in found if e.dataset == dataset])) for dataset in datasets
        ]
        overall = across(means)
        if overall:
            lines.append(
                (name, f"**mean over {len(means)} datasets**", f"**{overall.told()}**", "", EXPECTED[name])
            )
    return table(("exponent of", "where", "measured (95 %)", "curves", "law"), lines)


def tell_errors(evidence: Evidence) -> str:
    """The prior on each of our tasks, before and after, its own dataset never seen."""
    own = [evidence.studied(dataset, rows) for dataset, rows in evidence.grid.tasks]
    before, after = tables_without(own), [*tables_without(own), *own]
    lines = []
    for name, residuals, spread in (
        ("learning rate", rate_residuals, RATE_SPREAD),
        ("rank", rank_residuals, RANK_SPREAD),
    ):
        old, new = residuals(before), residuals(after)
        mine = residuals(own)
        told = [task for task in own if residuals([task])]
        errors: dict[str, list[float]] = {"law": [], "before": [], "after": []}
        for task, residual in zip(told, mine, strict=True):
            found = {
                "law": residual.value,
                "before": left_out(residual, old, spread),
                "after": left_out(residual, new, spread),
            }
            for key, value in found.items():
                errors[key].append(value)
            lines.append(
                (name, task.dataset, f"{task.rows:,.0f}", *(_times(value) for value in found.values()))
            )
        means = [f"**{weighted_factor(values, mine):.2f}**" for values in errors.values()]
        lines.append((name, "**mean error, our tasks**", "", *means))
        ends = [f"{whole_error(each, spread):.2f}" for each in (old, new)]
        lines.append((name, "mean error, all datasets", "", "", *ends))
    header = ("of", "dataset", "rows", "measured / law", "measured / corrected, before")
    return table((*header, "measured / corrected, after"), lines)


def _times(value: float) -> str:
    return f"{exp(value):.2f}"


def left_out(target: Residual, residuals: Sequence[Residual], spread: Spread) -> float:
    """ln(measured / predicted) from the tasks on other datasets."""
    others = [each for each in residuals if each.dataset != target.dataset]
    return target.value - believe(others, target, spread).mean


def weighted_factor(values: Sequence[float], residuals: Sequence[Residual]) -> float:
    """exp of the mean |ln error|, each dataset counting the same."""
    sizes = Counter(each.dataset for each in residuals)
    return exp(float(np.average(np.abs(values), weights=[1 / sizes[each.dataset] for each in residuals])))


def whole_error(residuals: Sequence[Residual], spread: Spread) -> float:
    """Leave-one-dataset-out error over everything."""
    return weighted_factor([left_out(each, residuals, spread) for each in residuals], residuals)


def print_rows(evidence: Evidence) -> None:
    """Lines for `maths/tables/tasks.csv` and `optima.csv`."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    own = [evidence.studied(dataset, rows) for dataset, rows in evidence.grid.tasks]
    for t in own:
        numbers = (f"{t.rows:.0f}", f"{t.epochs:g}", t.supervised_tokens, t.labels, 0, t.source)
        out.writerow((t.dataset, t.model, t.family, t.kind, t.hidden_size, t.parameters_per_rank, *numbers))
    print()
    out.writerow(OPTIMUM_COLUMNS)
    for t in own:
        for o in t.optima:
            facts = (
                o.r,
                f"{o.lora_alpha:g}",
                o.batch_size,
                f"{o.learning_rate:.3g}",
                f"{o.nll:.4f}" if isfinite(o.nll) else "",
                int(o.inside),
            )
            out.writerow((t.dataset, t.model, *facts))


def fill(document: Path, blocks: Mapping[str, str]) -> None:
    """Replace what stands between the marks. Raises `ValueError` for a block without marks."""
    text = document.read_text(encoding="utf-8")
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
        if not pattern.search(text):
            raise ValueError(f"{document} has no place for {name!r}.")
        text = pattern.sub(lambda found, content=content: f"{found[1]}\n{content}\n\n{found[2]}", text)  # type: ignore[misc]
    document.write_text(text, encoding="utf-8")


def main() -> None:
    """Collect, print rows, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--collect", type=Path, help="folder of the runs")
    parser.add_argument("--tables", type=Path, help="with --collect: folder of the token tables")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    given = parser.parse_args()
    if given.collect:
        collect(given.collect, given.tables, given.results)
    evidence = Evidence.read(given.results)
    if given.rows:
        print_rows(evidence)
        return
    blocks = {
        "tasks": tell_tasks(evidence),
        "ranks": tell_ranks(evidence),
        "needed": tell_needed(evidence),
        "exponents": tell_exponents(evidence),
        "errors": tell_errors(evidence),
        "second family": tell_second(given.results, evidence),
    }
    draw_rates(evidence, given.docs / "evidence-rates.svg")
    draw_optima(evidence, given.docs / "evidence-optima.svg")
    draw_ranks(evidence, given.docs / "evidence-ranks.svg")
    fill(given.docs / "evidence.md", blocks)


if __name__ == "__main__":
    main()
