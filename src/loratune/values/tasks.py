"""What may be learnt from rows, and by which objective. Names and numbers only: loaded before numpy is."""

CAUSAL, PREFERENCE, CLASSIFICATION = "causal", "preference", "classification"
TASKS = (CAUSAL, PREFERENCE, CLASSIFICATION)
"""In the order in which they are shown."""
BETA_OF = {"dpo": 0.1, "orpo": 0.1, "simpo": 2.0}
"""The usual beta by objective of preferences, the usual objective first: TRL's defaults, and the SimPO authors' 2."""
PREFERENCE_RATE = 5e-6
"""Learning rate of the default recipe for preferences: that of TRL's example of DPO with LoRA."""
PREFERENCE_RATE_SHARE = 0.05
"""Of the law's learning rate, where a bracket begins for preferences: a convention (TRL's, Zephyr's and others' rates
for LoRA lie at a 20th to a 40th of those for completions), not a measured law."""
GAMMA_OF_BETA = 0.5
"""SimPO's target margin as a share of beta, what its authors recommend to begin with."""
