"""Every example of docs/data.md is read as the page says."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from loratune.data.encode import Encoder
from loratune.data.recognise import recognise
from loratune.data.shapes import examples
from loratune.data.sources import DataOptions, find_sources
from loratune.errors import DataError
from tiny import byte_tokenizer

PAGE = Path(__file__).parent.parent.parent / "docs" / "data.md"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Shown(NamedTuple):
    before: str
    """The page up to the rows: options stand in the paragraph before them."""
    suffix: str
    rows: str
    read: str


def shown() -> list[Shown]:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.finditer(
        r"```(jsonl|json|csv)\n((?:(?!```).)*)```\n\n```text\n(.*?)```", text, flags=re.DOTALL
    )
    return [Shown(text[: block.start()], *block.groups()) for block in blocks]


def options_of(before: str) -> dict[str, str]:
    found = re.findall(r"`(--[^`]+)`", before.strip().split("\n\n")[-1])
    words = [word for each in found for word in shlex.split(each)]
    return {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def read(case: Shown, path: Path) -> list[str]:
    """Each row with « and » around what is learnt."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = TEMPLATE
    encoder = Encoder(tokenizer=tokenizer, end_of_turn=tokenizer.eos_token_id, max_length=2000)
    options = DataOptions(data=str(path), **options_of(case.before))
    source = find_sources(options)["train"]
    shape = recognise(source, options, tokenizer)
    texts = []
    for encoded in encoder.encode(list(examples(shape, source)), shape.overflow):
        [(tokens, learned)] = encoded.pieces
        edges = [i for i in range(1, len(tokens)) if learned[i] != learned[i - 1]]
        pieces = [
            tokenizer.decode(tokens[a:b]) for a, b in zip([0, *edges], [*edges, len(tokens)], strict=True)
        ]
        marks = ["«", "»"] * len(pieces)
        texts.append("".join(piece + mark for piece, mark in zip(pieces, marks, strict=False)))
    return texts


def test_the_page_has_its_examples() -> None:
    assert len(shown()) == 12


@pytest.mark.parametrize("case", shown(), ids=lambda case: case.before.rpartition("## ")[2].split("\n")[0])
def test_rows_are_read_as_the_page_says(case: Shown, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{case.suffix}"
    path.write_text(case.rows, encoding="utf-8")
    if case.read.startswith("error: "):
        with pytest.raises(DataError) as caught:
            read(case, path)
        assert f"error: {caught.value}\n" == case.read
        return
    expected = case.read.removesuffix("\n").split("\n---\n")
    texts = read(case, path)
    assert len(texts) == 2
    assert texts[: len(expected)] == expected
