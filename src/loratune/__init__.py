"""loratune: finds LoRA hyper-parameters for your base model and dataset, and proves the choice.

Importing this module imports neither torch nor transformers; the functions below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratune.tune import estimate_memory, plan, recommend, selfcheck, train, tune

__version__ = "0.1.0"
__all__ = ["__version__", "estimate_memory", "plan", "recommend", "selfcheck", "train", "tune"]

_HOME = dict.fromkeys(("estimate_memory", "plan", "recommend", "selfcheck", "train", "tune"), "loratune.tune")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'loratune' has no attribute {name!r}")
