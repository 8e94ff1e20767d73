"""How much memory does preparing N rows take? Each size in a process of its own, with one token per letter.

python bench/data_memory.py [--rows 100000,1000000] [--letters 200]

Prints rows, seconds, the file's size, and the peak of anonymous memory (what the machine cannot page out to the
files it came from) above that of the imports.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

from loratune.data.prepare import prepare
from loratune.data.sources import DataOptions


class Letters:
    """One token per letter: what is measured is our memory, not a tokenizer's."""

    chat_template = None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        return {"input_ids": [list(each.encode()) for each in text]}

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        raise AssertionError("no chat template")


def anonymous_bytes() -> int:
    """Of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(rows: int, letters: int) -> dict[str, float]:
    with TemporaryDirectory() as name:
        path = Path(name) / "train.jsonl"
        with path.open("w") as file:
            for i in range(rows):
                file.write(json.dumps({"text": f"{i} " + "x" * letters, "label": f"class {i % 50}"}) + "\n")
        before = peak = anonymous_bytes()
        done = Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, anonymous_bytes())

        watcher = Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        data = prepare(DataOptions(data=str(path)), Letters(), end_of_turn=10, cache=Path(name))
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        return {
            "rows": rows,
            "training rows": len(data.train),
            "seconds": round(seconds, 1),
            "file MiB": round(path.stat().st_size / 2**20, 1),
            "peak MiB": round((peak - before) / 2**20, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="100000,1000000")
    parser.add_argument("--letters", type=int, default=200)
    arguments = parser.parse_args()
    sizes = [int(each) for each in arguments.rows.split(",")]
    if len(sizes) == 1:
        print(json.dumps(measure(sizes[0], arguments.letters)))
        return
    for size in sizes:
        command = [sys.executable, __file__, "--rows", str(size), "--letters", str(arguments.letters)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
