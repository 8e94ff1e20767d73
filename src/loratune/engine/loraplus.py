"""LoRA+: AdamW whose rate for B is a multiple of that for A, in the groups of PEFT's `create_loraplus_optimizer`.

Knows adapters and their flat vectors; nothing of schedules, clipping or packs.
"""

import torch
from torch.autograd.graph import increment_version

from loratune.lora.layout import Adapter


class LoraPlus(torch.optim.AdamW):
    """Steps on views of an adapter's flat vector, with gradients that are views of another.

    B and all vectors (of a head too) move at `ratio` times the rate; a head's vectors do not decay. Who sets a
    group's rate multiplies it by the group's `times`.
    """

    def __init__(
        self,
        adapter: Adapter,
        gradient: torch.Tensor,
        *,
        ratio: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.moments = torch.zeros_like(adapter.weights), torch.zeros_like(adapter.weights)
        """[layout.size] each, as with one rate for all."""
        flat = adapter.weights, gradient, *self.moments
        weights, slopes, averages, squares = (adapter.layout.pieces(each) for each in flat)
        head = {name for name, _ in adapter.layout.head}
        groups: dict[tuple[float, float], list[torch.Tensor]] = {}
        for name, piece in weights.items():
            times = ratio if name.endswith(".lora_B") or piece.ndim == 1 else 1.0
            decay = 0.0 if name in head and piece.ndim == 1 else weight_decay
            groups.setdefault((times, decay), []).append(piece)
            piece.grad = slopes[name]
        super().__init__(
            [
                {"params": pieces, "weight_decay": decay, "times": times}
                for (times, decay), pieces in groups.items()
            ],
            betas=betas,
            eps=eps,
            fused=True,
        )
        for name, piece in weights.items():
            self.state[piece] = {
                "step": torch.zeros((), dtype=torch.float32, device=piece.device),
                "exp_avg": averages[name],
                "exp_avg_sq": squares[name],
            }
        # readers of a copy of the weights must know of the step
        self.register_step_post_hook(lambda *_: increment_version(adapter.weights))
