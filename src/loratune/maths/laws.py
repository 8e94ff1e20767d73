"""Closed-form priors: learning rate, rank, alpha, batch size and epochs before anything has been trained.

Each law is a small function that states its formula, units, source and range of validity. They know nothing of
trials or tables: measuring corrects them (`maths.transfer`). Sources named §n are sections of the project's survey;
its figures are repeated here. All exponents are of AdamW with linear decay and PEFT's scaling lora_alpha / r.
"""

from dataclasses import dataclass
from math import exp, floor, log2
from typing import Literal

from loratune.values import NoiseScale, TaskKind

LEVEL = 3.5e-4
"""Learning rate at r 16, alpha 32, batch 128, 100,000 examples and hidden size 3000 (§0: 95 curves of Tulu-3)."""
RANK_EXPONENT = 0.18
ALPHA_EXPONENT = -0.68
BATCH_EXPONENT = 0.4
EXAMPLES_EXPONENT = -0.18
WIDTH_EXPONENT = 0.45
"""These three refitted together on 2026-11-30 (`bench/rate_exponents.py`): between tasks they change at once."""
LOG_RATE_SD = 0.55
"""Standard deviation of the natural logarithm: two thirds of measured optima lie within a factor 1.7."""
SLOWEST_RATE, FASTEST_RATE = 1e-5, 2e-2

SMALL_WIDTH = 3072
FAMILY_RATE = {"gemma": 2.5, "gemma2": 2.5, "gemma3": 2.5, "gemma3_text": 2.5}
SMALL_LLAMA_RATE = 1.8

TOLERATED_EXCESS = 0.5
"""Per cent of NLL above the curve's limit that the rank law tolerates."""
FAMILY_KAPPA = {"llama": 0.62, "qwen3": 0.25, "qwen3_5": 0.41}
UNKNOWN_KAPPA = 0.45
RANK_SHRINKAGE = 0.35
RANK_UNCERTAINTY = 16.0

ALPHA_RATIO = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """A value with its interval and its source."""

    value: float
    low: float
    high: float
    reason: str


def rate_by_rank(r: float) -> float:
    """Factor on the learning rate at constant alpha: (r/16)^0.18.

    Source: median of 21 models of the Tulu-3 sweep with interior optima (range of the exponent .04 to .29);
    "LoRA Without Regret" has less than 2 from r 4 to 512, SmolLM2-135M 0.06 on banking77 and on GSM8K (r 2 to 128,
    docs/evidence.md). Valid for r 1 to 512.
    """
    return float((r / 16) ** RANK_EXPONENT)


def rate_by_alpha(lora_alpha: float) -> float:
    """Factor on the learning rate at constant rank: (alpha/32)^-0.68; for rsLoRA give alpha·√r.

    Refitted along alpha in proportion to r, where it gives r^-0.50: five datasets measured -0.44 to -0.55, mean
    -0.495 with a standard error of 0.02 (banking77, GSM8K, Friends and Reuters R8 with SmolLM2-135M, docs/evidence.md;
    MetaMath with Gemma-3-1B), as muA has it (2602.06204). At constant rank -0.45 to -0.55 were measured, the mean of
    two datasets -0.52 (-0.72 to -0.31). Valid where the measurements are: alpha 1 to 256.
    """
    return float((lora_alpha / 32) ** ALPHA_EXPONENT)


def rate_by_batch(batch_size: float) -> float:
    """Factor on the learning rate: (B/128)^0.4, B rows per step, no smaller than 4.

    Source: Gemma-3-1B .83 from 16 to 128 (2602.04998), Adam's square root (Tinker) .5, banking77 with SmolLM2-135M
    .54 and .33 (4 to 64), small-batch theory .16 with beta2 rescaled; with all tasks' levels .37 (.18 to .56).
    Unsettled: bracket again where B changes by more than 2.
    """
    return float((max(batch_size, 4.0) / 128) ** BATCH_EXPONENT)


def rate_by_examples(examples: float) -> float:
    """Factor on the learning rate: (N/1e5)^-0.18, N rows times epochs, no fewer than 100.

    Source: with all tasks' levels -.18 (-.28 to -.08). Where one task was measured at several sizes: Gemma-3-1B -.26
    (5,000 to 395,000 MetaMath rows, 2602.04998), SmolLM2-135M from 500 to 2,000 rows -.20, -.16, -.01 and +.11
    (docs/evidence.md), together -.13 (-.29 to +.04). So a tenth of the rows wants 1.5 times as much, and may want as
    little as 0.9 times.
    """
    return float((max(examples, 100.0) / 1e5) ** EXAMPLES_EXPONENT)


def rate_by_width(hidden_size: int) -> float:
    """Factor on the learning rate: (3000/H)^0.45, H the hidden size; 1 where it is not known (0).

    Source: muA says 0.5, the Tulu-3 sweep (H 2048 to 8192) 0.25; with all tasks' levels (H 576 among
    them) .46 (.28 to .64).
    """
    return float((3000 / hidden_size) ** WIDTH_EXPONENT) if hidden_size else 1.0


def rate_by_family(family: str, hidden_size: int = 0) -> float:
    """Factor on the learning rate by transformers' `model_type`: Gemma 2.5, Llama up to 3B 1.8, others 1.

    Source: Gemma-3-1B's optima lie 2.7 to 4 times above the law, those of Llama 1B and 3B about twice (§8, §10).
    """
    if family == "llama" and 0 < hidden_size <= SMALL_WIDTH:
        return SMALL_LLAMA_RATE
    return FAMILY_RATE.get(family, 1.0)


def learning_rate_law(
    *,
    r: float,
    lora_alpha: float,
    batch_size: float,
    rows: float,
    epochs: float,
    hidden_size: int = 0,
    family: str = "",
) -> Prior:
    """Peak learning rate: 3.5e-4 times the factors of rank, alpha, batch, examples, width and family.

    Args:
        r, lora_alpha, batch_size: as in `HyperParameters`; rows and epochs: of the run (a trial on a tenth
            of the rows counts a tenth). hidden_size 0 and an unknown family leave their factor out.

    Clipped to [1e-5, 2e-2]. For reinforcement learning divide by 10 to 20. The interval is 95 % of a
    log-normal with sd 0.55, 0.75 where the width is unknown.
    """
    family_factor = rate_by_family(family, hidden_size)
    value = (
        LEVEL
        * rate_by_rank(r)
        * rate_by_alpha(lora_alpha)
        * rate_by_batch(batch_size)
        * rate_by_examples(rows * epochs)
        * rate_by_width(hidden_size)
        * family_factor
    )
    value = min(max(value, SLOWEST_RATE), FASTEST_RATE)
    sd = LOG_RATE_SD if hidden_size else LOG_RATE_SD + 0.2
    width = f"hidden size {hidden_size}" if hidden_size else "unknown width"
    return Prior(
        value=value,
        low=value * exp(-1.96 * sd),
        high=value * exp(1.96 * sd),
        reason=(
            f"law in rank {r:g}, alpha {lora_alpha:g}, batch {batch_size:g}, {rows * epochs:.0f} examples, "
            f"{width}, family {family or 'unknown'} (factor {family_factor:g}); fitted on published sweeps, "
            "alpha slope on measured tables"
        ),
    )


def capacity_law(*, supervised_tokens: float, parameters_per_rank: float, family: str = "") -> float:
    """Rank that leaves half a per cent of NLL: (T/4.5e7)·(4e7/P1)·(1.7 κ/0.5)^(1/0.7).

    T unique supervised tokens, P1 LoRA parameters at rank 1, κ a family constant in per cent (§10.2; fitted on
    the Tulu-3 sweep, where T is one figure: that it is linear in T is an assumption, and on 200,000 tokens and
    135M parameters it is 50 times too low). Valid near 4e7 tokens, for dense models.
    """
    kappa = FAMILY_KAPPA.get(family.removesuffix("_text"), UNKNOWN_KAPPA)
    load = supervised_tokens / 4.5e7 * 4e7 / parameters_per_rank
    return float(load * (1.7 * kappa / TOLERATED_EXCESS) ** (1 / 0.7))


def separable_rank(*, labels: int, rows: float, hidden_size: int) -> float:
    """Rank at which r·(d_in + d_out) > 1.35·K·N: no bad minima for N rows of K labels, clipped to [1, 16].

    Source: 2605.03724, for one layer of hidden_size inputs and outputs. Sufficient, not necessary: banking77
    (K 77, N 2000) gets 16 and measured 4.
    """
    return min(max(1.35 * labels * rows / (2 * hidden_size), 1.0), 16.0)


def rank_law(
    *,
    supervised_tokens: int,
    parameters_per_rank: int,
    family: str = "",
    labels: int = 0,
    rows: float = 0,
    hidden_size: int = 0,
) -> Prior:
    """The capacity law shrunk towards 16: 16·(r0/16)^0.35, with a factor 16 of uncertainty either way.

    With labels, the geometric mean of that and `separable_rank`, and a factor 4 below, 16 above. Without
    tokens or parameters (0) it says 16. Where the interval is this wide, measure.
    """
    capacity = 16.0
    if supervised_tokens > 0 and parameters_per_rank > 0:
        capacity = capacity_law(
            supervised_tokens=supervised_tokens, parameters_per_rank=parameters_per_rank, family=family
        )
    value = 16 * (capacity / 16) ** RANK_SHRINKAGE
    low, high = RANK_UNCERTAINTY, RANK_UNCERTAINTY
    reason = (
        f"{supervised_tokens} supervised tokens against {parameters_per_rank} parameters per unit of rank "
        f"(capacity law {capacity:.2g}, shrunk towards 16: on small models it missed by a factor 50)"
    )
    if labels > 1 and hidden_size and rows:
        separable = separable_rank(labels=labels, rows=rows, hidden_size=hidden_size)
        value = (value * separable) ** 0.5
        low = 4.0
        reason += f"; {labels} labels x {rows:.0f} rows need at most {separable:.0f}"
    value = min(max(value, 1.0), 256.0)
    return Prior(value=value, low=max(value / low, 1.0), high=min(value * high, 512.0), reason=reason)


def alpha_law(r: float) -> Prior:
    """alpha = 2r, from r to 3r: a convention, since alpha acts through the learning rate (`rate_by_alpha`)."""
    return Prior(
        value=ALPHA_RATIO * r,
        low=r,
        high=3 * r,
        reason="2r by convention; alpha acts through the learning rate, and is flat where that is tuned",
    )


def batch_size_law(*, rows: float, epochs: float, noise_scale: float | None = None) -> Prior:
    """Rows per optimiser step: a power of two that leaves at least 300 steps where the data allows.

    B = 16 below 20,000 rows, 32 below 100,000, 64 above (§5: small batches use fixed data best, and the
    optimum grows with the rows), at most rows·epochs/300, at least 8 and never fewer than 10 steps.
    On banking77 (2,000 rows, 3 epochs) 8 and 16 tied, 4 and 64 lost 5–10 % of NLL.

    With a measured gradient noise scale Bₙ (rows): min(Bₙ/4, rows·epochs/300, 128) instead of the rule by
    rows, as data efficiency falls by 1 + B/Bₙ (McCandlish, 1812.06162).
    """
    ceiling = 16.0 if rows < 20_000 else 32.0 if rows < 100_000 else 64.0
    if noise_scale is not None:
        ceiling = min(max(noise_scale / 4, 1.0), 128.0)
    examples = max(rows * epochs, 1.0)
    wanted = min(max(min(ceiling, examples / 300), 8.0), max(examples / 10, 1.0))
    value = float(2 ** floor(log2(max(wanted, 1.0))))
    steps = f"about {examples / value:.0f} steps of {value:.0f} rows"
    measured = "" if noise_scale is None else f"gradient noise scale {noise_scale:.0f} rows; "
    return Prior(
        value=value,
        low=max(value / 4, 1.0),
        high=value * 4,
        reason=f"{measured}{rows:.0f} rows for {epochs:g} epochs: {steps}",
    )


def useful_batches(*, rows: float, epochs: float, noise: NoiseScale) -> tuple[float, float]:
    """The batch sizes worth comparing, by the ends of a measured noise scale's interval.

    The scale grows as the loss falls (§5) and is measured early, when it bounds the later one from below: so the upper
    end is at least twice the law's value, and not below what the law says without it. On banking77 24 rows were
    measured over 32 steps (18 to 34; over the first steps 4.5), hence 8 to 16; 8 and 16 tie there, 4 and 32 are worse.
    """
    low, value, high, unmeasured = (
        batch_size_law(rows=rows, epochs=epochs, noise_scale=scale).value
        for scale in (noise.low, noise.rows, noise.high, None)
    )
    return low, max(high, 2 * value, unmeasured)


EPOCH_CHOICES = (1.0, 2.0, 3.0, 5.0)
"""Passes over the rows that a search tries: published recipes take 1 to 3, over-fitting begins to show by 5."""


def epochs_law(rows: float) -> Prior:
    """Three passes below 5,000 rows, two below 20,000, else one (§9: published recipes take 1 to 3)."""
    value = 3.0 if rows < 5_000 else 2.0 if rows < 20_000 else 1.0
    return Prior(
        value=value,
        low=1.0,
        high=3.0,
        reason=f"{rows:.0f} rows; published recipes train 1 to 3 epochs and keep the best checkpoint",
    )


def passes(epochs: float | Literal["auto"], rows: float) -> float:
    """Passes over the training rows: as given, or what the law says of `rows` rows."""
    return epochs_law(rows).value if epochs == "auto" else epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class GuideRanges:
    """What the guide says; both ends included."""

    ranks: tuple[int, int]
    open_above: bool = False
    """Whether it says "and more"."""
    learning_rates: tuple[float, float] = (1e-4, 5e-3)
    """Its grid, the same for every kind."""
    batch_sizes: tuple[int, int] = (4, 32)


GUIDE: dict[TaskKind, GuideRanges] = {
    TaskKind.CLASSIFICATION: GuideRanges(ranks=(4, 8)),
    TaskKind.EXTRACTION: GuideRanges(ranks=(4, 8)),
    TaskKind.INSTRUCTION: GuideRanges(ranks=(8, 16)),
    TaskKind.DOMAIN_TEXT: GuideRanges(ranks=(16, 32)),
    TaskKind.REASONING: GuideRanges(ranks=(32, 64), open_above=True),
    TaskKind.TRANSLATION: GuideRanges(ranks=(32, 64), open_above=True),
}
