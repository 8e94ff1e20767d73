"""When a trial has diverged, and which steps are merely skipped. Knows losses as plain numbers only."""

from math import ceil, isfinite, log

_DECAY = 0.9
_ROWS_PER_DECAY = 16
_REFERENCE_ROWS = 64
_FEWEST_STEPS = 10
_RISE = 0.5
_SKIPPED_IN_A_ROW = 3
_SKIPPED_SHARE = 0.1


class DivergenceGuard:
    """Watches one trial's training loss (nats per supervised token), step by step.

    A step whose loss or gradient is not finite is skipped by the optimiser; a row that overflows is not the
    trial's fault. Diverged means: more such steps than 3 in a row or than one and a tenth of all; a loss
    above twice ln(vocabulary), far worse than guessing; or, after 10 steps, a moving average more than 0.5
    nats above where training began. The average decays by 0.9 per 16 rows (per step in larger batches) and
    the beginning is the mean over the first 64 rows (at least one step), so that a batch of one row does not
    raise a false alarm.
    """

    def __init__(self, *, batch_size: int, vocabulary: int) -> None:
        self._decay = _DECAY ** min(1.0, batch_size / _ROWS_PER_DECAY)
        self._reference_steps = ceil(_REFERENCE_ROWS / batch_size)
        self._ceiling = 2 * log(vocabulary)
        self._steps = 0
        self._finite_steps = 0
        self._skipped_in_a_row = 0
        self._reference = 0.0
        self._average = 0.0

    def verdict(self, loss: float, gradient_norm: float) -> str:
        """Why the trial has diverged, or an empty string; to be called once per step.

        An empty string does not mean that the numbers are finite: the caller skips the update where they are
        not.
        """
        self._steps += 1
        if not isfinite(loss) or not isfinite(gradient_norm):
            self._skipped_in_a_row += 1
            skipped = self._steps - self._finite_steps
            too_many = skipped > 1 + _SKIPPED_SHARE * self._steps
            if too_many or self._skipped_in_a_row > _SKIPPED_IN_A_ROW:
                return f"loss {loss:.3g} and gradient norm {gradient_norm:.3g} at step {self._steps}"
            return ""
        self._skipped_in_a_row = 0
        self._finite_steps += 1
        if loss > self._ceiling:
            return f"loss {loss:.1f} at step {self._steps}, worse than guessing"
        if self._finite_steps <= self._reference_steps:
            self._reference += (loss - self._reference) / self._finite_steps
            self._average = self._reference
            return ""
        self._average += (1 - self._decay) * (loss - self._average)
        if self._finite_steps >= _FEWEST_STEPS and self._average > self._reference + _RISE:
            return f"mean loss rose from {self._reference:.2f} to {self._average:.2f} by step {self._steps}"
        return ""
