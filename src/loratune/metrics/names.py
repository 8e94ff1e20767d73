"""What may be said of metrics before numpy is loaded: the names of those built in, and what an address looks like."""

import re

PREFERENCE_NAMES = ("preference_accuracy", "preference_margin")
"""Metrics of pairs, the usual one first; beside them pairs have only the loss, which compares at one beta only."""
GENERATION_NAMES = ("generated_match", "json_match", "rouge1", "rouge2", "rougeL", "bleu", "chrf")
"""Metrics of text that the model generates."""
BUILT_IN_NAMES = (
    *("nll", "perplexity", "exact_match", "accuracy", "f1", "correlation"),
    *PREFERENCE_NAMES,
    *GENERATION_NAMES,
)
"""All, in the order in which they are shown."""
PREDICTION = "prediction"
"""Key under which a result keeps each row's predicted label."""
REGEX = "regex:"
"""Prefix of a regular expression: its group in the generated text is compared."""
GENERATED = "generated:"
"""Prefix of `package.module:function`: it is given generated text."""
_ADDRESS = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def is_built_in(name: str) -> bool:
    """Whether it is one of those that need no import."""
    return name in BUILT_IN_NAMES


def is_address(name: str) -> bool:
    """Whether it is of the form `package.module:function`, or that after `generated:`."""
    return not name.startswith(REGEX) and _ADDRESS.fullmatch(name.removeprefix(GENERATED)) is not None


def metric_of_pairs(name: str) -> str | None:
    """By which metric preference pairs are compared where the user has named this one; None where they cannot be.

    In place of the default, a loss that compares at one beta only, it is the usual metric of pairs.
    """
    if name in PREFERENCE_NAMES:
        return name
    return PREFERENCE_NAMES[0] if name == BUILT_IN_NAMES[0] else None


def usual_seed_sd(labels: int) -> float:
    """What one seed changes of a final run's NLL, in nats (sd): the geometric mean of the measured tasks of its kind,
    four tables with labels (.005 to .026) and four of texts (.001 to .003; docs/evidence.md)."""
    return 0.011 if labels else 0.0022
