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


def usual_metric(pairs: bool) -> str:
    """What is optimised where the user names nothing; of preference pairs no loss, which compares at one beta only."""
    return PREFERENCE_NAMES[0] if pairs else BUILT_IN_NAMES[0]


def is_of_pairs(name: str) -> bool:
    """Whether it is a metric of preference pairs."""
    return name in PREFERENCE_NAMES


def why_not_of_pairs(name: str) -> str:
    """What pairs lack for a metric that is none of theirs: the end of a sentence that names it."""
    if name == usual_metric(pairs=False):
        return ", a loss that compares at one beta only"
    return ": pairs have no completion to match"


def usual_seed_sd(labels: int) -> float:
    """What one seed changes of a final run's NLL, in nats (sd): the geometric mean of the measured tasks of its kind,
    four tables with labels (.005 to .026) and four of texts (.001 to .003; docs/evidence.md)."""
    return 0.011 if labels else 0.0022
