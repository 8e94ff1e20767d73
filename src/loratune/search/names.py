"""The strategies' names, for those who must not wait for what they import."""

STRATEGY_NAMES = ("evidence", "guide", "grid", "random", "tpe", "gp")
