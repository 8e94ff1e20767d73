"""Generated text: speed of a pack's decoding beside transformers', and GSM8K's final number of a whole `tune`.

Speed: adapters of mixed ranks on a model of a known shape with random weights; `generate` of transformers writes with
one PEFT adapter after the other, rows in batches of its own best size among --batches. Nobody stops early, so both
write the same number of tokens; `same` is the share of rows whose tokens agree (below 1 in bfloat16, where near ties
turn).

GSM8K: `loratune tune --metric 'regex:#### (\\S+)'` on published rows with a real model; the test score of adapter,
default recipe and base model, and predicted beside measured seconds.

python bench/generation.py --shape smollm2-135m --models 8 --rows 64 --new 128
python bench/generation.py --task gsm8k --data folder --model M --train-rows 3000 --test-rows 500 --budget 2x
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from peft import PeftModel

import loratune
from answer import TASKS, write_splits
from loratune.costs.generation import cached_tokens
from loratune.costs.limits import limits_here
from loratune.data.table import TokenTable
from loratune.engine.machinery import choose_paths
from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter
from loratune.lora.peft_io import save_adapter
from loratune.model.base import BaseModel
from loratune.values import Trial, default_recipe
from record import append, circumstances
from shapes import SHAPES, random_base

RESULTS = Path(__file__).parent / "results" / "generation.csv"
RANKS = (2, 4, 8, 16, 32, 64)
METRIC = r"regex:#### (\S+)"


def prompts(rows: int, vocabulary: int) -> TokenTable:
    """Rows with prompts of 40 to 160 tokens, as GSM8K's, and a completion of one token."""
    random = np.random.default_rng(0)
    lengths = random.integers(40, 160, rows)
    pairs = [(random.integers(1, vocabulary, n + 1).tolist(), [False] * int(n) + [True]) for n in lengths]
    return TokenTable.from_rows(pairs)


def engine_on(base: BaseModel, table: TokenTable) -> PackEngine:
    """As `tune` builds it."""
    paths = choose_paths(base, longest=int(table.lengths.max()))
    limits = limits_here(base, paths, table, table)
    return PackEngine(
        base=base,
        train=table,
        validation=table,
        study_seed=0,
        cost=lambda _: 1.0,
        max_tokens_per_micro_batch=limits.micro_batch_tokens,
        cached_tokens=cached_tokens(limits),
        paths=paths,
    )


def adapters_of(engine: PackEngine, models: int) -> list[Adapter]:
    """Of mixed ranks, with numbers in B that change what is written."""
    recipes = [replace(default_recipe(), r=RANKS[i % len(RANKS)]) for i in range(models)]
    found = engine.initials([Trial(hyper_parameters=each, seed=i) for i, each in enumerate(recipes)])
    for adapter in found:
        adapter.weights.add_(0.01 * torch.randn_like(adapter.weights))
    return found


def by_transformers(
    base: BaseModel, folder: Path, table: TokenTable, new: int, batch: int
) -> tuple[list[list[int]], float]:
    """Tokens of each row with one adapter, in batches padded on the left, and the seconds."""
    model = PeftModel.from_pretrained(base.model, folder)
    rows = [table.row(i)[0][:-1] for i in range(len(table))]
    order = np.argsort([len(row) for row in rows])
    written: list[list[int]] = [[] for _ in rows]
    started = perf_counter()
    for start in range(0, len(rows), batch):
        chosen = order[start : start + batch]
        longest = max(len(rows[i]) for i in chosen)
        tokens = np.zeros((len(chosen), longest), np.int64)
        mask = np.zeros_like(tokens)
        for place, i in enumerate(chosen):
            tokens[place, longest - len(rows[i]) :] = rows[i]
            mask[place, longest - len(rows[i]) :] = 1
        given, seen = (torch.from_numpy(each).to(base.device) for each in (tokens, mask))
        with torch.no_grad():
            out = model.generate(
                input_ids=given, attention_mask=seen, max_new_tokens=new, do_sample=False,
                use_cache=True, pad_token_id=0,
            )  # fmt: skip
        for i, row in zip(chosen, out[:, longest:].tolist(), strict=True):
            written[i] = row
    seconds = perf_counter() - started
    model.unload()
    return written, seconds


def speed(arguments: argparse.Namespace) -> None:
    """One row of results."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = random_base(arguments.shape, getattr(torch, arguments.dtype), device)
    base.model.generation_config.eos_token_id = None
    table = prompts(arguments.rows, base.profile.vocabulary)
    engine = engine_on(base, table)
    adapters = adapters_of(engine, arguments.models)
    with engine.attached():
        engine.write(adapters, table, max_new_tokens=2)
        started = perf_counter()
        ours = engine.write(adapters, table, max_new_tokens=arguments.new)
        seconds = perf_counter() - started
    total = arguments.models * arguments.rows * arguments.new
    theirs: dict[int, float] = {}
    same: list[bool] = []
    with TemporaryDirectory() as folder:
        for number, adapter in enumerate(adapters[: arguments.compared]):
            place = Path(folder) / str(number)
            save_adapter(adapter, place, base.model)
            for batch in arguments.batches if number == 0 else [min(theirs, key=lambda each: theirs[each])]:
                written, took = by_transformers(base, place, table, arguments.new, batch)
                theirs[batch] = min(took, theirs.get(batch, took))
            same += [row.tolist() == other for row, other in zip(ours[number], written, strict=True)]
    best = min(theirs, key=lambda each: theirs[each])
    row = {
        "what": "speed", "shape": arguments.shape, "dtype": arguments.dtype, "models": arguments.models,
        "rows": arguments.rows, "new": arguments.new, "pack": round(total / seconds, 1),
        "peft_generate": round(arguments.rows * arguments.new / theirs[best], 1), "batch": best,
        "same": round(float(np.mean(same)), 3),
    }  # fmt: skip
    print(row, flush=True)
    append(RESULTS, {**row, **circumstances()})


def gsm8k(arguments: argparse.Namespace) -> None:
    """One row of results, and the sentence on the finalists."""
    with TemporaryDirectory() as folder:
        scale = max(1.0, arguments.train_rows / TASKS["gsm8k"].train_rows)
        paths = write_splits("gsm8k", arguments.data, Path(folder), arguments.seed, scale)
        out = arguments.out or Path(folder) / "run"
        started = perf_counter()
        result = loratune.tune(
            model=arguments.model, data=paths["train"], validation=paths["validation"], test=paths["test"],
            train_rows=arguments.train_rows, validation_rows=arguments.validation_rows,
            test_rows=arguments.test_rows, metric=METRIC, max_new_tokens=arguments.new, budget=arguments.budget,
            epochs=arguments.epochs, out=out, no_ledger=True,
        )  # fmt: skip
        seconds = perf_counter() - started
        document: dict[str, Any] = json.loads((out / "result.json").read_text())
    for evidence in result.evidence:
        if "choice by NLL" in evidence.claim or METRIC.removeprefix("regex:") in evidence.claim:
            print(evidence.claim, evidence.value, evidence.interval, evidence.holds, flush=True)
    stages = {each["name"]: each for each in document["stages"]}
    print(json.dumps(stages.get("finalists", {}), indent=1), document["timeline"], sep="\n")
    row = {
        "what": "gsm8k", "model": Path(arguments.model).name, "new": arguments.new,
        "train_rows": arguments.train_rows, "test_rows": arguments.test_rows, "epochs": result.recommended.epochs,
        "budget": arguments.budget, "rank": result.recommended.r, "learning_rate": result.recommended.learning_rate,
        "trials": document["cost"]["trials"],
        "test": result.metrics["test"][METRIC], "default": result.metrics["default_recipe"]["test"].get(METRIC),
        "base": result.metrics["base_model"]["test"][METRIC], "seconds": round(seconds),
        "finalists_seconds": round(stages.get("finalists", {}).get("seconds", 0.0), 1),
        "predicted": round(document["cost"]["predicted_seconds"]),
    }  # fmt: skip
    print(row, flush=True)
    append(RESULTS, {**row, **circumstances()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["speed", "gsm8k"], default="speed")
    parser.add_argument("--shape", choices=[*SHAPES], default="smollm2-135m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--compared", type=int, default=2, help="adapters that transformers writes with")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--budget", default="auto")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--train-rows", type=int, default=2000)
    parser.add_argument("--validation-rows", type=int, default=300)
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--out", type=Path, help="the run directory, to be kept; of --task gsm8k")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    (speed if arguments.task == "speed" else gsm8k)(arguments)


if __name__ == "__main__":
    main()
