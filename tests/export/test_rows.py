"""Rows back as text: each shape, and whether a trainer gets the same tokens from it."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from loratune.data.table import TokenTable
from loratune.export.rows import (
    Codec,
    Format,
    Pairs,
    PlainText,
    PromptCompletion,
    Row,
    Segments,
    Tokens,
    Turns,
    rows_of,
)
from tiny import END, byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def codec(tokenizer: PreTrainedTokenizerFast) -> Codec:
    return Codec(tokenizer=tokenizer, beginning=(), end=END)


def row(tokenizer: PreTrainedTokenizerFast, *parts: tuple[bool, str]) -> Row:
    """Learnt or given text, one after the other."""
    tokens: list[int] = []
    learned: list[bool] = []
    for flag, text in parts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        tokens += ids
        learned += [flag] * len(ids)
    learned[0] = False
    return Row(tokens, learned)


ASKED, TOLD = (False, "Ask:"), (True, f" yes{END}")


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        (PromptCompletion(), {"prompt": "Ask:", "completion": f" yes{END}"}),
        (Pairs(), {"prompt": "Ask:", "completion": f" yes{END}"}),
        (Segments(), {"segments": [{"label": False, "text": "Ask:"}, {"label": True, "text": f" yes{END}"}]}),
        (
            Turns(),
            {
                "messages": [
                    {"role": "user", "content": "Ask:"},
                    {"role": "assistant", "content": f" yes{END}"},
                ]
            },
        ),
    ],
)
def test_one_completion(
    shape: Format, values: dict[str, object], tokenizer: PreTrainedTokenizerFast, codec: Codec
) -> None:
    (written,) = shape.write([row(tokenizer, ASKED, TOLD)], codec)
    assert written.values == values
    assert written.exact


def test_several_turns_fit_segments_and_turns_only(tokenizer: PreTrainedTokenizerFast, codec: Codec) -> None:
    rows = [row(tokenizer, ASKED, TOLD, (False, "\nMore:"), (True, f" no{END}"))]
    for shape, holds in ((PromptCompletion(), 0), (Pairs(), 0), (Segments(), 1), (Turns(), 1), (Tokens(), 1)):
        (written,) = shape.write(rows, codec)
        assert (written.exact, written.values is not None) == (bool(holds), bool(holds)), shape.name
    (turns,) = Turns().write(rows, codec)
    assert turns.values is not None
    assert [each["role"] for each in turns.values["messages"]] == ["user", "assistant"] * 2


def test_tokens_hide_what_is_given(tokenizer: PreTrainedTokenizerFast, codec: Codec) -> None:
    given = row(tokenizer, ASKED, TOLD)
    (written,) = Tokens().write([given], codec)
    assert written.values is not None
    assert written.values["input_ids"] == given.tokens
    assert written.values["labels"] == [-100] * 4 + given.tokens[4:]


def test_text_is_text_only_where_all_of_it_is_learnt(
    tokenizer: PreTrainedTokenizerFast, codec: Codec
) -> None:
    whole, part, piece = PlainText().write(
        [row(tokenizer, (True, f"Once{END}")), row(tokenizer, ASKED, TOLD), row(tokenizer, (True, "Once"))],
        codec,
    )
    assert whole.values == {"text": f"Once{END}"}
    assert whole.exact
    assert not part.exact, "its prompt is given"
    assert not piece.exact, "the end would be put after a piece of a longer text"
    (segments,) = Segments().write([row(tokenizer, (True, "Once"))], codec)
    assert segments.values == {"segments": [{"label": True, "text": "Once"}]}
    (pair,) = Pairs().write([row(tokenizer, (True, "Once"))], codec)
    assert pair.values == {"prompt": "", "completion": "Once"}
    assert segments.exact
    assert pair.exact


def test_tokens_that_merge_across_the_boundary_are_noticed(tokenizer: PreTrainedTokenizerFast) -> None:
    class Merging:
        """Every `:y` is one token, as of a vocabulary with merges."""

        def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {
                "input_ids": [
                    [1000 if part == "\0" else ord(part) for part in each.replace(":y", "\0")]
                    for each in text
                ]
            }

        def decode(self, ids: list[int], **_: object) -> str:
            return "".join(":y" if each == 1000 else chr(each) for each in ids)

    codec = Codec(tokenizer=Merging(), beginning=(), end=END)
    rows = [Row([ord("A"), ord(":"), ord("y")], [False, False, True])]
    assert not PromptCompletion().write(rows, codec)[0].exact
    assert Segments().write(rows, codec)[0].exact, "piece by piece nothing merges"


def test_a_beginning_that_the_tokenizer_adds_is_not_written_twice() -> None:
    class Beginning:
        """Puts a token 1 before every text, and writes it `^`."""

        def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
            first = [1] if add_special_tokens else []
            return {"input_ids": [first + [1 if c == "^" else ord(c) for c in each] for each in text]}

        def decode(self, ids: list[int], **_: object) -> str:
            return "".join("^" if each == 1 else chr(each) for each in ids)

    codec = Codec(tokenizer=Beginning(), beginning=(1,), end="$")
    rows = [Row([1, ord("a"), ord("b"), ord("$")], [False, False, True, True])]
    (joint,), (verbatim,) = (
        PromptCompletion().write(rows, codec),
        PromptCompletion(special=False).write(rows, codec),
    )
    assert joint.values == {"prompt": "a", "completion": "b$"}
    assert joint.exact
    assert verbatim.values == {"prompt": "^a", "completion": "b$"}
    assert verbatim.exact
    assert Segments().write(rows, codec)[0].exact


def test_rows_of_a_table_in_its_order() -> None:
    table = TokenTable(
        tokens=np.array([5, 6, 7, 8, 9], np.int32),
        supervised=np.array([True, True, False, True, True]),
        offsets=np.array([0, 2, 5]),
        index=np.array([1, 0]),
    )
    (batch,) = rows_of(table)
    assert batch == [Row([7, 8, 9], [False, True, True]), Row([5, 6], [False, True])]
    assert batch[1].runs == [(False, [5]), (True, [6])], "nothing predicts a row's first token"
