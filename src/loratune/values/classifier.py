"""What a sequence classifier is to answer: one class, several labels, or a number for each row."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Problem(StrEnum):
    """Problems under transformers' names (`problem_type`)."""

    ONE = "single_label_classification"
    SEVERAL = "multi_label_classification"
    NUMBER = "regression"


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """The kind of answer, and the labels' names in the order of the outputs; of a number none."""

    problem: Problem = Problem.ONE
    labels: tuple[str, ...] = ("0", "1")
    centre: float = 0.0
    scale: float = 1.0
    """Unit of numbers: what is learnt is (number - centre) / scale, so that losses and rates do not depend on it."""

    @property
    def outputs(self) -> int:
        """Outputs of the head."""
        return max(1, len(self.labels))

    @property
    def options(self) -> dict[str, Any]:
        """Options for transformers' configuration."""
        names = {"num_labels": self.outputs, "problem_type": str(self.problem)}
        if not self.labels:
            return names
        numbers = {label: number for number, label in enumerate(self.labels)}
        return names | {"id2label": {number: label for label, number in numbers.items()}, "label2id": numbers}
