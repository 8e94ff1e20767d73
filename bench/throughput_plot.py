"""The curves of bench/results/throughput.csv: docs/performance-throughput.svg. Knows its rows; measures nothing.

PYTHONPATH=src:bench python bench/throughput_plot.py
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from figures import COLOURS, Line, Panel, draw

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "throughput.csv", HERE.parent / "docs" / "performance-throughput.svg"
SHAPES = {"qwen2-0.5b": "0.5B", "llama3-1b": "1B", "llama3-8b": "8B"}

Row = Mapping[str, str]


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of every cell, on the GPU of the last row from a GPU."""
    named = [row for row in rows if row["cell"] and not row["device"].startswith("cpu")]
    return list({row["cell"]: row for row in named if row["device"] == named[-1]["device"]}.values())


def growth(rows: Sequence[Row]) -> Panel:
    """Speed by the number of trials in a pack, of one setting."""
    setting = {"shape": "qwen2-0.5b", "batch": "4", "ranks": "16", "length": "128"}
    found = sorted(
        (row for row in rows if all(row[key] == value for key, value in setting.items())),
        key=lambda row: int(row["slots"]),
    )
    x = [int(row["slots"]) for row in found]
    lines = [Line(name="pack", x=x, y=[float(row["pack"]) for row in found], colour=COLOURS[0])]
    beside: Row = next((row for row in reversed(found) if row["peft_loop"]), {})  # the largest pack
    for name, column, colour in (
        ("PEFT, loop", "peft_loop", COLOURS[2]),
        ("PEFT, compiled", "peft_compiled", COLOURS[1]),
        (f"{beside.get('processes')} PEFT processes", "peft_concurrent", COLOURS[3]),
    ):
        if level := beside.get(column):
            ends, levels = [x[0], x[-1]], [float(level)] * 2
            lines.append(Line(name=name, x=ends, y=levels, colour=colour, marked=False))
    return Panel(
        title="0.5B, batch 4", lines=lines, x_label="trials in a pack", y_label="tokens/s", log_y=True
    )


def batches(rows: Sequence[Row]) -> Panel:
    """How many times a pack and a single trial are as fast as PEFT's loop, by the batch size."""
    lines = []
    for (shape, name), colour in zip(SHAPES.items(), COLOURS[4:], strict=False):
        own = (
            (int(row["batch"]), row)
            for row in rows
            if row["shape"] == shape and row["peft_loop"] and row["length"] == "128"
        )
        best: dict[int, Row] = {}
        for batch, row in sorted(own, key=lambda each: each[0]):  # of two packs of one batch the larger
            if batch not in best or int(row["slots"]) > int(best[batch]["slots"]):
                best[batch] = row
        if not best:
            continue
        x = list(best)
        for told, column, dashed in ((name, "pack", False), (f"{name}, one trial", "one_trial", True)):
            y = [float(row[column]) / float(row["peft_loop"]) for row in best.values()]
            lines.append(Line(name=told, x=x, y=y, colour=colour, dashed=dashed))
    return Panel(title="times PEFT's loop", lines=lines, x_label="rows of a trial's step", log_y=True)


def main() -> None:
    """Draw both, or the one that has points."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = latest(list(csv.DictReader(file)))
    panels = [panel for panel in (growth(rows), batches(rows)) if any(line.x for line in panel.lines)]
    if not panels:
        print(f"{RESULTS.name} holds nothing to draw.")
        return
    draw(PICTURE, panels, columns=2, x_ticks=(1, 4, 16, 64, 128))


if __name__ == "__main__":
    main()
