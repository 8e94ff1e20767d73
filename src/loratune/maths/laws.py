"""Closed-form priors: learning rate, rank and batch size before anything has been trained.

Each law states its formula, units, source and range of validity. They know nothing of trials:
measuring replaces them. Sources named §n are sections of the project's survey; its figures are repeated here.
"""

from dataclasses import dataclass
from math import exp, floor, log2

LEVEL = 3.5e-4
RANK_EXPONENT = 0.18
ALPHA_EXPONENT = -0.80
BATCH_EXPONENT = 0.5
EXAMPLES_EXPONENT = -0.26
WIDTH_EXPONENT = 0.4
LOG_RATE_SD = 0.55
"""Of the natural logarithm: two thirds of measured optima lie within a factor 1.7."""

SMALL_WIDTH = 3072
FAMILY_RATE = {"gemma": 2.5, "gemma2": 2.5, "gemma3": 2.5, "gemma3_text": 2.5}
SMALL_LLAMA_RATE = 1.8

TOLERATED_EXCESS = 0.5
"""Per cent of NLL above the curve's limit that the rank law tolerates."""
FAMILY_KAPPA = {"llama": 0.62, "qwen3": 0.25, "qwen3_5": 0.41}
UNKNOWN_KAPPA = 0.45
RANK_SHRINKAGE = 0.35
RANK_UNCERTAINTY = 16.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """A value with its interval and its source."""

    value: float
    low: float
    high: float
    reason: str


def learning_rate_law(
    *,
    r: int,
    lora_alpha: float,
    batch_size: int,
    rows: float,
    epochs: float,
    hidden_size: int = 0,
    family: str = "",
) -> Prior:
    """Peak learning rate of AdamW for LoRA with PEFT's scaling lora_alpha / r, linear decay.

    η = 3.5e-4 · (r/16)^0.18 · (alpha/32)^-0.80 · (B/128)^0.5 · (rows·epochs/1e5)^-0.26 · (3000/H)^0.4 · k

    Level and rank slope at constant alpha: 95 curves of the public Tulu-3 sweep (1B to 671B, r 1…128).
    Batch and examples: Learning Rate Matters (2602.04998) and Adam's square-root rule; on banking77 with
    SmolLM2-135M the batch exponent measured from 4 to 64 rows was 0.54.
    Alpha: refitted. Published slopes in alpha are -0.5 (muA, 2602.06204) and -0.59 (Gemma-3-1B), which give
    r^-0.37 along alpha = 2r; along that line Gemma measured r^-0.41 (alpha = r), SmolLM2 r^-0.54 to r^-0.70
    (by quadratic or by grid cell), and a one-step argument gives r^-0.82. -0.80 puts the line at r^-0.62.
    Width: muA says 0.5, the sweep (H 2048…8192) 0.25; 0.4 also reaches the optimum at H = 576.
    Family (k): Gemma wants 2.7–4 times, Llamas of up to 3B about twice the rate of others.

    Args:
        r, lora_alpha, batch_size: as in `HyperParameters`; rows and epochs: of the run (a trial on a tenth
            of the rows counts a tenth). hidden_size 0 and an unknown family leave their factor out.

    Valid for r 1…512, full width of transformers with AdamW and no LoRA+ ratio; for reinforcement learning
    divide by 10 to 20. The interval is 95 % of a log-normal with sd 0.55, 0.75 where the width is unknown.
    """
    family_factor = FAMILY_RATE.get(family, 1.0)
    if family == "llama" and 0 < hidden_size <= SMALL_WIDTH:
        family_factor = SMALL_LLAMA_RATE
    value = (
        LEVEL
        * (r / 16) ** RANK_EXPONENT
        * (lora_alpha / 32) ** ALPHA_EXPONENT
        * (max(batch_size, 4) / 128) ** BATCH_EXPONENT
        * (max(rows * epochs, 100.0) / 1e5) ** EXAMPLES_EXPONENT
        * ((3000 / hidden_size) ** WIDTH_EXPONENT if hidden_size else 1.0)
        * family_factor
    )
    value = min(max(value, 1e-5), 2e-2)
    sd = LOG_RATE_SD if hidden_size else LOG_RATE_SD + 0.2
    width = f"hidden size {hidden_size}" if hidden_size else "unknown width"
    return Prior(
        value=value,
        low=value * exp(-1.96 * sd),
        high=value * exp(1.96 * sd),
        reason=(
            f"law in rank {r}, alpha {lora_alpha:g}, batch {batch_size}, {rows * epochs:.0f} examples, "
            f"{width}, family {family or 'unknown'} (factor {family_factor:g}); fitted on published sweeps, "
            "alpha slope on measured tables"
        ),
    )


def rank_law(
    *,
    supervised_tokens: int,
    parameters_per_rank: int,
    family: str = "",
    labels: int = 0,
    rows: int = 0,
    hidden_size: int = 0,
) -> Prior:
    """The rank that leaves about half a per cent of NLL on the table.

    Text: r0 = (T/4.5e7)·(4e7/P1)·(1.7 κ/0.5)^(1/0.7), T unique supervised tokens, P1 LoRA parameters at
    rank 1, κ a family constant (per cent; §10.2, fitted on the Tulu-3 sweep, T assumed linear). On a 135M model
    the raw law was 50 times too low both on banking77 (rank 4 suffices) and on GSM8K (128 beats 16), so it
    is shrunk towards 16: 16·(r0/16)^0.35, with a factor 16 of uncertainty either way. Linear in T is an
    assumption: where the interval is this wide, measure. Without tokens or parameters (0) it says 16.

    Labels: the smallest r with r·(d_in + d_out) > 1.35·K·N (2605.03724), clipped to [1, 16], is enough for
    the optimisation to have no bad minima; banking77 (K 77, N 2000) says 16 and measured 4, hence the
    geometric mean with the text law, and a factor 4 below, 16 above.
    """
    kappa = FAMILY_KAPPA.get(family, UNKNOWN_KAPPA)
    capacity = 16.0
    if supervised_tokens > 0 and parameters_per_rank > 0:
        load = supervised_tokens / 4.5e7 * 4e7 / parameters_per_rank
        capacity = load * (1.7 * kappa / TOLERATED_EXCESS) ** (1 / 0.7)
    value = 16 * (capacity / 16) ** RANK_SHRINKAGE
    low, high = RANK_UNCERTAINTY, RANK_UNCERTAINTY
    reason = (
        f"{supervised_tokens} supervised tokens against {parameters_per_rank} parameters per unit of rank "
        f"(capacity law {capacity:.2g}, shrunk towards 16: on small models it missed by a factor 50)"
    )
    if labels > 1 and hidden_size and rows:
        separable = min(max(1.35 * labels * rows / (2 * hidden_size), 1.0), 16.0)
        value = (value * separable) ** 0.5
        low = 4.0
        reason += f"; {labels} labels x {rows} rows need at most {separable:.0f}"
    value = min(max(value, 1.0), 256.0)
    return Prior(value=value, low=max(value / low, 1.0), high=min(value * high, 512.0), reason=reason)


def batch_size_law(*, rows: int, epochs: float) -> Prior:
    """Rows per optimiser step: a power of two that leaves at least 300 steps where the data allows.

    B = 16 below 20,000 rows, 32 below 100,000, 64 above (§5: small batches use fixed data best, and the
    optimum grows with the rows), at most rows·epochs/300, at least 8 and never fewer than 10 steps.
    On banking77 (2,000 rows, 3 epochs) 8 and 16 tied, 4 and 64 lost 5–10 % of NLL.
    """
    ceiling = 16 if rows < 20_000 else 32 if rows < 100_000 else 64
    examples = max(rows * epochs, 1.0)
    wanted = min(float(ceiling), max(examples / 300, 8.0), max(examples / 10, 1.0))
    value = float(2 ** floor(log2(max(wanted, 1.0))))
    return Prior(
        value=value,
        low=max(value / 4, 1.0),
        high=value * 4,
        reason=f"{rows} rows for {epochs:g} epochs: about {examples / value:.0f} steps of {value:.0f} rows",
    )
