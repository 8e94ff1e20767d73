"""What the user names as data: options, the splits of a source, and the rows of each of its files.

Knows names of files, splits and formats; does not know what columns mean.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from loratune.data.read_json import read_json, read_jsonl
from loratune.data.read_table import BATCH_ROWS, parquet_class_names, read_csv, read_parquet, rows_of_batches
from loratune.data.row import Row, first_line
from loratune.errors import DataError
from loratune.files.paths import user_path
from loratune.values.tasks import CAUSAL, TASKS, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Where the rows are, how they are to be read, and how many of them. Raises `DataError`."""

    data: str
    """A .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet file, a folder with train/validation/test files,
    a saved `datasets` folder, or a hub name (`owner/name` or `owner/name:configuration`)."""
    validation: str | None = None
    """Validation rows; default: those that come with `data`, else split off the training rows."""
    test: str | None = None
    """Test rows; default: those that come with `data`, else split off the training rows."""
    prompt_column: str | None = None
    completion_column: str | None = None
    template: str | None = None
    """The prompt, with {column} fields ({column?} may be empty); the two characters \\n stand for a newline, \\t for
    a tab."""
    max_length: int | None = None
    """Longest row in tokens; None: the longest row there is, within the model's limit and 2,048."""
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    seed: int = 0
    task: str = CAUSAL.name
    """What the rows teach, one of `TASKS`: `preference` reads pairs, `classification` a text and its answer."""

    @property
    def kind(self) -> Task:
        """What the rows teach."""
        return TASKS[self.task]

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise DataError(
                f"task must be one of {', '.join(TASKS)}, got {self.task!r}; give e.g. --task {CAUSAL.name}."
            )
        for name in ("max_length", "train_rows", "validation_rows", "test_rows"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise DataError(f"{name} must be at least 2, got {value}; raise --{name.replace('_', '-')}.")
        if self.seed < 0:
            raise DataError(f"seed must be at least 0, got {self.seed}; try --seed 0.")


TEXT_FORMATS: dict[str, Callable[[str, BinaryIO], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
}
"""Each of them may be compressed (.jsonl.gz)."""
FORMATS = (*TEXT_FORMATS, ".parquet", *(f"{extension}.gz" for extension in TEXT_FORMATS))
FORMATS_SHOWN = f"{', '.join((*TEXT_FORMATS, '.parquet'))} (or a text format with .gz)"


def format_of(path: Path) -> str:
    """The extension in small letters, `.jsonl.gz` in one piece; `FORMATS` says whether it is known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a file by its extension. Raises `DataError` where it is missing, unknown, broken or empty."""
    extension = format_of(path)
    if extension not in FORMATS:
        raise DataError(
            f"{path} must be one of {FORMATS_SHOWN}, got {extension or 'no extension'!r}; convert the file."
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path given as data, validation or test.")
    empty = True
    try:
        for row in read_parquet(path) if extension == ".parquet" else _read_text(path, extension):
            empty = False
            yield row
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not readable gzip: {first_line(error)}; compress the file again."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check the file.") from None
    if empty:
        raise DataError(f"{path} is empty, but must hold at least one row (a header is no row); add rows.")


def _read_text(path: Path, extension: str) -> Iterator[Row]:
    with _opened(path) as file:
        yield from TEXT_FORMATS[extension.removesuffix(".gz")](path.name, file)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where it is gzip, whatever its name says."""
    with path.open("rb") as file:
        if file.peek(2)[:2] != b"\x1f\x8b":
            yield file
            return
        with gzip.open(file) as inner:
            yield cast(BinaryIO, BufferedReader(inner))


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
"""Names of files and splits in use → ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows that can be read again and again, never held all at once."""

    name: str
    open: Callable[[], Iterator[Row]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of numbered classes, by column, where the format carries them."""

    def __iter__(self) -> Iterator[Row]:
        return self.open()


def find_sources(options: DataOptions) -> dict[str, Source]:
    """`train`, and `validation` and `test` where they are given or come with the training data."""
    found = splits_of(options.data)
    if "train" not in found:
        raise DataError(
            f"{options.data} must hold a train split, got only {', '.join(found)}; name the file itself "
            "as data."
        )
    for split, given in (("validation", options.validation), ("test", options.test)):
        if given is not None:
            splits = splits_of(given)
            if split not in splits and len(splits) > 1:
                raise DataError(
                    f"{given} must hold a {split} split, got {', '.join(splits)}; name one file as {split}."
                )
            found[split] = splits.get(split) or next(iter(splits.values()))
    return found


def splits_of(source: str) -> dict[str, Source]:
    """The splits of one source by our names; a single file is `train`."""
    path = user_path(source)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved_dataset(path)
        return _folder_of_files(path)
    if path.is_file() or format_of(path) in FORMATS or source.startswith((".", "/")):
        return {"train": _files([path])}
    return _hub_dataset(source)


def _files(paths: Sequence[Path]) -> Source:
    def rows() -> Iterator[Row]:
        for path in paths:
            yield from read_file(path)

    first = paths[0]
    names = parquet_class_names(first) if format_of(first) == ".parquet" and first.is_file() else {}
    return Source(name=first.name, open=rows, class_names=names)


def _folder_of_files(folder: Path) -> dict[str, Source]:
    """`train.jsonl`, `validation.csv`, `test-00000-of-00002.parquet` and the like."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        split = SPLIT_NAMES.get(_stem(path).split("-")[0].lower())
        if split and format_of(path) in FORMATS and path.is_file():
            found.setdefault(split, []).append(path)
    if not found:
        raise DataError(
            f"{folder} must hold files named train, validation or test ending in {FORMATS_SHOWN}, "
            "or be a folder written by datasets' save_to_disk; name the file itself as data."
        )
    for split, paths in found.items():
        if len(paths) > 1 and any("-" not in _stem(path) for path in paths):
            raise DataError(
                f"{folder} must hold one file (or numbered parts) for {split}, got "
                f"{', '.join(path.name for path in paths)}; name the file itself as data."
            )
    return {split: _files(found[split]) for split in ("train", "validation", "test") if split in found}


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(format_of(path))]


def _saved_dataset(folder: Path) -> dict[str, Source]:
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # datasets raises many kinds for a damaged folder
        raise DataError(
            f"{folder} is not a readable datasets folder: {first_line(error)}; save it again with "
            "save_to_disk."
        ) from None
    return _splits_of_dataset(loaded, folder.name)


def _hub_dataset(source: str) -> dict[str, Source]:
    from datasets import load_dataset
    from huggingface_hub import HfApi, constants

    name, _, configuration = source.partition(":")
    try:
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(
                name, timeout=10
            )  # answers at once where load_dataset retries for half a minute
        loaded = load_dataset(name, configuration or None)
    except Exception as error:  # the hub, the network and the files each raise their own kinds
        raise DataError(
            f"{source!r} is no file or folder here, and the hub did not give a dataset of that name "
            f"({first_line(error)}); check the name, set HF_HUB_OFFLINE=1 to use a downloaded copy, or give "
            "a folder written by save_to_disk."
        ) from None
    return _splits_of_dataset(loaded, name)


def _splits_of_dataset(loaded: Any, name: str) -> dict[str, Source]:
    """The splits of a `datasets.Dataset` (one split) or `DatasetDict`."""
    if not isinstance(loaded, dict):
        return {"train": _dataset(loaded, name)}
    found: dict[str, Source] = {}
    for split, dataset in loaded.items():
        ours = SPLIT_NAMES.get(split.lower())
        if ours is not None:
            found.setdefault(ours, _dataset(dataset, f"{name}/{split}"))
    if not found:
        raise DataError(
            f"{name} must have a split named train, got {', '.join(loaded) or 'none'}; save the wanted "
            "split alone."
        )
    return found


def _dataset(dataset: Any, name: str) -> Source:
    def rows() -> Iterator[Row]:
        if len(dataset) == 0:
            raise DataError(f"{name} is empty, but must hold at least one row; add rows.")
        yield from rows_of_batches(dataset.with_format("arrow").iter(batch_size=BATCH_ROWS), name)

    classes = {
        column: tuple(each.names) for column, each in dataset.features.items() if hasattr(each, "names")
    }
    return Source(name=name, open=rows, class_names=classes)
