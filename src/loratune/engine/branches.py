"""Rows that branch: a prompt and a tree of continuations, all scored in one forward pass.

A block mask lets a token of the tree see the prompt and its own ancestors only. Knows no labels and no adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.batches import MicroBatch

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Branches:
    """Tokens that continue a prompt, each after its parent."""

    fed: Ints
    """[fed] tokens."""
    depth: Ints
    """[fed] 0 for a token right after the prompt."""
    sees: npt.NDArray[np.bool_]
    """[fed, fed] whether the row's token sees the column's: itself and its ancestors."""

    @classmethod
    def of(cls, tokens: Sequence[int], parents: Sequence[int]) -> "Branches":
        """Branches by each token's parent: the number of an earlier token, or -1 for the prompt."""
        sees = np.eye(len(tokens), dtype=np.bool_)
        depth = np.zeros(len(tokens), np.int64)
        for i, parent in enumerate(parents):
            if parent >= 0:
                sees[i] |= sees[parent]
                depth[i] = depth[parent] + 1
        return cls(fed=np.array(tokens, np.int64), depth=depth, sees=sees)


def arrange(
    prompts: Sequence[npt.NDArray[np.int32]],
    trees: Sequence[Branches],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[MicroBatch, torch.Tensor, torch.Tensor]:
    """Rows [prompt, padding to P, tree, padding], the additive mask [rows, 1, T, T] and positions [rows, T].

    The batch's states are, row by row, that of the prompt's last token and those of the tree's tokens.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    width = longest + max(len(tree.fed) for tree in trees)
    tokens = np.zeros((len(prompts), width), np.int64)
    visible = np.zeros((len(prompts), width, width), np.bool_)
    positions = np.zeros((len(prompts), width), np.int64)
    visible[:, :longest, :longest] = np.tri(longest, dtype=np.bool_)
    visible[:, longest:, :longest] = (np.arange(longest) < lengths[:, None])[:, None]
    positions[:, :longest] = np.arange(longest)
    states = []
    for i, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        end = longest + len(tree.fed)
        tokens[i, : len(prompt)] = prompt
        tokens[i, longest:end] = tree.fed
        visible[i, longest:end, longest:end] = tree.sees
        positions[i, longest:end] = len(prompt) + tree.depth
        states.append(i * width + np.array([len(prompt) - 1, *range(longest, end)]))
    hidden = torch.from_numpy(~visible).to(device)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
    mask.masked_fill_(hidden, torch.finfo(dtype).min)
    batch = MicroBatch(
        tokens=torch.from_numpy(tokens).to(device),
        positions=torch.from_numpy(np.concatenate(states)).to(device),
        targets=torch.zeros(0, dtype=torch.int64, device=device),
        counts=np.array([len(tree.fed) + 1 for tree in trees]),
        lengths=np.full(len(prompts), width),
        starts=np.arange(len(prompts) + 1) * width,
        longest=width,
        flat=False,
    )
    return batch, mask.unsqueeze(1), torch.from_numpy(positions).to(device)
