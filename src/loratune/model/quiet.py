"""Third-party noise while a model loads: progress bars, notices, and many-line error messages."""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' notices and bars, and what its readers print to stderr; errors still raise."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Drop what libraries in other languages write to the process's stderr, such as the notice of a Rust panic."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def first_sentence(error: BaseException) -> str:
    """The first line of a third-party message, without its full stop, to be quoted inside a sentence.

    A line that ends with a colon only announces the next one, which is joined to it.
    """
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    words = next(lines, type(error).__name__)
    while words.endswith(":") and (following := next(lines, "")):
        words += f" {following}"
    return words.rstrip(":. ")
