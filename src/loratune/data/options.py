"""What the user says about the data. Knows nothing of files or tokens."""

from dataclasses import dataclass

from loratune.errors import DataError


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

    def __post_init__(self) -> None:
        for name in ("max_length", "train_rows", "validation_rows", "test_rows"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise DataError(f"{name} must be at least 2, got {value}; raise --{name.replace('_', '-')}.")
        if self.seed < 0:
            raise DataError(f"seed must be at least 0, got {self.seed}; change --seed.")
