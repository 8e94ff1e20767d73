"""A made-up but realistic finished run: ranks x learning rates x seeds, batch sizes, alphas, a final pair."""

from math import inf, log10

import numpy as np

from loratune.reporting.facts import Gain, ModelScores, PackSpan, RunCost, RunFacts
from loratune.values import (
    CurvePoint,
    DataProfile,
    Decision,
    Evidence,
    HyperParameters,
    PlannedStage,
    SearchPlan,
    Stage,
    StageSummary,
    Trial,
    TrialResult,
    TrialState,
    default_recipe,
)
from loratune.values.analysis import (
    Change,
    Confusion,
    Diagnosis,
    ExampleRow,
    HeldOut,
    Impact,
    Reading,
    Sensitivity,
    Sign,
)

ROWS = 120
RATES = (3e-4, 1e-3, 3e-3)
OWN_RATE = {2: 3e-3, 8: 1e-3, 32: 3e-4}
BEST_RATE = {2: 4.1e-3, 8: 1.2e-3, 32: 0.35e-3}
FLOOR = {2: 0.190, 8: 0.166, 32: 0.163}
WEIGHTS = np.random.default_rng(5).integers(2, 9, ROWS).astype(np.float64)
OURS = HyperParameters(r=8, lora_alpha=16, learning_rate=1e-3, batch_size=16, epochs=3)


DIAGNOSES = (
    Diagnosis(
        sign=Sign.LEAK,
        finding="3 rows of validation or test stood in another split too.",
        done="They were taken out of validation and test.",
        remedy="",
    ),
    Diagnosis(
        sign=Sign.OVERFITTING,
        finding="Over-fitting: after 2 epochs validation NLL rose by 0.021 nats while training NLL fell.",
        done="The weights of step 240 are kept.",
        remedy="Train 2 epochs.",
        value=0.021,
        unit="nats",
        limit=0.005,
    ),
)
SENSITIVITY = Sensitivity(
    impacts=(
        Impact(
            name="learning_rate",
            tried=RATES,
            effect=0.142,
            effect_interval=(0.101, 0.183),
            share=0.61,
            share_interval=(0.44, 0.73),
        ),
        Impact(
            name="r",
            tried=(2.0, 8.0, 32.0),
            effect=0.0268,
            share=0.12,
            share_interval=(0.05, 0.2),
            memory_bytes=3 * 2**20,
            time_factor=1.08,
        ),
        Impact(name="batch_size", tried=(4.0, 16.0), effect=None, share=0.03, share_interval=(0.0, 0.06)),
    ),
    trials=64,
    wanted_trials=60,
    interactions=0.24,
    noise=0.004,
)


LABELS = ("activate_my_card", "age_limit", "card_arrival")


def _example(change: Change, prompt: str, right: int, ours: int, base: int) -> ExampleRow:
    return ExampleRow(
        change=change,
        prompt=prompt,
        expected=LABELS[right],
        recommended=Reading(nll=0.02 if ours == right else 1.9, right=ours == right, answer=LABELS[ours]),
        base=Reading(nll=0.4 if base == right else 3.1, right=base == right, answer=LABELS[base]),
    )


HELD_OUT = HeldOut(
    examples=(
        *(_example(Change.BETTER, f"How old must I be, asks customer {i}?", 1, 1, 0) for i in range(4)),
        *(_example(Change.WORSE, f"Where is my card, the {i}th time?", 2, 0, 2) for i in range(3)),
        *(_example(Change.STILL_WRONG, f"It does not work, card {i}.", 0, 2, 1) for i in range(3)),
    ),
    counts=(
        (Change.BETTER, 325),
        (Change.WORSE, 4),
        (Change.STILL_WRONG, 73),
        (Change.STILL_RIGHT, 98),
    ),
    recommended=tuple(
        Confusion(true=true, predicted=taken, rows=rows)
        for true, taken, rows in ((0, 0, 140), (0, 2, 30), (1, 1, 150), (2, 2, 133), (2, 0, 47))
    ),
    base=tuple(Confusion(true=true, predicted=0, rows=rows) for true, rows in ((0, 170), (1, 150), (2, 180))),
)
PACKS = (
    PackSpan(21.0, 250.0, 8.0, str(Stage.RANK)),
    PackSpan(262.0, 400.0, 5.0, str(Stage.ALPHA)),
    PackSpan(410.0, 430.0, 2.0, str(Stage.FINAL)),
)


def loss(values: HyperParameters, seed: int) -> float:
    """A bowl around each rank's own learning rate, with seed noise."""
    centre = BEST_RATE.get(values.r, 1e-3) * (values.batch_size / 16) ** 0.5 * (values.scaling / 2) ** -0.6
    bowl = 0.15 * abs(log10(values.learning_rate / centre)) ** 2.2
    noise = 0.003 * float(np.random.default_rng([seed, values.r, values.batch_size]).normal())
    return FLOOR.get(values.r, 0.17) + bowl + noise


def make_trial(
    stage: Stage = Stage.RANK,
    *,
    seed: int = 0,
    fraction: float = 1.0,
    state: TrialState = TrialState.COMPLETE,
    **values: float,
) -> TrialResult:
    """A result with a curve and per-row values that agree with its NLL."""
    facts: dict[str, float] = {"r": 8, "learning_rate": 1e-3, "batch_size": 16, "epochs": 3} | values
    facts.setdefault("lora_alpha", 2 * facts["r"])
    hyper_parameters = HyperParameters(**facts)  # type: ignore[arg-type]
    trial = Trial(hyper_parameters=hyper_parameters, seed=seed, fraction=fraction, stage=stage)
    if state is TrialState.DIVERGED:
        return TrialResult(asked=trial, trial=trial, state=state, message="loss is NaN", cost=0.1, seconds=2)
    nll = loss(hyper_parameters, seed)
    rows = nll * WEIGHTS * np.random.default_rng(seed).gamma(0.8, 1, ROWS)
    rows *= nll * WEIGHTS.sum() / rows.sum()
    accuracy = max(0.0, 1 - 0.9 * nll)
    hits = (np.arange(ROWS) < round(accuracy * ROWS)).astype(np.float64)
    curve = tuple(
        CurvePoint(
            step=45 * part,
            fraction=part / 8,
            train_nll=nll * (0.9 + 2.4 / part**1.3),
            validation_nll=nll * (1 + 1.9 * (1 / part - 1 / 8)),
        )
        for part in range(1, 9)
    )
    return TrialResult(
        asked=trial,
        trial=trial,
        state=state,
        nll=nll,
        train_nll=nll * 0.93,
        metrics={"nll": nll, "accuracy": hits.mean(), "f1": hits.mean() * 0.96},
        curve=curve,
        example_nll=rows,
        example_scores={"accuracy": hits},
        trained_tokens=round(180_000 * fraction),
        steps=360,
        cost=1.02 * fraction,
        seconds=31.0 * fraction,
    )


def search_results() -> list[TrialResult]:
    """The trials of the search, all stages."""
    found = [make_trial(r=rank, learning_rate=rate, fraction=0.25) for rank in FLOOR for rate in RATES]
    found.append(make_trial(r=32, learning_rate=3e-2, fraction=0.25, state=TrialState.DIVERGED))
    found += [
        make_trial(r=rank, learning_rate=rate, seed=seed)
        for rank in FLOOR
        for rate in RATES
        for seed in ((1, 2) if rate == OWN_RATE[rank] else (1,))
    ]
    found += [
        make_trial(Stage.BATCH, learning_rate=rate, batch_size=size, seed=1)
        for size in (4, 8, 32)
        for rate in RATES
        if not (size == 4 and rate == 3e-3)
    ]
    found.append(make_trial(Stage.BATCH, learning_rate=3e-3, batch_size=4, seed=1, state=TrialState.DIVERGED))
    found += [make_trial(Stage.ALPHA, lora_alpha=8 * multiple, seed=1) for multiple in (1, 1.5, 3)]
    return found


def make_facts(**changes: object) -> RunFacts:
    """A finished run."""
    recipe = default_recipe(epochs=3)
    final = [
        make_trial(Stage.FINAL, seed=0),
        make_trial(Stage.FINAL, seed=0, r=16, lora_alpha=32, learning_rate=recipe.learning_rate),
    ]
    results = (*search_results(), *final)
    facts: dict[str, object] = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "data": "data/banking77/train.csv",
        "directory": "runs/mine",
        "strategy": "evidence",
        "metric": "nll",
        "margin": 0.005,
        "budget": "auto",
        "seed": 0,
        "profile": DataProfile(
            shape="classification",
            rows=2000,
            validation_rows=ROWS,
            test_rows=500,
            tokens=63_000,
            supervised_tokens=11_400,
            length_mean=31.5,
            length_p50=28,
            length_p95=58,
            length_max=64,
            max_length=64,
            labels=LABELS,
            label_counts=(700, 640, 660),
            duplicates_removed=3,
        ),
        "parameters_per_rank": 152_640,
        "adapter_parameters": 8 * 152_640,
        "plan": SearchPlan(
            stages=(
                PlannedStage(name=str(Stage.RANK), question="?", trials=20, cost=14.0, packs=3, seconds=450),
                PlannedStage(name=str(Stage.BATCH), question="?", trials=9, cost=9.2, packs=2, seconds=280),
                PlannedStage(name=str(Stage.ALPHA), question="?", trials=3, cost=3.1, packs=1, seconds=95),
            ),
            dropped=(
                "Ranks 1, 4, 16 and 64 were left out to fit the budget.",
                "Regularisation is searched only where over-fitting shows.",
            ),
        ),
        "results": results,
        "decision": Decision(
            hyper_parameters=OURS,
            settled=True,
            evidence=(
                Evidence(
                    claim="rank 8 is non-inferior to rank 32",
                    value=0.0021,
                    unit="nats",
                    interval=(-inf, 0.0043),
                    margin=0.005,
                    holds=True,
                ),
                Evidence(
                    claim="rank 2 is non-inferior to rank 32",
                    value=0.0268,
                    unit="nats",
                    interval=(0.0201, 0.0335),
                    margin=0.005,
                    holds=False,
                ),
                Evidence(claim="the learning rate's bracket is closed at every rank", holds=True),
                Evidence(claim="ranks 1, 4, 16 and 64 were not tried, to fit the budget"),
            ),
            stages=(
                StageSummary(
                    name=str(Stage.RANK),
                    question="Which rank?",
                    answer="rank 8",
                    trials=21,
                    diverged=1,
                    cost=14,
                ),
            ),
        ),
        "recommended": ModelScores(
            validation={"nll": 0.1662, "accuracy": 0.8511, "f1": 0.847},
            test={"nll": 0.1701, "accuracy": 0.846, "f1": 0.841},
        ),
        "default_recipe": ModelScores(
            validation={"nll": 0.2213, "accuracy": 0.792, "f1": 0.783},
            test={"nll": 0.2239, "accuracy": 0.788, "f1": 0.779},
        ),
        "base_model": ModelScores(
            validation={"nll": 2.91, "accuracy": 0.212, "f1": 0.154},
            test={"nll": 2.94, "accuracy": 0.204, "f1": 0.15},
        ),
        "gains": (
            Gain(over="default recipe", split="test", metric="nll", value=0.0538, interval=(0.041, 0.0666)),
            Gain(over="default recipe", split="test", metric="accuracy", value=5.8, interval=(2.9, 8.7)),
            Gain(over="base model", split="test", metric="nll", value=2.77, interval=(2.61, 2.93)),
        ),
        "cost": RunCost(
            seconds=934.0,
            predicted_seconds=885.0,
            predicted_bytes=1_900_000_000,
            measured_bytes=1_720_000_000,
            sequential_seconds=2410.0,
            packs=PACKS,
        ),
        "validation_weights": WEIGHTS,
        "diagnoses": DIAGNOSES,
        "sensitivity": SENSITIVITY,
        "versions": {"loratune": "0.1.0", "torch": "2.13", "transformers": "5.23", "peft": "0.21.2"},
        "notes": (),
        "held_out": HELD_OUT,
    }
    return RunFacts(**(facts | changes))  # type: ignore[arg-type]
