"""The strategies' names, without the imports that the strategies need."""

STRATEGY_NAMES = ("evidence", "guide", "grid", "random", "tpe", "gp")
