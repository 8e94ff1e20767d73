"""Facts as rows of text, shared by the terminal and the HTML page. Knows no markup."""

from math import isfinite

from loratune.reporting.facts import RunFacts
from loratune.reporting.opponent import OPPONENT, fair_opponent
from loratune.reporting.wording import count, interval, number, rate
from loratune.values import ALL_LINEAR, Evidence


def value_tiles(facts: RunFacts) -> list[tuple[str, str, bool]]:
    """(name, value, wide) of every recommended hyper-parameter."""
    values = facts.decision.hyper_parameters
    targets = values.target_modules
    ranks = [rank for _, rank in values.rank_pattern]
    by_layer = f" ({min(ranks)} to {max(ranks)} by layer)" if ranks else ""
    return [
        ("r", f"{values.r}{by_layer}", bool(ranks)),
        ("lora_alpha", f"{values.lora_alpha:g}", False),
        ("learning_rate", rate(values.learning_rate), False),
        ("batch_size", str(values.batch_size), False),
        ("epochs", f"{values.epochs:g}", False),
        ("lora_dropout", f"{values.lora_dropout:g}", False),
        ("weight_decay", f"{values.weight_decay:g}", False),
        ("warmup_ratio", f"{values.warmup_ratio:g}", False),
        ("max_length", str(facts.profile.max_length), False),
        ("trainable parameters", count(facts.adapter_parameters), False),
        ("target_modules", "all linear layers" if targets == ALL_LINEAR else ", ".join(targets), True),
    ]


def score_table(facts: RunFacts) -> tuple[list[str], list[tuple[str, list[str], bool]]]:
    """Heads, then (model, cells, whether it is ours): every metric that was measured, by split."""
    opponent = fair_opponent(facts)
    models = (
        ("base model", facts.base_model, False),
        ("default recipe", facts.default_recipe, False),
        *(((OPPONENT, opponent.scores, False),) if opponent.best else ()),
        ("recommended", facts.recommended, True),
    )
    columns = [
        (split, info)
        for split in ("validation", "test")
        for info in facts.told_metrics
        if any(info.name in getattr(scores, split) for _, scores, _ in models)
    ]
    heads = [f"{split} {info.title}" for split, info in columns]
    rows = [
        (title, [info.text(getattr(scores, split).get(info.name)) for split, info in columns], ours)
        for title, scores, ours in models
    ]
    return heads, rows


def evidence_number(evidence: Evidence) -> str:
    """`0.001 nats, 95 % [-0.002, 0.004], margin 0.005`; empty for a note."""
    parts = []
    if evidence.value is not None and isfinite(evidence.value):
        parts.append(f"{number(evidence.value, 3)} {evidence.unit}".strip())
    if bounds := interval(evidence.interval):
        parts.append(f"95 % {bounds}")
    if evidence.margin is not None:
        parts.append(f"margin {evidence.margin:g}")
    return ", ".join(parts)
