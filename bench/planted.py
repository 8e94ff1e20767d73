"""Known truths on the real engine, each on a tiny model on a CPU: what the search and the engine must find.

    python bench/planted.py rank          # teacher = base + update of rank k*: is the smallest adequate rank k*?
    python bench/planted.py memory        # random labels: how many bits a rank remembers
    python bench/planted.py invariance    # alpha and learning rate trade off as the theory says, step by step

Each writes `bench/results/planted_NAME.csv`.
"""

import csv
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distil import DistillingEngine, planted_teacher
from loratune.data.table import TokenTable
from loratune.engine import slot as slot_module
from loratune.engine.pack import PackEngine
from loratune.lora.layout import find_targets
from loratune.model.base import BaseModel
from loratune.model.profile import profile_of
from loratune.search.evidence import EvidenceStrategy
from loratune.values import (
    DataFacts,
    Decision,
    HyperParameters,
    ModelFacts,
    SearchContext,
    Trial,
    TrialResult,
    Wishes,
)

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 97
RANKS = (1, 2, 4, 8, 16)


def tiny(width: int = 32, dtype: torch.dtype = torch.float32, spread: float = 0.2) -> BaseModel:
    """A frozen two-layer Llama with seeded random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width // 2, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=spread,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    return BaseModel(model=model, tokenizer=None, profile=profile_of(model, "tiny"))


def random_rows(rows: int, length: int, seed: int, words: int = VOCABULARY) -> TokenTable:
    """Random tokens, all but the first supervised."""
    tokens = np.random.default_rng(seed).integers(0, words, (rows, length))
    return TokenTable.from_rows([(row, [False] + [True] * (length - 1)) for row in tokens.tolist()])


def train(engine: PackEngine, trials: Sequence[Trial], slots: int = 16) -> list[TrialResult]:
    """All trials, packed."""
    waiting = list(reversed(trials))
    results: list[TrialResult] = []
    engine.run(
        lambda: waiting.pop() if waiting else None,
        slots=slots,
        on_result=lambda result, _: results.append(result),
    )
    return results


def planted_search(
    r: int,
    seed: int,
    *,
    rows: int = 512,
    epochs: float = 5.0,
    strength: float = 0.3,
    share: float = 0.05,
    ranks: tuple[int, ...] = RANKS,
    rates: tuple[float, ...] = (1e-2, 3e-2),
) -> tuple[float, Decision, list[TrialResult]]:
    """The default strategy on a teacher of rank `r`: the base model's KL, the decision, all trials.

    The margin is `share` of the base model's KL. `strength` is the size of the update against the weights'.
    """
    base = tiny()
    targets = find_targets(base.profile.targets, ("all-linear",))
    teacher = planted_teacher(base.model, targets, r=r, strength=strength, seed=seed)
    train_rows, validation = random_rows(rows, 16, seed), random_rows(64, 16, 1000 + seed)
    context = SearchContext(
        data=DataFacts(
            rows=rows,
            tokens=int(train_rows.lengths.sum()),
            supervised_tokens=int(train_rows.supervised_counts.sum()),
            validation_tokens=int(validation.lengths.sum()),
            validation_weights=validation.supervised_counts.astype(np.float64),
        ),
        model=ModelFacts(
            hidden_size=base.profile.hidden_size,
            family="llama",
            parameters_per_rank=base.profile.parameters_per_rank,
            largest_rank=base.profile.largest_rank,
        ),
        wishes=Wishes(
            epochs=epochs,
            ranks=ranks,
            learning_rates=rates,
            batch_sizes=(16,),
            alpha_ratios=(2.0,),
            seed=seed,
            budget=60.0,
        ),
    )
    engine = DistillingEngine(
        base=base, teacher=teacher, train=train_rows, validation=validation, study_seed=seed,
        cost=context.cost, max_tokens_per_micro_batch=4096,
    )  # fmt: skip
    before = engine.evaluate([None], validation)[0].nll
    strategy = EvidenceStrategy(context.changed(margin=share * before))
    history: list[TrialResult] = []
    while trials := strategy.ask(history):
        history += train(engine, trials)
    return before, strategy.decide(history), history


def rank_rows(planted: Sequence[int], seeds: int) -> Iterable[dict[str, Any]]:
    """One row for each planted rank and seed."""
    for r in planted:
        for seed in range(seeds):
            started = perf_counter()
            before, decision, history = planted_search(r, seed)
            best = {
                rank: min(
                    x.nll for x in history if x.trial.fraction == 1 and x.trial.hyper_parameters.r == rank
                )
                for rank in sorted({x.trial.hyper_parameters.r for x in history})
            }
            chosen = decision.hyper_parameters
            yield {
                "planted_rank": r,
                "seed": seed,
                "found_rank": chosen.r,
                "right": int(chosen.r == r),
                "learning_rate": chosen.learning_rate,
                "base_kl_nats": round(before, 5),
                "margin_nats": round(0.05 * before, 5),
                **{f"kl_share_r{rank}": f"{nll / before:.2g}" for rank, nll in best.items()},
                "trials": len(history),
                "seconds": round(perf_counter() - started, 1),
            }


def random_labels(rows: int, labels: int, seed: int, prompt: int = 2) -> TokenTable:
    """Random prompts of a few words, each with one of the labels drawn at random."""
    random = np.random.default_rng(seed)
    prompts = random.integers(labels, VOCABULARY, (rows, prompt)).tolist()
    drawn = random.integers(0, labels, rows).tolist()
    flags = [False] * prompt + [True]
    return TokenTable.from_rows(
        [([*words, label], flags) for words, label in zip(prompts, drawn, strict=True)]
    )


def memorised(
    rows: int,
    *,
    labels: int = 16,
    ranks: Sequence[int] = (1, 2, 4, 8),
    rates: Sequence[float] = (3e-3, 1e-2, 3e-2),
    epochs: float = 100.0,
    seed: int = 0,
    targets: tuple[str, ...] = ("all-linear",),
) -> dict[int, tuple[float, int]]:
    """(bits of the labels that are remembered, parameters) of each rank at its best learning rate.

    Bits are what the trained model saves over guessing among the labels, on the rows it was trained on. The head's
    weights are wide, since it is not trained and states of fixed norm could not make any label certain.
    """
    base, table = tiny(spread=0.5), random_labels(rows, labels, seed)
    engine = PackEngine(
        base=base, train=table, validation=table, study_seed=seed, cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=8192, evaluations_per_trial=1,
    )  # fmt: skip
    trials = [
        Trial(
            hyper_parameters=HyperParameters(
                r=r,
                lora_alpha=2 * r,
                learning_rate=rate,
                batch_size=64,
                epochs=epochs,
                target_modules=targets,
            ),
            seed=seed,
        )
        for r in ranks
        for rate in rates
    ]
    results = train(engine, trials)
    width = sum(i + o for _, i, o in find_targets(base.profile.targets, targets))
    found = {}
    for r in ranks:
        nll = min(x.nll for x in results if x.trial.hyper_parameters.r == r)
        found[r] = (max(0.0, rows * (log(labels) - nll) / log(2)), r * width)
    return found


def memory_rows(sizes: Sequence[int], seeds: int) -> Iterable[dict[str, Any]]:
    """One row for each number of examples, seed and rank."""
    for rows in sizes:
        for seed in range(seeds):
            for r, (bits, parameters) in memorised(rows, seed=seed).items():
                yield {
                    "examples": rows,
                    "seed": seed,
                    "rank": r,
                    "parameters": parameters,
                    "bits_offered": rows * 4,
                    "bits_remembered": round(bits),
                    "bits_per_parameter": round(bits / parameters, 3),
                    "share_remembered": round(bits / (rows * 4), 3),
                }


def losses_of(engine: PackEngine, trials: Sequence[Trial], steps: int, scale_a: float = 1.0) -> np.ndarray:
    """[trials, steps] with A's initial weights multiplied by `scale_a` (B's are zero)."""
    slots = [engine.slot(trial) for trial in trials]
    for slot in slots:
        slot.adapter.weights.mul_(scale_a)
    with engine.attached() as step:
        for _ in range(steps):
            step(slots)
    return np.array([slot.losses for slot in slots])


class TwoRates(torch.optim.AdamW):
    """AdamW without epsilon on one flat vector, some of whose numbers move `factor` times as far."""

    def __init__(self, weights: torch.Tensor, factor: torch.Tensor) -> None:
        super().__init__([weights], betas=(0.9, 0.999), eps=1e-200, weight_decay=0.0, fused=True)
        self._weights, self._factor = weights, factor

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        before = self._weights.detach().clone()
        super().step(closure)
        with torch.no_grad():
            self._weights.copy_(before + self._factor * (self._weights - before))


def invariance(p: float, q: float, *, steps: int = 20) -> float:
    """Largest relative difference of the losses when alpha → alpha/(pq), A → p·A, and the rates of A and B → p, q.

    In float64, without epsilon, clipping and decay.
    """
    base = tiny(dtype=torch.float64)
    table = random_rows(64, 12, 0)
    engine = PackEngine(
        base=base, train=table, validation=table, study_seed=0, cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=4096,
    )  # fmt: skip
    trial = Trial(
        hyper_parameters=HyperParameters(r=4, lora_alpha=32, learning_rate=3e-3, batch_size=8, epochs=4)
    )
    layout = engine.slot(trial).adapter.layout
    is_a = torch.zeros(layout.size, dtype=torch.float64)
    for a, _ in layout.views(is_a).values():
        a.fill_(1.0)
    kept = slot_module.MAX_GRADIENT_NORM, slot_module.optimiser
    found = []
    try:
        slot_module.MAX_GRADIENT_NORM = 1e300
        for p_, q_ in ((1.0, 1.0), (p, q)):
            factor = is_a * p_ + (1 - is_a) * q_
            slot_module.optimiser = lambda weights, _, factor=factor: TwoRates(weights, factor)  # type: ignore[misc]
            alpha = trial.hyper_parameters.lora_alpha / (p_ * q_)
            changed = replace(trial, hyper_parameters=replace(trial.hyper_parameters, lora_alpha=alpha))
            found.append(losses_of(engine, [changed], steps, scale_a=p_)[0])
    finally:
        slot_module.MAX_GRADIENT_NORM, slot_module.optimiser = kept
    return float(np.abs(found[1] / found[0] - 1).max())


def rank_blindness(rate: float, *, ranks: Sequence[int] = (4, 16, 64), steps: int = 20) -> dict[str, float]:
    """Nats by which the losses of the first steps differ between ranks, at constant alpha and at alpha = 2r.

    Beside them what the largest rank has learnt by the last step, against a run that stands still: only some of
    the tokens occur, which is there to be learnt.
    """
    table = random_rows(8 * steps, 12, 0, words=30)
    engine = PackEngine(
        base=tiny(256, spread=0.05), train=table, validation=table, study_seed=0, cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=4096,
    )  # fmt: skip
    found = {}
    for name, alpha in (("constant_alpha", lambda r: 32.0), ("alpha_2r", lambda r: 2.0 * r)):
        trials = [
            Trial(
                hyper_parameters=HyperParameters(
                    r=r, lora_alpha=alpha(r), learning_rate=speed, batch_size=8, warmup_ratio=0.0
                )
            )
            for r, speed in [(r, rate) for r in ranks] + [(1, 1e-12)]
        ]
        *losses, still = losses_of(engine, trials, steps)
        found[name] = float(np.ptp(losses, axis=0).max())
        found[f"{name}, learnt"] = float(still[-1] - losses[-1][-1])
    return found


def invariance_rows() -> Iterable[dict[str, Any]]:
    """The trade-offs, then the blindness to rank."""
    for p, q in ((1, 2), (2, 1), (3, 3), (3, 1.7), (4, 0.5), (0.3, 8)):
        yield {
            "what": "alpha/(pq), p·A, rates p and q: relative difference of losses",
            "case": f"p={p} q={q}",
            "value": f"{invariance(p, q):.2g}",
        }
    for rate in (1e-5, 3e-5, 1e-4):
        for name, nats in rank_blindness(rate).items():
            yield {
                "what": f"ranks 4, 16, 64, nats between their losses in 20 steps, {name}",
                "case": f"learning rate {rate:g}",
                "value": f"{nats:.2g}",
            }


def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Prints each row as it comes and writes all of them."""
    found = []
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        found.append(row)
    path = RESULTS / f"planted_{name}.csv"
    names = list(dict.fromkeys(key for row in found for key in row))
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, names, lineterminator="\n")
        out.writeheader()
        out.writerows(found)


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("part", choices=("rank", "memory", "invariance"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "rank": lambda: rank_rows((2, 8), options.seeds),
        "memory": lambda: memory_rows((64, 256, 1024), min(options.seeds, 2)),
        "invariance": invariance_rows,
    }
    write(options.part, parts[options.part]())


if __name__ == "__main__":
    main()
