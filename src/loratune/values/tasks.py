"""What may be learnt from rows, and by which objective. Names only: loaded before numpy is."""

CAUSAL, PREFERENCE = "causal", "preference"
TASKS = (CAUSAL, PREFERENCE)
"""In the order in which they are shown."""
OBJECTIVES_OF = {CAUSAL: ("causal",), PREFERENCE: ("dpo", "orpo", "simpo")}
"""Names of objectives by task, the usual one first."""
