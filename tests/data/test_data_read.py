"""Every format gives the same rows; a broken one is named with its place."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from loratune.data.sources import DataOptions, find_sources, read_file, splits_of
from loratune.errors import DataError

ROWS = [
    {"text": "plain", "label": "a"},
    {"text": 'two\nlines, "quoted"\tand a tab', "label": "b"},
    {"text": "ümlaut 你好", "label": "a"},
]


def write_all(folder: Path) -> dict[str, Path]:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = {suffix: folder / f"train.{suffix}" for suffix in ("jsonl", "csv", "tsv", "parquet")}
    paths["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        with paths[suffix].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), paths["parquet"], row_group_size=2)
    return paths


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_formats_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write_all(tmp_path)[suffix]
    assert [dict(row.values) for row in read_file(path)] == ROWS


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    places = {suffix: [row.place for row in read_file(path)] for suffix, path in paths.items()}
    assert places["jsonl"] == ["train.jsonl:1", "train.jsonl:2", "train.jsonl:3"]
    assert places["csv"] == ["train.csv:2", "train.csv:3", "train.csv:5"]  # row 2 spans two lines
    assert places["parquet"] == [f"train.parquet, row {n}" for n in (1, 2, 3)]


def test_saved_dataset_gives_the_same_rows_and_class_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    numbered = [{"text": row["text"], "label": "ab".index(row["label"])} for row in ROWS]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    dataset = Dataset.from_list(numbered, features=features)
    dataset.save_to_disk(str(tmp_path / "one"))
    splits = {"train": dataset, "validation": dataset.select([2, 0]), "unused": dataset}
    DatasetDict(splits).save_to_disk(str(tmp_path / "many"))
    dataset.to_parquet(str(tmp_path / "train.parquet"))

    assert set(splits_of(str(tmp_path / "one"))) == {"train"}
    many = splits_of(str(tmp_path / "many"))
    assert list(many) == ["train", "validation"]
    assert [row.values for row in many["train"]] == numbered
    assert [row.values["text"] for row in many["validation"]] == [ROWS[2]["text"], ROWS[0]["text"]]
    assert many["train"].class_names == {"label": ("a", "b")}
    assert splits_of(str(tmp_path / "train.parquet"))["train"].class_names == {"label": ("a", "b")}


def test_folder_of_files_with_numbered_parts(tmp_path: Path) -> None:
    for name, texts in (
        ("train-00000-of-00002", ["a", "b"]),
        ("train-00001-of-00002", ["c"]),
        ("dev", ["d"]),
    ):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    sources = find_sources(DataOptions(data=str(tmp_path)))
    texts = {split: [row.values["text"] for row in source] for split, source in sources.items()}
    assert texts == {"train": ["a", "b", "c"], "validation": ["d"]}


def test_explicit_splits_replace_those_of_the_folder(tmp_path: Path) -> None:
    for name in ("train", "validation", "other"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    options = DataOptions(data=str(tmp_path), validation=str(tmp_path / "other.jsonl"))
    sources = find_sources(options)
    assert [row.values["text"] for row in sources["validation"]] == ["other"]


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    jsonl, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    jsonl.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    table.write_bytes(b"\xef\xbb\xbftext\r\na\r\n\r\nb\r\n")
    assert [(row.values["text"], row.place) for row in read_file(jsonl)] == [
        ("a", "a.jsonl:1"),
        ("b", "a.jsonl:4"),
    ]
    assert [(row.values["text"], row.place) for row in read_file(table)] == [
        ("a", "a.csv:2"),
        ("b", "a.csv:4"),
    ]


def test_long_csv_field(tmp_path: Path) -> None:
    long = "x" * 200_000  # above the csv module's default limit
    (tmp_path / "a.csv").write_text(f"text\n{long}\n")
    assert next(read_file(tmp_path / "a.csv")).values == {"text": long}


DOCUMENTS = {
    "array.json": '[\n  {"text": "a"},\n  {"text": "b"}\n]\n',
    "array.jsonl": '[{"text": "a"},\n\n{"text": "b"}]',
    "wrapped.json": '{"version": 2,\n "tags": ["x"],\n "data": [{"text": "a"}, {"text": "b"}]}',
    "one_line.json": '{"data": [{"text": "a"}, {"text": "b"}]}\n',
    "lines.json": '{"text": "a"}\n\n{"text": "b"}\n',
    "comma.csv": "text,label\na,x\nb,y;z\n",
    "semicolon.csv": 'text;label\na;"x, y"\nb;z\n',
    "tab.csv": "text\tlabel\na\tx\nb\ty\n",
    "bar.csv": "text|label\na|x\nb|y\n",
    "comma.tsv": "text,label\na,x\nb,y\n",
    "alone.csv": "text\na\nb\n",
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_ways_to_write_the_same_rows(tmp_path: Path, name: str, packed: bool, ending: str) -> None:
    content = b"\xef\xbb\xbf" + DOCUMENTS[name].replace("\n", ending).encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [row.values["text"] for row in read_file(path)] == ["a", "b"]


def test_rows_of_documents_have_places(tmp_path: Path) -> None:
    for name, places in {
        "array.json": ["array.json:2, row 1", "array.json:3, row 2"],
        "wrapped.json": ["wrapped.json, row 1 of 'data'", "wrapped.json, row 2 of 'data'"],
        "lines.json": ["lines.json:1", "lines.json:3"],
    }.items():
        (tmp_path / name).write_text(DOCUMENTS[name])
        assert [row.place for row in read_file(tmp_path / name)] == places


def test_folder_of_compressed_files(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "test"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert set(splits_of(str(tmp_path))) == {"train", "test"}
    with pytest.raises(DataError, match=r"none\.jsonl\.gz does not exist"):
        list(splits_of("none.jsonl.gz")["train"])


def test_objects_of_parquet_have_their_own_keys_only(tmp_path: Path) -> None:
    """Arrow fills the keys of other rows' objects with nulls."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"turns": [{"a": "x"}, {"b": {"c": "y"}}], "note": None},
        {"turns": [{"b": {"d": "z"}}], "note": "n"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row.values for row in read_file(tmp_path / "a.parquet")] == rows


BROKEN = {
    "cut.jsonl": (
        b'{"text": "a"}\n{"text": \n',
        r"cut\.jsonl:2 is not valid JSON: .* correct or remove",
    ),
    "array.jsonl": (
        b'[{"text": "a"},\n\n{"text": \n]',
        r"array\.jsonl:4 is not valid JSON: Expecting value at column 1, near",
    ),
    "list.jsonl": (b'["a"]\n', r"list\.jsonl:1, row 1 must be a JSON object with named columns, got text"),
    "cut.json": (b'[\n{"text": "a"},\n{"text": "b"}', r"cut\.json:3 is not valid JSON: Expecting value"),
    "more.json": (b'[{"text": "a"}]\n[{"text": "b"}]\n', r"more\.json:2 must end after its array"),
    "twice.jsonl": (
        b'{"text": "a", "text": "b"}\n',
        r"twice\.jsonl:1 is not usable .* 'text' is in one object twice",
    ),
    "lists.json": (
        b'{"train": [{"text": "a"}], "test": [{"text": "a"}]}',
        r"lists\.json must hold one list of objects, got 2 in an object with the keys train, test;",
    ),
    "columns.json": (b'{"text": ["a", "b"]}', r"columns\.json must hold one list of objects, got 0"),
    "numbered.json": (
        json.dumps({f"row {n}": {"text": "a"} for n in range(99)}).encode(),
        r"got 0 in an object with the keys row 0, row 1, .*, row 7 and more; write",
    ),
    "semicolon.csv": (b"text;label\na;b\nc;d;e\n", r"semicolon\.csv:3 .* hold the separator ';'"),
    "not.jsonl.gz": (b"\x1f\x8babc", r"not\.jsonl\.gz is not readable gzip: .*; compress the file again"),
    "deep.jsonl": (b"[" * 100_000, r"deep\.jsonl:1, row 1 is not usable JSON"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', r"half\.jsonl:1 is not usable JSON: .*surrogates"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe4"}\n', r"latin\.jsonl:2 must be UTF-8, but byte 11"),
    "latin.csv": (b"text\na\n\xe4\n", r"latin\.csv:\d .*must be UTF-8"),
    "short.csv": (
        b"text,label\na,b\nc\n",
        r"short\.csv:3 must have the 2 fields .*\(text, label\), got 1",
    ),
    "quote.csv": (b'text,label\n"a,b\nc,d\n', r"quote\.csv:2 is not valid CSV: .* check the quotes"),
    "twice.csv": (b"text,text\na,b\n", r"twice\.csv:1 must name every column once, got 'text', 'text'"),
    "empty.csv": (b"", r"empty\.csv is empty, but must hold at least one row"),
    "header.tsv": (b"text\tlabel\n", r"header\.tsv is empty, but must hold at least one row"),
    "empty.jsonl": (b"\n \n", r"empty\.jsonl is empty, but must hold at least one row"),
    "not.parquet": (b"PAR0", r"not\.parquet is not readable Parquet: .*; write the file again"),
    "rows.xlsx": (b"a", r"rows\.xlsx must be one of \.jsonl, .*, got '\.xlsx'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_their_place(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(splits_of(str(tmp_path / name))["train"])
    assert "\n" not in str(caught.value)


def test_missing_file_and_folders_without_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        list(splits_of(str(tmp_path / "none.jsonl"))["train"])
    with pytest.raises(DataError, match="must hold files named train, validation or test"):
        splits_of(str(tmp_path))
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="must hold a train split, got only test"):
        find_sources(DataOptions(data=str(tmp_path)))
    (tmp_path / "train.csv").write_text("text\na\n")
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"one file .* for train, got train\.csv, train\.jsonl"):
        splits_of(str(tmp_path))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="is not a readable datasets folder"):
        splits_of(str(tmp_path))


def test_hub_name_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"'nobody/nothing' is no file or folder here, .*save_to_disk"
    ) as caught:
        splits_of("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = write_all(tmp_path)["parquet"]
    content = bytearray(path.read_bytes())
    content[4:24] = bytes(20)  # the first page's header
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet is not readable Parquet") as caught:
        list(read_file(path))
    assert "\n" not in str(caught.value)
