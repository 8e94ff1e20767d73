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


def last_run(rows: Sequence[Row]) -> list[Row]:
    """Those of the GPU and the commit of the last row from a GPU."""
    last = [row for row in rows if not row["device"].startswith("cpu")][-1]
    return [row for row in rows if (row["device"], row["commit"]) == (last["device"], last["commit"])]


def growth(rows: Sequence[Row]) -> Panel:
    """Speed by the number of trials in a pack, of one setting."""
    found = sorted(
        (int(row["slots"]), float(row["pack"]))
        for row in rows
        if row["shape"] == "qwen2-0.5b"
        and row["batch"] == "4"
        and row["ranks"] == "16"
        and row["length"] == "128"
    )
    pack = Line(name="pack", x=[x for x, _ in found], y=[y for _, y in found], colour=COLOURS[0])
    row = next(each for each in rows if each["peft_compiled"] and each["shape"] == "qwen2-0.5b")
    lines = [pack]
    for name, column, colour in (
        ("PEFT, loop", "peft_loop", COLOURS[2]),
        ("PEFT, compiled", "peft_compiled", COLOURS[1]),
        (f"{row['processes']} PEFT processes", "peft_concurrent", COLOURS[3]),
    ):
        level = [float(row[column])] * 2
        lines.append(Line(name=name, x=[found[0][0], found[-1][0]], y=level, colour=colour, marked=False))
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
        x = list(best)
        for told, column, dashed in ((name, "pack", False), (f"{name}, one trial", "one_trial", True)):
            y = [float(row[column]) / float(row["peft_loop"]) for row in best.values()]
            lines.append(Line(name=told, x=x, y=y, colour=colour, dashed=dashed))
    return Panel(title="times PEFT's loop", lines=lines, x_label="rows of a trial's step", log_y=True)


def main() -> None:
    """Draw both."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = last_run(list(csv.DictReader(file)))
    draw(PICTURE, [growth(rows), batches(rows)], columns=2, x_ticks=(1, 4, 16, 64, 128))


if __name__ == "__main__":
    main()
