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

Each message is one sentence with the rule, the value found and the next step. All are picklable
(they are built from one string), so that a remote worker can raise them here.
"""


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
    """The user stopped the run; `--resume` goes on."""

    exit_code = 130
