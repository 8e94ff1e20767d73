"""Whole `tune`s, from a process's start to its last file: where the seconds go, and memory predicted against held.

    python bench/whole.py --device-memory 30GiB                         # three shapes with random weights, made-up rows
    python bench/whole.py --model M --train t.jsonl --validation v.jsonl --test e.jsonl -- --epochs 3
    python bench/whole.py --shapes tiny --rows 120 --runs 2 -- --ranks 2,4 --budget 5x --epochs 1

What stands behind `--` is handed to `tune`. Each size runs `--runs` times: the first finds no calibration and nothing
compiled, later ones do. Prints what was made at first use by phase, with `--sample` where the main thread spent its
seconds too (`sampled.py`), and a line a run, which it appends to bench/results/whole.csv.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, time
from typing import Any

from gpus import save_base, save_rows
from record import append, circumstances

RESULTS = Path(__file__).parent / "results" / "whole.csv"
SHAPES = "smollm2-135m,qwen2-0.5b,llama3-1b"


def run(
    model: str, rows: dict[str, Path], out: Path, more: list[str], kept: Path, sample: Path | None
) -> tuple[float, float]:
    """When one command began, and its seconds. Ends where it fails.

    `kept`: a folder for what later commands find, `sample`: a file for where its seconds went.
    """
    program = (
        ["-m", "loratune"] if sample is None else [str(Path(__file__).parent / "sampled.py"), str(sample)]
    )
    command = [sys.executable, *program, "tune", "--model", model, "--out", str(out), "--no-ledger"]
    for name, path in rows.items():
        command += [f"--{name}", str(path)]
    began, started = time(), perf_counter()
    done = subprocess.run(
        [*command, *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **{name: str(kept / folder) for name, folder in KEPT.items()}},
    )
    if done.returncode not in (0, 3):
        sys.exit(f"tune ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return began, perf_counter() - started


KEPT = {
    "LORATUNE_CALIBRATIONS": "calibrations",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Folders of what later commands find, by what names them."""

MARKS = ("phase", "name", "text")
"""What names an event that is worth its time: a phase, a stage, a note."""


def marks(out: Path, began: float) -> list[tuple[float, str]]:
    """Seconds from the process's start to phases, stages, notes and the first step."""
    found: list[tuple[float, str]] = []
    stepped = False
    for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        at = event["time"] - began
        if event["event"] == "progress" and not stepped:
            stepped = True
            found.append((at - event["seconds"], "first step"))
        elif event["event"] in ("phase began", "stage began", "note", "planned", "finished"):
            named = next((str(event[name]) for name in MARKS if name in event), "")
            found.append((at, f"{event['event']} {named}"[:60]))
    return sorted(found)


def first_uses(out: Path, began: float) -> list[str]:
    """Lines of what was made at first use: events of at least half a second, and sums by phase or stage."""
    lines: list[str] = []
    sums: dict[str, Counter[str]] = {}
    part = "start"
    for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] in ("phase began", "stage began"):
            part = next(str(event[name]) for name in MARKS if name in event)
        if event["event"] == "prepared":
            made = Counter({name: event[name] for name in event if name not in ("event", "time")})
            sums.setdefault(part, Counter()).update(made)
            if sum(seconds for name, seconds in made.items() if name.endswith("seconds")) >= 0.5:
                lines.append(f"{event['time'] - began:8.1f} s  {part}: {_listed(made)}")
    return [*lines, *(f"in all  {part}: {_listed(made)}" for part, made in sums.items())]


def _listed(made: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in made.items())


def told(out: Path, began: float, taken: float) -> dict[str, Any]:
    """What result.json and events.jsonl say of a run that took so many seconds."""
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    cost, timeline = found["cost"], {each["name"]: each["seconds"] for each in found["timeline"]}
    memory = cost["peak_memory_bytes"]
    search = sum(timeline[name] for name in ("training", "evaluation", "waiting"))
    return {
        "trials": cost["trials"],
        "wall_seconds": round(taken, 1),
        "first_step_seconds": round(next(at for at, what in marks(out, began) if what == "first step"), 1),
        "search_tokens_per_second": round(cost["trained_tokens"] / max(search, 1e-9)),
        "trials_in_pack": round(found["mean_trials_in_pack"], 1),
        "timeline": json.dumps({name: round(seconds, 1) for name, seconds in timeline.items()}),
        "outside_of_timeline": round(taken - sum(timeline.values()), 1),
        "predicted_gib": round(memory["predicted"] / 2**30, 2),
        "held_gib": round(memory["measured"] / 2**30, 2),
        "predicted_of_held": round(memory["predicted"] / max(1, memory["measured"]), 3),
    }


def main() -> None:
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--model", help="in place of shapes; then with --train, --validation and --test")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--device-memory")
    for split in ("train", "validation", "test"):
        parser.add_argument(f"--{split}", type=Path)
    parser.add_argument(
        "--sample", action="store_true", help="print where the main thread spends its seconds"
    )
    parser.add_argument("--keep", type=Path, help="a folder for result.json and report of each run")
    given = parser.parse_args(own)
    if given.device_memory:
        more += ["--device-memory", given.device_memory]
    about = circumstances()
    for size in [Path(given.model).name] if given.model else given.shapes.split(","):
        with TemporaryDirectory(prefix="loratune-") as name:
            folder = Path(name)
            model = given.model or str(save_base(size, folder / "model"))
            rows = {"data": given.train or save_rows(given.rows, folder / "rows.jsonl")}
            rows |= {each: getattr(given, each) for each in ("validation", "test") if getattr(given, each)}
            for number in range(given.runs):
                out = folder / f"run{number}"
                sample = folder / f"sample{number}.txt" if given.sample else None
                began, taken = run(model, rows, out, more, folder / "kept", sample)
                row = {"size": size, "run": number + 1, **told(out, began, taken)}
                print(*(f"{at:8.1f} s  {what}" for at, what in marks(out, began)), sep="\n")
                print(*first_uses(out, began), sep="\n")
                print(row, flush=True)
                if sample is not None:
                    print(sample.read_text(encoding="utf-8"), flush=True)
                append(RESULTS, about | row)
                for kept in ("result.json", "report.html", "events.jsonl") if given.keep else ():
                    if (out / kept).is_file():
                        given.keep.mkdir(parents=True, exist_ok=True)
                        (given.keep / f"{size}-{number + 1}-{kept}").write_bytes((out / kept).read_bytes())


if __name__ == "__main__":
    main()
