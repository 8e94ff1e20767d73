"""Whether the model has an embedding for every token of the rows. Knows tables, not models."""

from typing import Protocol

from loratune.data.prepare import PreparedData
from loratune.errors import DataError


class Names(Protocol):
    """What is used of a transformers tokenizer."""

    def convert_ids_to_tokens(self, ids: int) -> str | list[str]:
        """A token's own spelling."""


def check_embeddings(data: PreparedData, embeddings: int, tokenizer: Names) -> None:
    """Raise `DataError` where rows hold tokens that were added to the tokenizer and not to the model."""
    tables = (data.train, data.validation, data.test)
    largest = max(int(table.tokens.max(initial=0)) for table in tables)
    if largest >= embeddings:
        raise DataError(
            f"the rows hold token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), but the model has "
            f"embeddings for 0 to {embeddings - 1} only; resize them (model.resize_token_embeddings("
            "len(tokenizer))) and save the model, or take the token out of the rows."
        )
