"""The trackers' names, for those who must not wait for what they import."""

TRACKER_NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
