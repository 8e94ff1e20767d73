"""Time to answer and quality of the answer, whole commands on one device: our strategies beside what people do today.

A side is a whole process, timed from its start to its last file: `loratune tune` with one strategy or another, or a
search by Optuna that trains plain PEFT trials one after the other (`bench/answer_peft.py`) or in K processes at once
for as many seconds as the default strategy took. Every side gets the same training, validation and test files; what it
hands over is then scored here on the test rows, which no side has seen, by transformers and PEFT alone.

A row a run in bench/results/answer.csv; the scores of every test row in --rows, from which --compare makes paired
differences (mean over seeds, 95 % by a bootstrap of rows and seeds).

python bench/answer.py --task banking77 --data folder --model M --sides default,grid4 --seeds 0,1,2 --rows rows.npz
python bench/answer.py --task banking77 --compare --rows rows.npz
"""

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel

from loratune.data.prepare import prepare
from loratune.data.sources import DataOptions
from loratune.data.table import TokenTable
from loratune.model.base import load_model
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from peft_side import padded
from record import append, circumstances

RESULTS = Path(__file__).parent / "results" / "answer.csv"
RATES4 = "1e-4,2e-4,4e-4,8e-4"
RATES10 = "5e-5,1e-4,2e-4,3e-4,5e-4,8e-4,1.2e-3,2e-3,3.5e-3,6e-3"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset and how much of it is trained on."""

    train_rows: int
    validation_rows: int
    test_rows: int
    epochs: int


TASKS = {
    "banking77": Task(train_rows=2000, validation_rows=400, test_rows=2000, epochs=3),
    "gsm8k": Task(train_rows=2000, validation_rows=300, test_rows=1000, epochs=1),
}
SIDES = {
    "default": ["--budget", "auto"],
    "grid4": [
        "--strategy", "grid", "--ranks", "16", "--learning-rates", RATES4, "--batch-sizes", "16", "--budget", "5x",
    ],
    "grid60": [
        "--strategy", "grid", "--ranks", "4,8,16,32,64,128", "--learning-rates", RATES10, "--batch-sizes", "16",
        "--budget", "70x",
    ],
    "tpe": ["--strategy", "tpe", "--budget", "20x"],
}  # fmt: skip
"""Options of `loratune tune`; the other sides are `optuna-peft` and `optuna-peft-K`, K processes at once."""


def rows_of(task: str, data: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Prompt and completion of all training and test rows of the published files."""
    if task == "banking77":
        found = []
        for split in ("train", "test"):
            with (data / "banking77" / f"{split}.csv").open(newline="", encoding="utf-8") as file:
                found.append(
                    [
                        {
                            "prompt": f"Customer message: {row['text'].strip()}\nIntent:",
                            "completion": " " + row["category"].replace("_", " "),
                        }
                        for row in csv.DictReader(file)
                    ]
                )
        return found[0], found[1]
    lines = [
        (data / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for split in ("train", "test")
    ]
    made = [
        [
            {"prompt": f"Question: {row['question']}\nAnswer:", "completion": " " + row["answer"]}
            for row in map(json.loads, split)
        ]
        for split in lines
    ]
    return made[0], made[1]


def write_splits(task: str, data: Path, folder: Path, seed: int, scale: float = 1.0) -> dict[str, Path]:
    """train, validation and test files: drawn by the seed, the test rows alike for all seeds."""
    sizes = TASKS[task]
    train, test = rows_of(task, data)
    Random(seed).shuffle(train)
    Random(12345).shuffle(test)
    count, held_out, tested = (
        max(8, round(scale * size)) for size in (sizes.train_rows, sizes.validation_rows, sizes.test_rows)
    )
    splits = {
        "train": train[:count],
        "validation": train[count : count + held_out],
        "test": test[:tested],
    }
    paths = {}
    for name, rows in splits.items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def run_side(
    side: str, task: str, model: str, paths: dict[str, Path], out: Path, seed: int, seconds: float
) -> float:
    """The seconds of one whole command. Raises where it fails."""
    epochs = str(TASKS[task].epochs)
    common = ["--model", model, "--epochs", epochs, "--seed", str(seed), "--out", str(out)]
    if side.startswith("optuna-peft"):
        processes = side.rpartition("-")[2]
        script = str(Path(__file__).with_name("answer_peft.py"))
        command = [sys.executable, script, *common, "--seconds", str(seconds)]
        command += ["--processes", processes if processes.isdigit() else "1"]
    else:
        command = [sys.executable, "-m", "loratune", "tune", *common, *SIDES[side], "--no-ledger"]
    command += ["--data", str(paths["train"]), "--validation", str(paths["validation"])]
    command += ["--test", str(paths["test"])]
    started = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = perf_counter() - started
    if done.returncode not in (0, 3):
        sys.exit(f"{side} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    (out / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    return taken


class Judge:
    """Scores adapters on the test rows with transformers and PEFT, row by row."""

    def __init__(self, model: str, paths: dict[str, Path]) -> None:
        tokenizer = load_tokenizer(model, cache=Path.home() / ".cache" / "loratune")
        options = DataOptions(
            data=str(paths["train"]), validation=str(paths["validation"]), test=str(paths["test"])
        )
        self.table: TokenTable = prepare(options, tokenizer, end_of_turn=end_of_turn_id(tokenizer)).test
        self.base = load_model(model, dtype="auto", device="auto", cache=Path.home() / ".cache" / "loratune")

    @torch.no_grad()
    def __call__(self, adapter: Path) -> npt.NDArray[np.float64]:
        """[2, rows]: NLL summed over each row's supervised tokens, and exact match."""
        wrapped: Any = PeftModel.from_pretrained(self.base.model, adapter).eval()
        order = np.argsort(self.table.lengths, kind="stable")
        found = np.zeros((2, len(order)))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            batch = padded(self.table.take(rows), range(len(rows)), self.base.device)
            labels = batch.pop("labels")[:, 1:]
            logits = wrapped(**batch, use_cache=False).logits[:, :-1].float()
            kept = labels != -100
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=-100, reduction="none"
            )
            wrong = ((logits.argmax(-1) != labels) & kept).any(1)
            found[0, rows] = losses.sum(1).double().cpu().numpy()
            found[1, rows] = (~wrong).cpu().numpy()
        wrapped.unload()
        return found


def measure(arguments: argparse.Namespace) -> None:
    """Run and score the asked sides, one seed after the other."""
    rows: dict[str, npt.NDArray[np.float64]] = {}
    if arguments.rows.is_file():
        with np.load(arguments.rows, allow_pickle=False) as stored:
            rows = dict(stored)
    for seed in map(int, arguments.seeds.split(",")):
        with TemporaryDirectory() as temporary:
            paths = write_splits(arguments.task, arguments.data, Path(temporary), seed, arguments.scale)
            judge: Judge | None = None
            seconds = arguments.seconds
            for side in arguments.sides.split(","):
                out = Path(temporary) / side
                taken = run_side(side, arguments.task, arguments.model, paths, out, seed, seconds)
                if side == "default":
                    seconds = taken
                judge = judge or Judge(arguments.model, paths)
                scores = judge(out / "adapter")
                rows[f"{arguments.task}/{side}/{seed}"] = scores
                rows[f"{arguments.task}/tokens/{seed}"] = judge.table.supervised_counts.astype(np.float64)
                np.savez_compressed(arguments.rows, **rows)  # type: ignore[arg-type]
                nll = scores[0].sum() / judge.table.supervised_counts.sum()
                row = {
                    **circumstances(), "task": arguments.task, "side": side, "seed": seed, "scale": arguments.scale,
                    "seconds": f"{taken:.1f}", **_told(out), "test_nll": f"{nll:.5f}",
                    "test_exact_match": f"{scores[1].mean():.4f}",
                }  # fmt: skip
                append(RESULTS, row)
                print(row, flush=True)
                if arguments.keep:
                    for name in ("result.json", "stderr.txt", "report.html"):
                        if (out / name).is_file():
                            kept = arguments.keep / f"{arguments.task}-{side}-{seed}-{name}"
                            kept.write_bytes((out / name).read_bytes())


def _told(out: Path) -> dict[str, Any]:
    """What a side says of itself: trials, chosen values, where its seconds went."""
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    chosen = found["recommended"]
    cost = found["cost"]
    timeline = {part["name"]: round(part["seconds"], 1) for part in found.get("timeline", ())}
    return {
        "trials": cost["trials"], "trained_tokens": cost["trained_tokens"],
        "rank": chosen["r"], "learning_rate": f"{chosen['learning_rate']:.3g}",
        "batch_size": chosen["batch_size"], "timeline": json.dumps(timeline) if timeline else "",
    }  # fmt: skip


def compare(arguments: argparse.Namespace, draws: int = 2000) -> None:
    """Every side against the default: difference of the test NLL per token and of exact match, paired by row."""
    if not arguments.rows.is_file():
        sys.exit(f"--rows must be a file that a measurement wrote, got {arguments.rows}; measure first.")
    with np.load(arguments.rows, allow_pickle=False) as stored:
        rows = dict(stored)
    seeds: dict[str, set[str]] = {}
    for name in rows:
        task, side, seed = name.split("/")
        if task == arguments.task:
            seeds.setdefault(side, set()).add(seed)
    random = np.random.default_rng(0)
    for side in sorted(set(seeds) - {"default", "tokens"}):
        common = sorted(seeds[side] & seeds.get("default", set()))
        if not common:
            continue
        # each seed's own rows: which of them stand in its training rows too, and were taken out, differs
        pairs = [rows[f"{arguments.task}/{side}/{s}"] - rows[f"{arguments.task}/default/{s}"] for s in common]
        tokens = [rows[f"{arguments.task}/tokens/{s}"] for s in common]
        found = np.empty((draws, 2))
        for draw in range(draws):
            drawn = random.integers(0, len(common), len(common))
            chosen = [random.integers(0, len(tokens[i]), len(tokens[i])) for i in drawn]
            found[draw] = _mean_of_seeds(
                [(pairs[i][:, each], tokens[i][each]) for i, each in zip(drawn, chosen, strict=True)]
            )
        nll, match = _mean_of_seeds(list(zip(pairs, tokens, strict=True)))
        low, high = np.percentile(found, [2.5, 97.5], axis=0)
        print(
            f"{side} minus default, {len(common)} seeds: NLL {nll:+.4f} [{low[0]:+.4f}, {high[0]:+.4f}], "
            f"exact match {match:+.4f} [{low[1]:+.4f}, {high[1]:+.4f}]"
        )


def _mean_of_seeds(
    seeds: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
) -> tuple[float, float]:
    """NLL per token and share of exact matches, of ([2, rows], tokens of each row) for each seed."""
    nll = [part[0].sum() / tokens.sum() for part, tokens in seeds]
    return float(np.mean(nll)), float(np.mean([part[1].mean() for part, _ in seeds]))


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, help="folder with banking77/ and gsm8k/ as published")
    parser.add_argument("--model", help="folder, .gguf file or hub name")
    parser.add_argument(
        "--sides", default="default,grid4", help=f"of {', '.join(SIDES)}, optuna-peft, optuna-peft-K"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for trying this script")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of the PEFT sides where default is not run"
    )
    parser.add_argument(
        "--rows", type=Path, required=True, help=".npz file of every test row's scores, extended"
    )
    parser.add_argument("--keep", type=Path, help="folder for each side's result.json, report and messages")
    parser.add_argument("--compare", action="store_true", help="only compare what --rows holds")
    arguments = parser.parse_args()
    if arguments.compare:
        compare(arguments)
        return
    if arguments.data is None or arguments.model is None:
        parser.error("--data and --model are needed to measure")
    measure(arguments)


if __name__ == "__main__":
    main()
