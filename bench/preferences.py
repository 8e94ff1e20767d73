"""Preference pairs made of published rows: a whole `tune` for each objective, with a real model.

Pairs of banking77: the customer's intent against the one whose name shares most words with it. Of GSM8K: the published
solution against the same one whose last calculation, and with it the answer, is wrong. What is chosen, and its
preference accuracy and margin on test rows beside the default recipe's and the base model's. SimPO and ORPO see the
base model's own preference there; DPO's is .5 by definition.

python bench/preferences.py --task banking77 --data folder --model M --objectives dpo,orpo,simpo --budget 3x
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import loratune
from answer import rows_of
from record import append, circumstances

RESULTS = Path(__file__).parent / "results" / "preferences.csv"
CALCULATION = re.compile(r"<<([^=<>]+)=(\d+)>>(\d+)")
SHARES = {"validation": 300, "test": 500}


def near_labels(labels: Iterable[str]) -> dict[str, str]:
    """For each label the other one that shares most of its words; the first by name among equals."""
    names = sorted(set(labels))
    return {
        name: max((other for other in names if other != name), key=partial(shared_words, name))
        for name in names
    }


def shared_words(one: str, other: str) -> float:
    """Share of the words of both that they have in common."""
    words, others = set(one.split()), set(other.split())
    return len(words & others) / len(words | others)


def miscalculated(answer: str, random: Random) -> str | None:
    """The solution with another result of its last calculation and as its answer; None where these are not one number.

    The wrong number has as many digits, so that its length says nothing.
    """
    found = list(CALCULATION.finditer(answer))
    head, _, number = answer.rpartition("#### ")
    if not found or found[-1][2] != number or found[-1][3] != number:
        return None
    low, high = (0, 9) if len(number) == 1 else (10 ** (len(number) - 1), 10 ** len(number) - 1)
    wrong = str(random.choice([each for each in range(max(low, int(number) - 20), min(high, int(number) + 20) + 1)
                               if each != int(number)]))  # fmt: skip
    start = found[-1].start()
    return re.sub(rf"\b{number}\b", wrong, head[start:]).join((head[:start], f"#### {wrong}"))


def pairs(task: str, rows: list[dict[str, str]], seed: int) -> Iterator[dict[str, str]]:
    """The rows as TRL has preferences."""
    random = Random(seed)
    near = near_labels(row["completion"].strip() for row in rows) if task == "banking77" else {}
    for row in rows:
        chosen = row["completion"]
        rejected = f" {near[chosen.strip()]}" if near else miscalculated(chosen, random)
        if rejected is not None:
            yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def write_pairs(task: str, data: Path, folder: Path, rows: int, seed: int) -> dict[str, Path]:
    """Files of training, validation and test pairs; the first two of the published training rows."""
    train, test = rows_of(task, data)
    Random(seed).shuffle(train)
    Random(12345).shuffle(test)
    learnt, tested = list(pairs(task, train, seed)), list(pairs(task, test, 12345))
    held_out = SHARES["validation"]
    splits = {
        "data": learnt[held_out : held_out + rows],
        "validation": learnt[:held_out],
        "test": tested[: SHARES["test"]],
    }
    paths = {}
    for name, found in splits.items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    return paths


def measure(arguments: argparse.Namespace, objective: str, paths: dict[str, Path], out: Path) -> None:
    """One whole `tune`; prints and appends a row."""
    started = perf_counter()
    result = loratune.tune(
        model=arguments.model, data=paths["data"], validation=paths["validation"], test=paths["test"],
        task="preference", objective=objective, budget=arguments.budget,
        epochs=arguments.epochs, out=out, no_ledger=True,
    )  # fmt: skip
    seconds = perf_counter() - started
    document: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    test, chosen = result.metrics, document["recommended"]
    row: dict[str, Any] = {
        "task": arguments.task, "model": Path(arguments.model).name, "objective": objective, "rows": arguments.rows,
        "epochs": arguments.epochs, "budget": arguments.budget, "trials": document["cost"]["trials"],
        "rank": chosen["r"], "learning_rate": chosen["learning_rate"], "batch_size": chosen["batch_size"],
        "beta": chosen["beta"],
    }  # fmt: skip
    for who, found in (("", test), ("default_", test["default_recipe"]), ("base_", test["base_model"])):
        for metric in ("accuracy", "margin"):
            row[f"{who}{metric}"] = round(found["test"].get(f"preference_{metric}", float("nan")), 4)
    row |= {"seconds": round(seconds), "predicted": round(document["cost"]["predicted_seconds"])}
    print(row, document["timeline"], sep="\n", flush=True)
    append(RESULTS, row | circumstances())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["banking77", "gsm8k"], default="banking77")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--objectives", default="dpo,orpo,simpo")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--budget", default="3x")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for the run directories")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_pairs(arguments.task, arguments.data, folder, arguments.rows, arguments.seed)
        for objective in arguments.objectives.split(","):
            measure(arguments, objective, paths, (arguments.out or folder) / objective)


if __name__ == "__main__":
    main()
