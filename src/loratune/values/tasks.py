"""What may be learnt from rows: one value for each kind, which every room asks instead of comparing names.

Plain values: loaded before numpy is. What an objective computes is its own; `objectives/registry.py` lists all of them
by the names here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What rows teach, as `--task` names it."""

    name: str
    objectives: tuple[str, ...]
    """Objectives by which it may be learnt, the usual one first."""
    betas: Mapping[str, float] = field(default_factory=dict)
    """The usual beta by objective; empty where there is none."""
    group: int = 1
    """Rows that belong together, one after another."""
    has_answers: bool = False
    """Whether a trained head answers for a row as a whole: the base model is a classifier, or an encoder, and writes no
    text."""
    has_laws: bool = True
    """Whether what was measured in earlier studies, the package's and the user's, is of such rows."""
    is_cut: bool = True
    """Whether the largest adapter is cut to lower ranks after the search."""

    @property
    def has_pairs(self) -> bool:
        """Whether rows are pairs of a preferred answer and another."""
        return self.group == 2

    @property
    def has_completions(self) -> bool:
        """Whether a row is a prompt and one text to write after it."""
        return not (self.has_pairs or self.has_answers)

    @property
    def objective(self) -> str:
        """The usual one."""
        return self.objectives[0]


CAUSAL = Task(name="causal", objectives=("causal",))
PREFERENCE = Task(
    name="preference",
    objectives=("dpo", "orpo", "simpo"),
    betas={"dpo": 0.1, "orpo": 0.1, "simpo": 2.0},  # TRL's defaults, and the SimPO authors' 2
    group=2,
    has_laws=False,  # all that is known is of completions
    is_cut=False,  # a cut is judged by the loss, which no beta was chosen for
)
CLASSIFICATION = Task(name="classification", objectives=("classification",), has_answers=True)
TASKS: Mapping[str, Task] = {task.name: task for task in (CAUSAL, PREFERENCE, CLASSIFICATION)}
"""Tasks by name, in the order in which they are shown."""

PREFERENCE_RATE = 5e-6
"""Learning rate of the default recipe for preferences: that of TRL's example of DPO with LoRA."""
PREFERENCE_RATE_SHARE = 0.05
"""Where a bracket begins for preferences, as a share of the law's learning rate: a convention (TRL's, Zephyr's and
others' rates for LoRA lie at a 20th to a 40th of those for completions), not a measured law."""
GAMMA_OF_BETA = 0.5
"""SimPO's target margin as a share of beta, what its authors recommend to begin with."""


def task_of(objective: str) -> Task:
    """The task that is learnt by this objective. Raises `KeyError` where there is none."""
    return {name: task for task in TASKS.values() for name in task.objectives}[objective]
