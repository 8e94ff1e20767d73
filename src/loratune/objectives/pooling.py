"""Which of a row's states a classifier's head reads, brought to every token of the row.

So rows may lie padded in a rectangle or one after another in a line, and whichever token is asked gives the state.
"""

from enum import StrEnum

import torch


class Pooling(StrEnum):
    """How the states of a row become one."""

    FIRST = "first"
    LAST = "last"
    MEAN = "mean"


def pooled(
    states: torch.Tensor,
    pooling: Pooling,
    *,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """[rows, T, D] of states [rows, T, D]: at a row's last token, and where that costs nothing at others, its state.

    Args:
        attention_mask: [rows, T] 0 at padding, of a rectangle; None: rows without padding, or causal ones.
        position_ids: [1, N] of a line, whose rows begin wherever they begin again.
    """
    if pooling is Pooling.LAST:
        return states
    if position_ids is not None:
        return _in_line(states[0], position_ids[0], pooling).unsqueeze(0)
    if pooling is Pooling.FIRST:
        return states[:, :1].expand_as(states)
    if attention_mask is None:
        return states.mean(1, keepdim=True).expand_as(states)
    sums = states.masked_fill(~attention_mask.bool().unsqueeze(-1), 0.0).sum(1, keepdim=True)
    return (sums / attention_mask.sum(1)[:, None, None]).expand_as(states)


def _in_line(states: torch.Tensor, positions: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[N, D] of states [N, D]."""
    starts = positions == positions[0]
    row = starts.cumsum(0) - 1
    first = starts.nonzero().squeeze(1)
    if pooling is Pooling.FIRST:
        return states[first][row]
    lengths = torch.diff(first, append=first.new_tensor([len(positions)]))
    sums = torch.zeros((len(first), states.shape[1]), dtype=states.dtype, device=states.device)
    return (sums.index_add(0, row, states) / lengths.unsqueeze(1))[row]
