"""The one list of objectives, by the names that `values/tasks.py` gives them."""

from collections.abc import Mapping

from loratune.objectives.causal import Causal
from loratune.objectives.classification import Classification
from loratune.objectives.objective import Factory
from loratune.objectives.preference import Dpo, Orpo, Simpo

OBJECTIVES: Mapping[str, Factory] = {
    "causal": Causal,
    "classification": Classification,
    "dpo": Dpo,
    "orpo": Orpo,
    "simpo": Simpo,
}
USUAL: Factory = Causal
"""What is learnt where nothing else is named."""
