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
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from evidence_analysis import (
    Curve,
    Examples,
    Floats,
    Grid,
    Interval,
    RankTest,
    Run,
    across,
    rank_tests,
    ratio_exponent,
    slope,
    smallest_adequate,
)
from evidence_figures import COLOURS, Line, Panel, draw
from evidence_grid import COLUMNS, SIZES
from evidence_tables import FACTS, load
from loratune.data.batches import subset
from loratune.maths.learned import (
    RANK_SPREAD,
    RATE_SPREAD,
    law_rate,
    learn_rate,
    rank_residuals,
    rate_residuals,
)
from loratune.maths.measured import OPTIMUM_COLUMNS, measured_tasks
from loratune.maths.optimum import MARGIN, needed_rank
from loratune.maths.transfer import Residual, Spread, believe
from loratune.values import Optimum, StudiedTask

MODEL, FAMILY, HIDDEN_SIZE, PARAMETERS_PER_RANK = "SmolLM2-135M-Instruct", "llama", 576, 305280
GRID, EXAMPLES, FACTS_FILE = "evidence_grid.csv", "evidence_grid_per_example_nll.npz", "evidence_facts.json"
SOURCE = "measured with our engine (docs/evidence.md)"


# ------------------------------------------------------------------------------------------------- collecting


def collect(runs: Path, tables: Path, results: Path) -> None:
    """Join what the processes wrote: one table, one file of losses per row, one of facts."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for path in sorted(runs.glob("grid-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("state"):
                    rows[tuple(row[name] for name in COLUMNS[:8])] = row  # a trial begun anew reads anew
    ended = {tuple(row[name] for name in COLUMNS[:6]) for row in rows.values() if row["state"] != "running"}
    kept = [row for key, row in rows.items() if key[:6] in ended]
    kept.sort(key=lambda r: (r["task"], float(r["lora_alpha"]) / int(r["rank"]), *map(float, _numbers(r))))
    results.mkdir(parents=True, exist_ok=True)
    with (results / GRID).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    losses, base = _losses(runs)
    np.savez_compressed(results / EXAMPLES, **losses)
    facts = {name: _facts(tables, name, base) for name in FACTS if any(r["dataset"] == name for r in kept)}
    (results / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{len(ended)} trials, {len(losses)} with losses of single rows")


def _numbers(row: Mapping[str, str]) -> Iterator[str]:
    return (row[name] for name in ("rank", "batch_size", "learning_rate", "seed", "fraction"))


def _losses(runs: Path) -> tuple[dict[str, Any], dict[str, Floats]]:
    """By the names that replays of tables use (alpha = 2r only), halves for their size; the base model's by task."""
    losses: dict[str, Any] = {}
    base: dict[str, Floats] = {}
    for path in sorted(runs.glob("nll-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                if key == "base":
                    dataset = next(name for name in FACTS if f"-{name}-" in path.name)
                    base[dataset] = arrays[key].astype(np.float64)
                    continue
                task, rank, alpha, rate, batch, seed = key.split(",")
                if float(alpha) == 2 * int(rank):
                    name = f"task={task},rank={rank},learning_rate={float(rate):g},batch_size={batch},seed={seed}"
                    losses[name] = arrays[key].astype(np.float16)
    return losses, base


def _facts(tables: Path, name: str, base: Mapping[str, Floats]) -> dict[str, Any]:
    task = load(tables, name)
    weights = task.validation.supervised_counts
    largest = max(SIZES)
    train = task.train.take(range(min(largest, len(task.train))))
    tokens = {
        str(size): int(train.take(subset(len(train), size / largest, 0)).supervised_counts.sum())
        for size in SIZES
    }
    return {
        **asdict(task.facts),
        "mean_length": round(float(train.lengths.mean()), 1),
        "supervised_tokens": tokens,
        "base_nll": round(float(base[name].sum() / weights.sum()), 4) if name in base else None,
        "validation_supervised": weights.tolist(),
    }


# --------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything that was measured."""

    grid: Grid
    examples: Examples
    facts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, results: Path) -> Evidence:
        """What `collect` wrote."""
        with (results / GRID).open(newline="", encoding="utf-8") as file:
            runs = [run_of(row) for row in csv.DictReader(file) if row["state"] != "running"]
        examples = {}
        with np.load(results / EXAMPLES, allow_pickle=False) as arrays:
            for key in arrays.files:
                found = dict(part.split("=", 1) for part in key.split(","))
                dataset, _, rows = found["task"].rpartition("-")
                place = (int(found["rank"]), float(found["learning_rate"]))
                after = (int(found["batch_size"]), int(found["seed"]))
                examples[dataset, int(rows), *place, *after] = arrays[key].astype(np.float64)
        facts = json.loads((results / FACTS_FILE).read_text(encoding="utf-8"))
        return cls(grid=Grid(runs), examples=examples, facts=facts)

    def tests(self, dataset: str, rows: int) -> list[RankTest]:
        weights = np.array(self.facts[dataset]["validation_supervised"], np.float64)
        return rank_tests(self.grid, dataset, rows, self.examples, weights)

    def studied(self, dataset: str, rows: int) -> StudiedTask:
        """The task as the prior's tables hold it."""
        facts = self.facts[dataset]
        curves = [c for p, c in self.grid.curves.items() if (p.dataset, p.rows) == (dataset, rows)]
        optima = [
            Optimum(
                r=curve.place.rank,
                lora_alpha=curve.place.lora_alpha,
                batch_size=curve.place.batch_size,
                learning_rate=float(f"{curve.best[0]:.3g}"),
                nll=float(f"{curve.best[1]:.4f}"),
                inside=curve.best[2],
            )
            for curve in curves
        ]
        return StudiedTask(
            dataset=dataset,
            model=f"{MODEL}, {rows} rows",
            family=FAMILY,
            kind=facts["kind"],
            hidden_size=HIDDEN_SIZE,
            parameters_per_rank=PARAMETERS_PER_RANK,
            rows=float(rows),
            epochs=float(facts["epochs"]),
            supervised_tokens=int(facts["supervised_tokens"][str(rows)]),
            labels=int(facts["labels"]),
            source=SOURCE,
            optima=tuple(sorted(optima, key=lambda o: (o.batch_size, o.r, o.lora_alpha))),
        )


def run_of(row: Mapping[str, str]) -> Run:
    """A line of the table."""
    return Run(
        dataset=row["dataset"],
        rows=int(row["rows"]),
        rank=int(row["rank"]),
        lora_alpha=float(row["lora_alpha"]),
        learning_rate=float(row["learning_rate"]),
        batch_size=int(row["batch_size"]),
        seed=int(row["seed"]),
        epochs=float(row["epochs"]),
        nll=float(row["val_nll"]) if row["val_nll"] else inf,
        exact_match=float(row["val_exact_match"]) if row["val_exact_match"] else nan,
    )


# ---------------------------------------------------------------------------------------------------- telling


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
        noise, relative = evidence.grid.seed_noise(dataset, rows)
        task = evidence.studied(dataset, rows)
        rank = needed_rank(task.optima)
        lines.append(
            (
                f"{dataset}, {rows:,} rows",
                min(tests, key=lambda test: test.nll).rank,
                smallest_adequate(tests),
                f"{rank:.1f}" if rank else "",
                f"{noise.variance**0.5:.4f} ({100 * relative:.2f} %), {noise.degrees:.0f} degrees",
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
        _, sd = grid.seed_noise(dataset, rows)
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
    "rank, alpha = 2r": "-0.62",
    "rank, alpha constant": "0.18",
    "alpha, rank constant": "-0.80",
    "batch size": "0.5",
    "rows": "-0.26",
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
        sd = grid.seed_noise(dataset, sizes[-1])[1]
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


def tables_without(own: Sequence[StudiedTask]) -> list[StudiedTask]:
    """The package's tasks but for those that are ours."""
    ours = {(task.dataset, task.model) for task in own}
    return [task for task in measured_tasks() if (task.dataset, task.model) not in ours]


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


# ---------------------------------------------------------------------------------------------------- drawing


def draw_rates(evidence: Evidence, path: Path) -> None:
    """NLL over the learning rate, a colour per rank."""
    panels = []
    for dataset, rows in sorted(evidence.grid.tasks):
        curves = evidence.grid.by_rank(dataset, rows)
        lowest = min(curve.best[1] for curve in curves)
        lines = [_rate_line(curve, number, 1.6 * lowest) for number, curve in enumerate(curves)]
        panels.append(
            Panel(title=f"{dataset}, {rows:,} rows", lines=lines, x_label="learning rate", y_label="NLL")
        )
    draw(path, panels, columns=2)


def _rate_line(curve: Curve, number: int, highest: float) -> Line:
    values = [value if value <= highest else inf for value in curve.means]
    return Line(name=f"rank {curve.place.rank}", x=curve.rates, y=values, colour=COLOURS[number])


def draw_optima(evidence: Evidence, path: Path) -> None:
    """The best learning rate by rank, beside the prior that has not seen the dataset."""
    grid = evidence.grid
    own = [evidence.studied(dataset, rows) for dataset, rows in grid.tasks]
    panels = []
    for task in sorted(own, key=lambda each: (each.dataset, each.rows)):
        place = (task.dataset, round(task.rows))
        _, sd = grid.seed_noise(*place)
        lines = [_optimum_line("alpha = 2r", grid.by_rank(*place), sd, COLOURS[0], dashed=False)]
        for alpha in grid.constant_alphas(*place):
            lines.append(
                _optimum_line(f"alpha {alpha:g}", grid.by_rank(*place, alpha), sd, COLOURS[2], dashed=True)
            )
        ranks = [curve.place.rank for curve in grid.by_rank(*place)]
        batch = grid.usual_batch(task.dataset)
        law = [law_rate(task, r=r, lora_alpha=2.0 * r, batch_size=batch) for r in ranks]
        lines.append(Line(name="law", x=ranks, y=law, colour=COLOURS[5], marked=False))
        known = [each for each in [*tables_without(own), *own] if each.dataset != task.dataset]
        corrected = [value * learn_rate(task, known).factor for value in law]
        lines.append(
            Line(
                name="corrected, this dataset left out", x=ranks, y=corrected, colour=COLOURS[1], marked=False
            )
        )
        title = f"{task.dataset}, {task.rows:,.0f} rows"
        panels.append(
            Panel(title=title, lines=lines, x_label="rank", y_label="best learning rate", log_y=True)
        )
    draw(path, panels, columns=2, x_ticks=(2, 8, 32, 128))


def _optimum_line(name: str, curves: Sequence[Curve], sd: float, colour: str, *, dashed: bool) -> Line:
    random = np.random.default_rng(0)
    ends = []
    for curve in curves:
        draws = [replaced_best(curve, curve.drawn(sd, random)) for _ in range(300)]
        ends.append(np.quantile(draws, [0.025, 0.975]))
    return Line(
        name=name,
        x=[curve.place.rank for curve in curves],
        y=[curve.best[0] for curve in curves],
        low=[float(low) for low, _ in ends],
        high=[float(high) for _, high in ends],
        hollow=[not curve.best[2] for curve in curves],
        colour=colour,
        dashed=dashed,
    )


def replaced_best(curve: Curve, losses: Sequence[float]) -> float:
    """The best rate of a curve with other losses."""
    changed = {rate: {0: loss} for rate, loss in zip(curve.rates, losses, strict=True)}
    return replace(curve, losses=changed).best[0]


def draw_ranks(evidence: Evidence, path: Path) -> None:
    """What a rank costs at its own best rate, with the test's interval, and at one rate for all."""
    panels = []
    for dataset, rows in sorted(evidence.grid.tasks):
        tests = evidence.tests(dataset, rows)[::-1]
        reference = tests[-1].nll
        ranks = [test.rank for test in tests]
        ends = [test.comparison.interval if test.comparison else (0.0, 0.0) for test in tests]
        usable = all(end is not None for end in ends)
        own = Line(
            name="each rank at its own best learning rate",
            x=ranks,
            y=[test.nll - reference for test in tests],
            low=[end[0] for end in ends if end] if usable else (),
            high=[end[1] for end in ends if end] if usable else (),
            colour=COLOURS[0],
        )
        shared = Line(
            name="all ranks at the largest rank's learning rate",
            x=ranks,
            y=[test.at_shared_rate - reference for test in tests],
            colour=COLOURS[2],
            dashed=True,
        )
        margin = Line(name="margin", x=ranks, y=[MARGIN] * len(ranks), colour=COLOURS[5], marked=False)
        panels.append(
            Panel(
                title=f"{dataset}, {rows:,} rows",
                lines=[own, shared, margin],
                x_label="rank",
                y_label="NLL above the largest rank",
            )
        )
    draw(path, panels, columns=2, x_ticks=(2, 8, 32, 128))


# ---------------------------------------------------------------------------------------------------- writing


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
                f"{o.nll:.4f}",
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
    }
    draw_rates(evidence, given.docs / "evidence-rates.svg")
    draw_optima(evidence, given.docs / "evidence-optima.svg")
    draw_ranks(evidence, given.docs / "evidence-ranks.svg")
    fill(given.docs / "evidence.md", blocks)


if __name__ == "__main__":
    main()
