"""What people do today, as a whole command: Optuna's TPE over rank and learning rate, each trial trained by plain PEFT.

One trial after the other, or in K processes on the same device that share a journal; no trial begins after --seconds,
and one that would not end by a quarter more is cut there. The best adapter by validation NLL is handed over. The other
side of bench/answer.py.
"""

import argparse
import json
import multiprocessing
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from transformers import get_linear_schedule_with_warmup

from loratune.data.prepare import prepare
from loratune.data.sources import DataOptions
from loratune.data.table import TokenTable
from loratune.model.base import BaseModel, load_model
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.values import HyperParameters
from peft_side import adapted, padded

BATCH = 16
RANKS = [4, 8, 16, 32, 64, 128]
LATE = 1.25


def tables(model: str, data: str, validation: str, test: str) -> tuple[TokenTable, TokenTable]:
    """Training and validation rows as every side of the comparison gets them: no row twice, none of the test's."""
    tokenizer = load_tokenizer(model, cache=Path.home() / ".cache" / "loratune")
    options = DataOptions(data=data, validation=validation, test=test)
    found = prepare(options, tokenizer, end_of_turn=end_of_turn_id(tokenizer))
    return found.train, found.validation


@torch.no_grad()
def validation_nll(model: Any, table: TokenTable, device: torch.device) -> float:
    """Nats per supervised token."""
    total = 0.0
    for start in range(0, len(table), 64):
        rows = range(start, min(len(table), start + 64))
        batch = padded(table, rows, device)
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += float(model(**batch, use_cache=False).loss) * count
    return total / float(table.supervised_counts.sum())


def train(
    base: BaseModel, table: TokenTable, recipe: HyperParameters, seed: int, deadline: float
) -> tuple[Any, int, bool]:
    """The loop everybody writes; returns the model, the trained tokens, and whether it came to its end."""
    torch.manual_seed(seed)
    wrapped = adapted(base, recipe)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, fused=base.device.type == "cuda")
    steps = int(np.ceil(len(table) / BATCH)) * int(recipe.epochs)
    schedule = get_linear_schedule_with_warmup(optimiser, int(np.ceil(0.05 * steps)), steps)
    random, tokens, step = np.random.default_rng(seed), 0, 0
    for _ in range(int(recipe.epochs)):
        order = random.permutation(len(table))
        for start in range(0, len(order), BATCH):
            if perf_counter() > deadline:
                return wrapped, tokens, False
            chosen = table.take(order[start : start + BATCH])
            wrapped(**padded(chosen, range(len(chosen)), base.device), use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            tokens, step = tokens + int(chosen.lengths.sum()), step + 1
    return wrapped, tokens, True


def search(arguments: argparse.Namespace, number: int, started: float) -> None:
    """One process: trials until the time is over; the best adapter of this process stays in its folder."""
    base = load_model(arguments.model, dtype="auto", device="auto", cache=Path.home() / ".cache" / "loratune")
    rows, validation = tables(arguments.model, arguments.data, arguments.validation, arguments.test)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(arguments.out / "journal")))
    sampler = optuna.samplers.TPESampler(seed=1000 * arguments.seed + number, constant_liar=True)
    study = optuna.create_study(study_name="peft", storage=storage, sampler=sampler, load_if_exists=True)
    best = float("inf")

    def objective(trial: optuna.Trial) -> float:
        nonlocal best
        rank = trial.suggest_categorical("r", RANKS)
        rate = trial.suggest_float("learning_rate", 5e-5, 6e-3, log=True)
        recipe = HyperParameters(
            r=rank, lora_alpha=2 * rank, learning_rate=rate, batch_size=BATCH, epochs=arguments.epochs
        )
        deadline = started + LATE * arguments.seconds
        wrapped, tokens, whole = train(base, rows, recipe, 1000 * arguments.seed + trial.number, deadline)
        trial.set_user_attr("tokens", tokens)
        nll = validation_nll(wrapped.eval(), validation, base.device)
        if nll < best and (whole or best == float("inf")):
            best = nll
            wrapped.save_pretrained(arguments.out / f"adapter-{number}")
            (arguments.out / f"best-{number}.json").write_text(json.dumps([nll, rank, rate]))
        wrapped.unload()
        return nll

    while perf_counter() - started < arguments.seconds:
        study.optimize(objective, n_trials=1)


def main() -> None:
    """Search, then hand over the best adapter and a result.json with what it is."""
    started = perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    for name in ("--data", "--validation", "--test"):
        parser.add_argument(name, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.processes == 1:
        search(arguments, 0, started)
    else:
        spawn = multiprocessing.get_context("spawn")
        workers = [
            spawn.Process(target=search, args=(arguments, number, started))
            for number in range(arguments.processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    found = [(*json.loads(path.read_text()), path.stem[5:]) for path in arguments.out.glob("best-*.json")]
    _, rank, rate, number = min(found)
    (arguments.out / f"adapter-{number}").rename(arguments.out / "adapter")
    storage = JournalStorage(JournalFileBackend(str(arguments.out / "journal")))
    trials = optuna.load_study(study_name="peft", storage=storage).trials
    document = {
        "recommended": {"r": rank, "learning_rate": rate, "batch_size": BATCH},
        "cost": {
            "trials": len(trials),
            "trained_tokens": sum(trial.user_attrs.get("tokens", 0) for trial in trials),
        },
    }
    (arguments.out / "result.json").write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    main()
