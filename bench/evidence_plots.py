"""The figures of `docs/evidence.md`. Knows what was measured and how lines are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

from evidence_analysis import Curve
from evidence_store import Evidence, tables_without
from figures import COLOURS, Line, Panel, draw
from loratune.maths.learned import law_rate, learn_rate
from loratune.values import NLL_MARGIN


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
        sd = grid.relative_noise(*place)
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
    """What a rank costs at its own best rate, with the test's interval, and at one rate for all where that is near."""
    panels = []
    for dataset, rows in sorted(evidence.grid.tasks):
        tests = evidence.tests(dataset, rows)[::-1]
        reference = tests[-1].nll
        ranks = [test.rank for test in tests]
        ends = [test.comparison.interval if test.comparison else (0.0, 0.0) for test in tests]
        usable = all(end is not None for end in ends)
        highest = 5 * max(NLL_MARGIN, *(test.nll - reference for test in tests))
        shared_nll = [test.at_shared_rate - reference for test in tests]
        own = Line(
            name="own best learning rate",
            x=ranks,
            y=[test.nll - reference for test in tests],
            low=[end[0] for end in ends if end] if usable else (),
            high=[end[1] for end in ends if end] if usable else (),
            colour=COLOURS[0],
        )
        shared = Line(
            name="the largest rank's",
            x=ranks,
            y=[value if value <= highest else inf for value in shared_nll],
            colour=COLOURS[2],
            dashed=True,
        )
        margin = Line(name="margin", x=ranks, y=[NLL_MARGIN] * len(ranks), colour=COLOURS[5], marked=False)
        panels.append(
            Panel(
                title=f"{dataset}, {rows:,} rows",
                lines=[own, shared, margin],
                x_label="rank",
                y_label="NLL above the largest rank",
            )
        )
    draw(path, panels, columns=2, x_ticks=(2, 8, 32, 128))
