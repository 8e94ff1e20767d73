"""What the columns mean, by known answers."""

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loratune.data.recognise import recognise, unread_notes
from loratune.data.row import Example, Row
from loratune.data.shapes import examples
from loratune.data.sources import DataOptions, Source
from loratune.data.template import Template
from loratune.errors import DataError
from tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def source_of(rows: list[dict[str, Any]], **class_names: tuple[str, ...]) -> Source:
    def read() -> Any:
        return (Row(values, f"rows.jsonl:{line}") for line, values in enumerate(rows, start=1))

    return Source(name="rows.jsonl", open=read, class_names=class_names)


def read_as(source: Source, **options: str) -> tuple[str, list[Example]]:
    shape = recognise(source, DataOptions(data="rows.jsonl", **options), TOKENIZER)
    return shape.name, list(examples(shape, source))


def words(example: Example) -> tuple[str, ...]:
    return tuple(segment.text for segment in example.segments)


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
QUESTION = {"question": "2+2?", "answer": "4, of course."}


@pytest.mark.parametrize(
    ("row", "options", "shape", "expected", "label"),
    [
        ({"prompt": "a", "completion": "b", "text": "c"}, {}, "prompt-completion", ("a", "b"), None),
        ({"prompt": "", "completion": "b"}, {}, "prompt-completion", ("", "b"), None),
        ({"text": "a", "label": "lost_card"}, {}, "classification", ("a\nLabel:", " lost card"), "lost card"),
        ({"text": "a", "category": 3}, {}, "classification", ("a\nLabel:", " 3"), "3"),
        ({"text": "a", "label": True}, {}, "classification", ("a\nLabel:", " true"), "true"),
        ({"text": "all of it"}, {}, "text", ("all of it",), None),
        ({"messages": TALK}, {}, "messages", ("User: a", "\nAssistant:", " b"), None),
        (
            {"instruction": "Name it.", "input": "moo", "output": "cow", "text": "all"},
            {},
            "prompt-completion",
            ("Name it.\nmoo\n", "cow"),
            None,
        ),
        (
            {"instruction": "Name it.", "input": "", "output": "cow"},
            {},
            "prompt-completion",
            ("Name it.\n", "cow"),
            None,
        ),
        ({"instruction": "a", "input": None, "output": "b"}, {}, "prompt-completion", ("a\n", "b"), None),
        ({"instruction": "a", "output": "b"}, {}, "prompt-completion", ("a\n", "b"), None),
        (
            {"instruction": "a", "input": "c", "output": "b"},
            {"template": "Q: {instruction} {input}\\nA:"},
            "prompt-completion",
            ("Q: a c\nA:", " b"),
            None,
        ),
        ({"text": "a", "labels": 1}, {}, "classification", ("a\nLabel:", " 1"), "1"),
        (
            QUESTION,
            {"prompt_column": "question", "completion_column": "answer"},
            "prompt-completion",
            ("2+2?\n", "4, of course."),
            None,
        ),
        (
            QUESTION,
            {"completion_column": "answer", "template": r"Q: {question}\nA:"},
            "prompt-completion",
            ("Q: 2+2?\nA:", " 4, of course."),
            None,
        ),
        ({"body": "all of it"}, {"completion_column": "body"}, "text", ("all of it",), None),
        (
            {"title": "t", "text": "a", "label": "x"},
            {"template": "{title}: {text} {{sic}} Topic: "},
            "classification",
            ("t: a {sic} Topic:", " x"),
            "x",
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt_column": "prompt"},
            "prompt-completion",
            ("a", "b"),
            None,
        ),
    ],
)
def test_shapes(
    row: dict[str, Any], options: dict[str, str], shape: str, expected: tuple[str, ...], label: str | None
) -> None:
    name, [example] = read_as(source_of([row]), **options)
    assert (name, words(example), example.label) == (shape, expected, label)


def test_a_class_label_may_have_any_name() -> None:
    name, [example] = read_as(source_of([{"text": "a", "mood": 1}], mood=("bad", "good")))
    assert (name, example.label) == ("classification", "good")


ADVISED: dict[str, list[Any]] = {
    "question and answer": [
        {"id": 1, "question": "2+2?", "answer": "4"},
        "--prompt-column question --completion-column answer",
    ],
    "several columns": [
        {"context": "c", "question": "q", "response": "r"},
        "--prompt-column question --completion-column response",
    ],
    "answer beside a kind": [
        {"instruction": "Name it.", "context": "moo", "response": "cow", "category": "qa"},
        "--prompt-column instruction --completion-column response",
    ],
    "numbered labels": [
        {"sentence": "fine", "label": 1, "idx": 0},
        "--prompt-column sentence --completion-column label",
    ],
    "a name of two words": [
        {"the text": "a", "the answer": "b"},
        "--prompt-column 'the text' --completion-column 'the answer'",
    ],
    "one text": [{"body": "all of it", "id": 3}, "--completion-column body"],
    "preferences": [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        "--prompt-column prompt --completion-column chosen",
    ],
    "preferences of turns": [{"chosen": TALK, "rejected": TALK}, "--completion-column chosen"],
    "list of labels": [{"text": "a", "labels": ["x"]}, "--completion-column text"],
}


@pytest.mark.parametrize("case", ADVISED)
def test_the_advice_of_a_refusal_works(case: str) -> None:
    row, advice = ADVISED[case]
    with pytest.raises(DataError, match=r"rows\.jsonl:1") as caught:
        read_as(source_of([row]))
    assert advice in str(caught.value)
    words = shlex.split(advice)
    options = {key[2:].replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    assert len(read_as(source_of([row]), **options)[1]) == 1


@pytest.mark.parametrize("column", ["label", "labels", "categories", "intents"])
def test_a_list_of_labels_is_refused_by_its_name(column: str) -> None:
    with pytest.raises(
        DataError, match=f"rows.jsonl:2: column '{column}' must hold one label, got a list of 2;"
    ):
        read_as(source_of([{"text": "a", column: "x"}, {"text": "b", column: ["x", "y"]}]))


def unread_of(rows: list[dict[str, Any]], **options: str) -> list[str]:
    source, unread = source_of(rows), Counter[str]()
    shape = recognise(source, DataOptions(data="rows.jsonl", **options), TOKENIZER)
    assert len(list(examples(shape, source, unread))) == len(rows)
    return list(unread_notes(unread, source))


def test_columns_that_are_not_read_are_named() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": "x", "tools": [], "id": 7}]
    rows.append({"prompt": "a", "completion": "b", "system": "Be kind.", "meta": None, "source": "web"})
    assert unread_of(rows) == [
        "The column 'label' of 1 rows looks like a label and is not read.",
        "The column 'system' of 1 rows looks like a part of a conversation and is not read.",
        "Columns not read: id, source.",
    ]
    assert unread_of([{"instruction": "a", "input": "", "output": "b"}]) == []
    assert unread_of([{"messages": TALK, "system": "s", "prompt": "p"}]) == ["Columns not read: prompt."]


def test_completions_from_a_small_set_are_classes_too() -> None:
    rows = [{"prompt": f"{i}", "completion": ["yes", "no"][i % 2]} for i in range(20)]
    name, found = read_as(source_of(rows))
    assert (name, {example.label for example in found}) == ("prompt-completion", {"yes", "no"})
    assert words(found[0]) == ("0", "yes")
    for few in (rows[:8], [{**row, "completion": "yes"} for row in rows]):
        assert {example.label for example in read_as(source_of(few))[1]} == {None}


def test_class_numbers_become_their_names() -> None:
    source = source_of([{"text": "a", "label": 1}, {"text": "b", "label": 0}], label=("no", "yes_sir"))
    assert [example.label for example in read_as(source)[1]] == ["yes sir", "no"]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 'label' must be a class from 0 to 1, got -1"):
        read_as(source_of([{"text": "a", "label": -1}], label=("no", "yes")))


@pytest.mark.parametrize(
    ("answers", "shape"),
    [
        (["yes", "no"] * 10, "classification"),
        ([f"class {i % 200}" for i in range(1000)], "classification"),
        ([f"class {i % 201}" for i in range(2000)], "prompt-completion"),  # too many different ones
        (["a", "b", "c"] * 4, "prompt-completion"),  # fewer than five rows for each
        (["yes", "no " * 30] * 10, "prompt-completion"),  # too long for a label
    ],
)
def test_a_named_column_with_few_short_values_is_a_label(answers: list[str], shape: str) -> None:
    source = source_of([{"question": "q", "answer": answer} for answer in answers])
    assert read_as(source, prompt_column="question", completion_column="answer")[0] == shape


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"a": 1, "b": 2}, {}, "must have messages, prompt and completion, .*, got columns a, b; name the"),
        ({"prompt": "a"}, {}, "got columns prompt"),
        ({"text": "a"}, {"prompt_column": "text"}, "must have a completion column, got columns text;"),
        ({"text": "a"}, {"completion_column": "answer"}, "must have 'answer', got columns text;"),
        ({"text": "a", "label": "b"}, {"template": "{body}"}, "must have 'body', got columns text, label;"),
        ({"text": "a", "label": "b"}, {"template": "{text.upper}"}, "must have 'text.upper', got columns"),
        ({"text": "a", "label": "b"}, {"template": "{}"}, "must have '', got columns"),
        ({"text": "a", "label": "b"}, {"template": "{text!r}"}, "plain {column} fields only, got .*{text}"),
        ({"text": "a", "label": "b"}, {"template": "{text:>9}"}, "plain {column} fields only"),
        ({"text": "a", "label": "b"}, {"template": "{text"}, "is not valid: expected '}'"),
        ({"text": "a", "label": "b"}, {"template": "text"}, "must hold at least one {column} field"),
        (
            {"text": "a", "label": "b"},
            {"prompt_column": "text", "completion_column": "text"},
            "--prompt-column must not show what is to be learnt, got the column 'text'",
        ),
        (
            {"text": "a", "label": "b"},
            {"prompt_column": "label"},
            "got the column 'label', which is the answer",
        ),
        ({"text": "a", "label": "b"}, {"template": "{text} {label?}"}, "--template must not show .* 'label'"),
        ({"text": None, "label": "b"}, {}, "rows.jsonl:1: 'text' must be text or a number .*, got null"),
        ({"text": "a", "label": None}, {}, "rows.jsonl:1: label 'label' must be .*, got null"),
        ({"text": "a", "label": 0.5}, {}, r"label 'label' must be .*, got a number \(0.5\)"),
        ({"text": "a", "label": ""}, {}, "label 'label' must be .*, got text"),
        ({"text": " "}, {}, "rows.jsonl:1: 'text' must not be empty"),
        ({"prompt": "a", "completion": ["b"]}, {}, "rows.jsonl:1: 'completion' must be text, got a list"),
        ({"prompt": "a", "completion": ""}, {}, "rows.jsonl:1: 'completion' must not be empty"),
        ({"prompt": 3, "completion": "b"}, {}, r"rows.jsonl:1: 'prompt' must be text, got a number \(3\)"),
    ],
)
def test_refused_rows(row: dict[str, Any], options: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_as(source_of([row]), **options)
    assert "\n" not in str(caught.value)


def test_rows_that_lack_a_column_are_listed() -> None:
    good, bad = {"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}
    with pytest.raises(DataError) as caught:
        read_as(source_of([good, bad, good, bad, bad]))
    assert str(caught.value) == (
        "rows.jsonl:2 has no column 'completion' (so have 4, 5); its columns are prompt, answer: "
        "add the column or remove the rows."
    )
    with pytest.raises(DataError, match=r"\(so have 3, 4, 5, 6 and more\)"):
        read_as(source_of([good] + [bad] * 9))


def test_template_never_evaluates_what_a_row_holds() -> None:
    row = Row({"text": "{label} {0.__class__}", "label": "x"}, "rows.jsonl:1")
    assert Template.parse("<{text}>").render(row) == "<{label} {0.__class__}>"
    assert Template.parse("{{{text}}}").text == "{{{text}}}"


def test_an_optional_column_takes_the_text_before_it_along() -> None:
    template = Template.parse(r"{question}\n\nSee: {context?}\nA:")
    assert template.columns == ("question",)
    assert Template.parse(template.text) == template
    for context, expected in (("c", "q\n\nSee: c\nA:"), ("", "q\nA:"), (None, "q\nA:")):
        assert template.render(Row({"question": "q", "context": context}, "rows.jsonl:1")) == expected
    with pytest.raises(DataError, match="must have 'contxt', got columns question, context, answer"):
        read_as(
            source_of([{"question": "q", "context": "c", "answer": "a"}]),
            template="{question} {contxt?}",
            completion_column="answer",
        )


def test_identity_of_a_conversation_is_its_messages() -> None:
    """A template may render today's date: duplicates and splits must not depend on it."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    source = source_of([{"messages": TALK}])
    shape = recognise(source, DataOptions(data="rows.jsonl"), tokenizer)
    [example] = examples(shape, source)
    assert json.loads(example.identity) == [["user", "a"], ["assistant", "b"]]


def test_options_refuse_numbers_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train_rows must be at least 2, got 1; raise --train-rows"):
        DataOptions(data="a.jsonl", train_rows=1)
    with pytest.raises(DataError, match="seed must be at least 0, got -1"):
        DataOptions(data="a.jsonl", seed=-1)
