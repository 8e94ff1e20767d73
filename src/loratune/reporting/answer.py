"""The verdict in words for who has to decide: how good, against what, how sure, at what price, what next."""

from __future__ import annotations

from shlex import quote

from loratune.metrics import BUILT_IN, NLL
from loratune.reporting.facts import RunFacts
from loratune.reporting.opponent import OPPONENT, fair_opponent
from loratune.reporting.wording import count, rate
from loratune.values import Problem, Stage
from loratune.values.tasks import TASKS


def verdict(facts: RunFacts) -> list[str]:
    """Sentences, the most telling first: rows right where rows are right or wrong, else the loss per token."""
    shown = _shown_metric(facts)
    if shown is None or _nothing_right(facts, shown):
        return _losses(facts)
    split = "test" if shown in facts.recommended.test else "validation"
    rows = facts.profile.test_rows if split == "test" else facts.profile.validation_rows
    ours, base, recipe = (
        _right(getattr(scores, split).get(shown), rows)
        for scores in (facts.recommended, facts.base_model, facts.default_recipe)
    )
    others = [
        f"the untrained model {base}" if base else "",
        _majority(facts, rows),
        f"the default recipe {recipe}" if recipe else "",
    ]
    right = "pairs with the chosen answer preferred" if learns_pairs(facts) else "rows right"
    first = f"{ours} of {rows} {split} {right}; {', '.join(filter(None, others))}"
    theirs = _right(fair_opponent(facts).scores.validation.get(shown), facts.profile.validation_rows)
    if not theirs:
        return [f"{first}."]
    if split == "validation":
        return [f"{first}; {theirs} by the {OPPONENT}."]
    rows = facts.profile.validation_rows
    mine = _right(facts.recommended.validation.get(shown), rows)
    on_validation = f"On the {rows} validation rows {mine} are right, {theirs} by the {OPPONENT}."
    return [f"{first}.", on_validation]


def _shown_metric(facts: RunFacts) -> str | None:
    """One that counts rows; macro-F1 and the user's own values do not."""
    counting = [metric.name for metric in BUILT_IN.values() if metric.info.counts_rows]
    names = dict.fromkeys((facts.metric, *reversed(counting)))  # labels before exact texts
    measured = {**facts.recommended.validation, **facts.recommended.test}
    return next((name for name in names if name in measured and facts.info(name).counts_rows), None)


def _nothing_right(facts: RunFacts, shown: str) -> bool:
    """Rows of long texts are hardly ever right to the last token, which says nothing of any model."""
    models = (facts.recommended, facts.base_model, facts.default_recipe)
    shares = [scores.get(shown) for each in models for scores in (each.validation, each.test)]
    return shown != facts.metric and not any(shares)


def _right(share: float | None, rows: int) -> str:
    return "" if share is None else f"{share * rows:.0f}"


def _majority(facts: RunFacts, rows: int) -> str:
    """The baseline that always answers the most frequent label, by its share of the training rows."""
    counts = facts.profile.label_counts
    if not counts or not sum(counts):
        return ""
    most = max(range(len(counts)), key=counts.__getitem__)
    return f"always “{facts.profile.labels[most]}” about {rows * counts[most] / sum(counts):.0f}"


def _losses(facts: RunFacts) -> list[str]:
    split = "test" if facts.recommended.test else "validation"
    named = (
        ("the untrained model", facts.base_model),
        ("the default recipe", facts.default_recipe),
    )
    ours = getattr(facts.recommended, split).get(NLL.name)
    if ours is None:
        return []
    others = [
        f"{name} {getattr(scores, split)[NLL.name]:.4f}"
        for name, scores in named
        if NLL.name in getattr(scores, split)
    ]
    if learns_numbers(facts):
        loss = f"Mean squared error of {ours:.4f} of the numbers' variance"
    else:
        loss = f"Loss of {ours:.4f} nats a {_counted(facts)}"
    return [f"{loss} on the {split} rows (lower is better); {', '.join(others)}."]


def _counted(facts: RunFacts) -> str:
    """The unit that the loss is averaged over."""
    return "pair" if learns_pairs(facts) else "row" if head_answers(facts) else "token"


def learns_pairs(facts: RunFacts) -> bool:
    """Whether rows are pairs of a preferred answer and another."""
    objective = "" if facts.training is None else facts.training.objective
    return any(task.has_pairs and objective in task.objectives for task in TASKS.values())


def head_answers(facts: RunFacts) -> bool:
    """Whether a trained head answers for each row, and no text is learnt."""
    return facts.training is not None and facts.training.classifier is not None


def learns_numbers(facts: RunFacts) -> bool:
    """Whether what it answers is a number, whose loss is a squared error."""
    kind = None if facts.training is None else facts.training.classifier
    return kind is not None and kind.problem is Problem.NUMBER


def recipe_sentence(facts: RunFacts) -> str:
    """The default recipe's values and number of steps, as it was run; empty where it was not."""
    ran = next(
        (
            each
            for each in facts.results
            if each.asked.stage is Stage.FINAL and not facts.is_recommended(each.trial.hyper_parameters)
        ),
        None,
    )
    if ran is None:
        return ""
    values = ran.trial.hyper_parameters
    return (
        f"The default recipe: rank {values.r}, alpha {values.lora_alpha:g}, learning rate "
        f"{rate(values.learning_rate)}, batch size {values.batch_size}, {values.epochs:g} epochs; {ran.steps} steps, "
        f"{count(ran.trained_tokens)} tokens."
    )


def exit_sentence(facts: RunFacts) -> str:
    """Why the search ended with its exit code."""
    if facts.stopped:
        return "3: the search was stopped by request; the answer is the best so far."
    if facts.cut_by_clock:
        return "3: the budget's clock cut the search; the answer is the best so far."
    return "0: the search came to its end within the budget."


def next_command(facts: RunFacts) -> str:
    """What to type now: go on where the clock cut, else try the adapter; of a classifier, merge it."""
    folder = quote(facts.directory)
    if facts.cut_by_clock:
        return f"loratune tune --config {folder}/loratune.toml --out {folder} --resume"
    if facts.training is not None and facts.training.classifier is not None:  # it writes no text
        return f"loratune merge {folder} --out {quote(facts.directory.rstrip('/') + '-merged')}"
    return f'loratune generate {folder} "…"'
