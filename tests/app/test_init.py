"""`loratune init`: what it sees in rows, the file that it writes, and that the other commands take it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command_fixture import Place, Shell
from loratune.costs import measuring
from loratune.data.recognise import recognise
from loratune.data.sources import find_sources
from loratune.tuning.configuration import read_options
from loratune.tuning.options import TuneOptions, data_options
from tiny import write_jsonl

pytest_plugins = ["command_fixture"]

SHAPES: dict[str, dict[str, Any]] = {
    "text and label": {"text": "meow", "label": "cat"},
    "text": {"text": "meow"},
    "prompt and completion": {"prompt": "meow ->", "completion": " cat"},
    "alpaca": {"instruction": "Name it.", "input": "meow", "output": "cat"},
    "messages": {"messages": [{"role": "user", "content": "meow"}, {"role": "assistant", "content": "cat"}]},
    "alpaca of few outputs": {},
    "unusual names": {"question": "meow?", "reply": "cat"},
}


VARIED = ("text", "prompt", "question", "completion", "output", "reply")


def rows_of(shape: str, count: int = 20) -> list[dict[str, Any]]:
    return [
        {name: f"{value} {i}" if name in VARIED else value for name, value in SHAPES[shape].items()}
        for i in range(count)
    ]


def read_as(options: dict[str, Any]) -> str:
    """How rows are read with the options of a file."""
    given = data_options(TuneOptions(**{"model": "M", **options}))
    return recognise(find_sources(given)["train"], given, None).description


def labelled(path: Path) -> Path:
    rows: list[dict[str, object]] = [
        {"text": f"{kind} {i:02d}", "label": kind, "id": i}
        for kind, n in (("cat", 12), ("big dog", 8))
        for i in range(n)
    ]
    return write_jsonl(path, rows)


def test_what_was_seen_is_told_and_written(shell: Shell) -> None:
    labelled(shell.folder / "rows.jsonl")
    ran = shell("init", "rows.jsonl")
    assert ran.code == 0, ran.err
    told = " ".join(ran.out.split())
    for fact in (
        "20 train rows, columns text, label, id.",
        "Rows are read as classification: prompt '{text}\\nLabel:', labels from column 'label'.",
        "Columns not read: id.",
        "2 labels with their rows: cat (12), big dog (8).",
        "Characters of a row: 17 in the median, at most 25.",
        "Next: loratune plan --config loratune.toml --model M",
    ):
        assert fact in told
    text = (shell.folder / "loratune.toml").read_text()
    assert "cat (12), big dog (8)" in text
    assert "accuracy and f1 too" in text.replace("\n# ", " ")
    assert "starts from 3 for this number of rows" in text
    assert read_options(shell.folder / "loratune.toml") == {
        "data": "rows.jsonl", "metric": "nll", "epochs": "auto", "budget": "auto",
    }  # fmt: skip


def test_lengths_are_of_the_models_tokens(shell: Shell, place: Place) -> None:
    """A token a byte, and one that ends the answer; the longest is suggested where it is not far beyond the rest."""
    rows = [{"prompt": f"{i:03d}", "completion": "x" * (5 + i % 2)} for i in range(40)]
    write_jsonl(shell.folder / "rows.jsonl", rows)
    ran = shell("init", "rows.jsonl", "--model", place.model, "--out", "start.yaml")
    assert ran.code == 0, ran.err
    assert "in 95 %, at most 10." in " ".join(ran.out.split())
    assert "--model" not in ran.out
    assert "# max_length: 10\n" in (shell.folder / "start.yaml").read_text()

    write_jsonl(shell.folder / "one.jsonl", [{"prompt": "p" * 100, "completion": "x"}, *rows * 5])
    assert shell("init", "one.jsonl", "--model", place.model, "--out", "one.yaml").code == 0
    assert "# max_length: 10\n" in (shell.folder / "one.yaml").read_text()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["start.toml", "start.yaml"])
def test_what_is_shown_reads_the_rows_as_they_are_read(name: str, shape: str, shell: Shell) -> None:
    """Every setting that stands there as a comment is one that the file takes, and changes nothing of the rows."""
    write_jsonl(shell.folder / "rows.jsonl", rows_of(shape))
    if shape == "text and label":
        labelled(shell.folder / "rows.jsonl")
    if shape == "alpaca of few outputs":
        rows = [{"instruction": f"{i}", "input": "", "output": ("a_b", "c")[i % 2]} for i in range(20)]
        write_jsonl(shell.folder / "rows.jsonl", rows)
    ran = shell("init", "rows.jsonl", "--out", name)
    assert ran.code == 0, ran.err
    file = shell.folder / name
    found = read_options(file)
    expected = read_as(found)
    assert ("completion_column" in found) == (shape == "unusual names")
    text = file.read_text()
    settings = "|".join(TuneOptions.__dataclass_fields__)
    all_standing = re.sub(rf"^# (?=(?:{settings})(?: =|:) ?\S)", "", text, flags=re.MULTILINE)
    assert all_standing != text
    file.write_text(all_standing)
    everything = read_options(file)
    assert {"ranks", "learning_rates", "model"} <= everything.keys()
    assert read_as(everything) == expected


def test_a_guess_by_values_is_called_one(shell: Shell) -> None:
    """The label comes first and has no usual name; a number that repeats is one too."""
    rows = [{"verdict": i % 2, "sentence": f"words {i}"} for i in range(20)]
    write_jsonl(shell.folder / "rows.jsonl", rows)
    ran = shell("init", "rows.jsonl")
    assert ran.code == 0, ran.err
    assert "Guessed" in ran.out
    found = read_options(shell.folder / "loratune.toml")
    assert (found["prompt_column"], found["completion_column"]) == ("sentence", "verdict")
    assert "labels from column 'verdict'" in read_as(found)


@pytest.mark.parametrize("template", [None, "Q {text}\\nA"])
def test_what_is_named_stands(template: str | None, shell: Shell) -> None:
    """A refusal's advice is one that the command takes."""
    rows = [{"text": f"words {i}", "label": ["a", "b"], "id": f"number {i}"} for i in range(20)]
    write_jsonl(shell.folder / "rows.jsonl", rows)
    refused = shell("init", "rows.jsonl")
    assert refused.code == 2
    assert "--completion-column text" in refused.error
    given = {"completion_column": "id"} | ({} if template is None else {"template": template})
    ran = shell("init", "rows.jsonl", *(f"--{n.replace('_', '-')}={value}" for n, value in given.items()))
    assert ran.code == 0, ran.err
    assert "Guessed" not in ran.out
    found = read_options(shell.folder / "loratune.toml")
    assert given.items() <= found.items()
    assert read_as(found) in " ".join(ran.out.split())
    assert ("prompt 'Q {text}" in ran.out) == (template is not None)


def test_plan_takes_the_file(shell: Shell, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    assert shell("init", place.data, "--model", place.model).code == 0
    few = ("--device", "cpu", "--strategy", "random", "--ranks", "2", "--budget", "3x")
    ran = shell("plan", "--config", "loratune.toml", *few, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["trials"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rows.jsonl",), "is there already"),
        (("rows.jsonl", "--out", "start.json"), "must end in .toml, .yaml, .yml"),
        (("nowhere.jsonl", "--out", "a.toml"), "nowhere.jsonl"),
        (("broken.jsonl", "--out", "a.toml"), "broken.jsonl:2"),
        (("single.jsonl", "--out", "a.toml"), "at least two classes"),
        (("rows.jsonl", "--model", "./nowhere", "--out", "a.toml"), "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(
    arguments: tuple[str, ...], says: str, shell: Shell
) -> None:
    labelled(shell.folder / "rows.jsonl")
    (shell.folder / "broken.jsonl").write_text('{"text": "a", "label": "b"}\n{"text"\n')
    write_jsonl(shell.folder / "single.jsonl", [{"text": f"{i}", "label": "one"} for i in range(20)])
    (shell.folder / "loratune.toml").write_text("mine")
    before = sorted(shell.written)
    ran = shell("init", *arguments)
    assert ran.code == 2
    assert says in ran.error
    assert ran.out == ""
    assert sorted(shell.written) == before
    assert (shell.folder / "loratune.toml").read_text() == "mine"


def test_a_link_to_nowhere_is_not_written_through(shell: Shell) -> None:
    labelled(shell.folder / "rows.jsonl")
    (shell.folder / "loratune.toml").symlink_to(shell.folder / "elsewhere")
    assert shell("init", "rows.jsonl").code == 2
    assert not (shell.folder / "elsewhere").exists()


@pytest.mark.parametrize("name", ["start.toml", "start.yml"])
def test_text_from_outside_stays_text(name: str, shell: Shell) -> None:
    """Line breaks and control characters in labels, columns and file names end no comment and no value."""
    folder = shell.folder / 'odd "\\ \x85\U000e0001 🐈'
    folder.mkdir()
    label = 'cat\n[evil]\nbudget = "9h"\n\x1b[31m'
    rows = [{"text": f"t {i}", "label": (label, "dog")[i % 2], "a\nmetric: f1": 1} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = shell("init", folder / "rows.jsonl", "--out", name)
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    found = read_options(shell.folder / name)
    assert found["data"] == str(folder / "rows.jsonl")
    assert (found["budget"], found["metric"]) == ("auto", "nll")


@pytest.mark.parametrize("turns", [False, True])
def test_pairs_are_read_as_preferences(turns: bool, shell: Shell) -> None:
    def answer(text: str) -> Any:
        return [{"role": "assistant", "content": text}] if turns else text

    rows: list[dict[str, object]] = [
        {"prompt": f"meow {i}", "chosen": answer("cat"), "rejected": answer("a long dog")} for i in range(20)
    ]
    write_jsonl(shell.folder / "pairs.jsonl", rows)
    ran = shell("init", "pairs.jsonl", "--out", "pairs.toml")
    assert ran.code == 0, ran.err
    assert "column 'rejected'" in " ".join(ran.out.split()) or turns
    options = read_options(shell.folder / "pairs.toml", TuneOptions)
    assert (options["task"], options["metric"]) == ("preference", "preference_accuracy")
    assert "completion_column" not in options
    TuneOptions(**{"model": "M", **options})


def test_one_of_two_answers_is_read_alone_where_it_is_named(shell: Shell) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"meow {i}", "chosen": f"cat {i}", "rejected": "dog"} for i in range(20)
    ]
    write_jsonl(shell.folder / "pairs.jsonl", rows)
    assert shell("init", "pairs.jsonl", "--completion-column", "chosen", "--out", "one.toml").code == 0
    options = read_options(shell.folder / "one.toml", TuneOptions)
    assert options["completion_column"] == "chosen"
    assert "task" not in options
