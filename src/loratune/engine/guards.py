"""When a trial has diverged. Knows losses as plain numbers only."""

from math import ceil, isfinite, log

_DECAY = 0.9
_ROWS_PER_DECAY = 16
_REFERENCE_ROWS = 64
_FEWEST_STEPS = 10
_RISE = 0.5


class DivergenceGuard:
    """Watches one trial's training loss (nats per supervised token), step by step.

    Diverged means: a loss or gradient that is not finite; a loss above twice ln(vocabulary), far worse
    than guessing; or, after 10 steps, a moving average more than 0.5 nats above where training began. The
    average decays by 0.9 per 16 rows (per step in larger batches) and the beginning is the mean over the
    first 64 rows (at least one step), so that a batch of one row does not raise a false alarm.
    """

    def __init__(self, *, batch_size: int, vocabulary: int) -> None:
        self._decay = _DECAY ** min(1.0, batch_size / _ROWS_PER_DECAY)
        self._reference_steps = ceil(_REFERENCE_ROWS / batch_size)
        self._ceiling = 2 * log(vocabulary)
        self._steps = 0
        self._reference = 0.0
        self._average = 0.0

    def verdict(self, loss: float, gradient_norm: float) -> str:
        """Why the trial has diverged, or an empty string; to be called once per step."""
        if not isfinite(loss) or not isfinite(gradient_norm):
            return f"loss {loss:.3g} and gradient norm {gradient_norm:.3g} at step {self._steps + 1}"
        self._steps += 1
        if loss > self._ceiling:
            return f"loss {loss:.1f} at step {self._steps}, worse than guessing"
        if self._steps <= self._reference_steps:
            self._reference += (loss - self._reference) / self._steps
            self._average = self._reference
            return ""
        self._average += (1 - self._decay) * (loss - self._average)
        if self._steps >= _FEWEST_STEPS and self._average > self._reference + _RISE:
            return f"mean loss rose from {self._reference:.2f} to {self._average:.2f} by step {self._steps}"
        return ""
