"""Every error that loratune raises on purpose.

    LoratuneError
    ├── InputError (ValueError)            exit code 2: the user's input is wrong
    │   ├── DataError                      rows, columns, splits
    │   ├── ModelError                     model folder, architecture, targets
    │   ├── HyperParameterError            a value out of its range
    │   ├── BudgetError                    a budget that cannot be met
    │   └── OutputError                    the run directory
    ├── ResourceError (RuntimeError)       exit code 4: out of memory, no device
    └── Interrupted                        exit code 130: stopped by the user, resumable
        ├── Terminated                     exit code 143: by SIGTERM
        └── HungUp                         exit code 129: by SIGHUP

Each message is one sentence with the rule, the value found and the next step. All are picklable
(they are built from one string), so that a remote worker can raise them here.
"""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class LoratuneError(Exception):
    """Base of all errors raised by loratune; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(LoratuneError, ValueError):
    """The user's input breaks a rule; nothing has been written."""

    exit_code = 2


class DataError(InputError):
    """The dataset cannot be used as given."""


class ModelError(InputError):
    """The base model cannot be used as given."""


class HyperParameterError(InputError):
    """A hyper-parameter is outside its range."""


class BudgetError(InputError):
    """The budget cannot be met or understood."""


class OutputError(InputError):
    """The run directory cannot be used as given."""


class ResourceError(LoratuneError, RuntimeError):
    """The machine lacks memory or a device."""

    exit_code = 4


class Interrupted(LoratuneError):
    """The user stopped the run; `--resume` continues it."""

    exit_code = 130


class Terminated(Interrupted):
    """A scheduler or another user stopped the run (SIGTERM); `--resume` continues it."""

    exit_code = 128 + signal.SIGTERM


class HungUp(Interrupted):
    """The terminal went away (SIGHUP); `--resume` continues it."""

    exit_code = 129


class Stop(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where Ctrl-C would be, so that whatever cleans up after it does so after them."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def interrupted(stop: KeyboardInterrupt, message: str) -> Interrupted:
    """The error of whatever stopped the run."""
    number = stop.number if isinstance(stop, Stop) else signal.SIGINT
    by = next((kind for kind in (Terminated, HungUp) if kind.exit_code == 128 + number), Interrupted)
    return by(message)


@contextmanager
def panics_as(rule: str, advice: str) -> Iterator[None]:
    """Raise `ModelError` where a library written in Rust breaks off: its error is no `Exception`.

    The sentence is `rule: reason; advice.`
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{rule}: {printable(str(error))[:200]}; {advice}.") from None


def printable(text: str) -> str:
    """Text from outside as one line that a terminal cannot take for a command: control characters as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def nearest(unknown: Iterable[str], known: Iterable[str]) -> str:
    """For messages: `'rank' (did you mean ranks?)`: each unknown name with the one that it resembles, if any."""
    known = list(known)
    suggestions = []
    for name in unknown:
        alike = get_close_matches(name.lower().replace("-", "_"), known, n=1)
        suggestions.append(repr(name) + (f" (did you mean {alike[0]}?)" if alike else ""))
    return ", ".join(suggestions)
