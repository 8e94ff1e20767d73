"""What fits on which device, in sentences: the lines under the table of `loratune memory`."""

from collections.abc import Iterator

from loratune.costs.advice import MemoryAnswer
from loratune.costs.limits import CARDS, Card
from loratune.reporting.wording import count, size


def fitting_lines(answer: MemoryAnswer) -> Iterator[str]:
    """The card for what was asked, what fits here instead, and the largest of each that fits."""
    yield from _advice(answer)
    yield from _limits_lines(answer)


def _advice(answer: MemoryAnswer) -> Iterator[str]:
    """The card for what was asked, and what fits here instead."""
    if answer.card is not None:
        yield f"The smallest common card on which it fits: {_named(answer.card)}."
    else:
        yield f"It fits on no single common card; the largest is {_named(CARDS[-1])}."
    for change in answer.changes:
        card = "" if change.card is None else f", on a GPU from {change.card.name} on"
        yield f"It fits with {change.options}: {size(change.total)}{card}."


def _named(card: Card) -> str:
    return f"{card.name}, of which a process sees {size(card.bytes)}"


def _limits_lines(answer: MemoryAnswer) -> list[str]:
    fitting = [
        text
        for limit, text in (
            (answer.largest_rank, f"rank {answer.largest_rank}"),
            (answer.largest_pack, f"{answer.largest_pack} such trials side by side"),
            (
                answer.largest_batch,
                f"{answer.largest_batch} rows of one trial at once (larger batches are cut into micro-batches)",
            ),
            (answer.largest_micro_batch, f"micro-batches of {count(answer.largest_micro_batch)} tokens"),
        )
        if limit
    ]
    if not fitting:
        return ["Not even one row at rank 1 fits with the other options as given."]
    return [
        f"The figures are what is needed on a {'GPU' if answer.device == 'cuda' else 'CPU'}: micro-batches of one row, "
        f"{count(answer.micro_batch_tokens)} tokens. More memory is used for larger ones, which are faster.",
        "What fits with room to spare, each with the other options as given and micro-batches as small as one row: "
        f"{'; '.join(fitting)}.",
    ]
