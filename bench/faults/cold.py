"""Eight whole commands at once on a .gguf file that nobody has unpacked yet; then again, where kill -9 ends one.

    python bench/faults/cold.py

It is killed as soon as it has the lock of the weights open. All others must end with 0 and the same losses, and
what is kept must be whole: a ninth command reads it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from place import keep

from tiny import animal_rows, write_jsonl
from tiny_gguf import save_tiny_gguf
from warm import WarmCommand

COUNT = 8
WORDS = (
    *("--dtype", "float32", "--device", "cpu", "--rank", "2", "--epochs", "1", "--validation-rows", "8"),
    *("--test-rows", "8", "--json"),
)


def begin(folder: Path, cache: Path, number: int) -> WarmCommand:
    out = folder / f"{cache.name}-{number}"
    given = ("--model", folder / "tiny.gguf", "--data", folder / "train.jsonl", "--out", out)
    return WarmCommand(("train", *given, *WORDS), environment={"LORATUNE_CACHE": str(cache)})


def kill_holder(running: Sequence[WarmCommand]) -> None:
    """The first of them that has the lock of the weights open."""
    while all(each.poll() is None for each in running):
        for each in running:
            for descriptor in Path(f"/proc/{each.pid}/fd").glob("*"):
                if os.path.realpath(descriptor).endswith(".float32.lock"):
                    return each.kill()
        time.sleep(0.002)
    return None


def together(folder: Path, name: str, kill: bool) -> None:
    cache = folder / name
    with ThreadPoolExecutor(COUNT) as pool:
        running = list(pool.map(lambda number: begin(folder, cache, number), range(COUNT)))
    if kill:
        kill_holder(running)
    said = [each.communicate() for each in running]
    running.append(begin(folder, cache, COUNT))
    said.append(running[-1].communicate())
    codes, answers = [each.returncode for each in running], set()
    for code, (text, error) in zip(codes, said, strict=True):
        if code == 0:
            answers.add(json.dumps(json.loads(text)["metrics"]))
        elif code != -9:
            print(error, file=sys.stderr)
    (kept,) = cache.iterdir()
    parts = sorted(each.name for each in kept.iterdir() if each.suffix != ".lock")
    print(codes, parts, answers)
    keep(
        "commands on a cold .gguf",
        count=len(codes),
        killed=codes.count(-9),
        tracebacks=sum(code not in (0, -9) for code in codes),
        other_answers=len(answers) - 1,
        files_more=len(parts) - 2,
    )


def main() -> None:
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        save_tiny_gguf(folder / "tiny.gguf")
        write_jsonl(folder / "train.jsonl", animal_rows(60))
        together(folder, "undisturbed", kill=False)
        together(folder, "killed", kill=True)


if __name__ == "__main__":
    main()
