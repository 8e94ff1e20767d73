"""loratune: finds LoRA hyper-parameters for your base model and dataset, and proves the choice.

Importing this module imports neither torch nor transformers; the functions below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratune.app.doctor import doctor
    from loratune.app.memory import estimate_memory
    from loratune.app.plan import plan
    from loratune.app.recommend import recommend
    from loratune.app.report import report
    from loratune.app.selfcheck import selfcheck
    from loratune.app.train import train
    from loratune.app.tune import resume, tune

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "doctor",
    "estimate_memory",
    "plan",
    "recommend",
    "report",
    "resume",
    "selfcheck",
    "train",
    "tune",
]

_HOME = {
    "doctor": "loratune.app.doctor",
    "estimate_memory": "loratune.app.memory",
    "plan": "loratune.app.plan",
    "recommend": "loratune.app.recommend",
    "report": "loratune.app.report",
    "resume": "loratune.app.tune",
    "selfcheck": "loratune.app.selfcheck",
    "train": "loratune.app.train",
    "tune": "loratune.app.tune",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'loratune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
