"""The slow, plain way: PEFT and torch.optim.AdamW, one trial, no pack. What the fast path is compared with.

Knows nothing of the packed engine but the masks of its dropout, which PEFT is given in place of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from loratune.data.batches import TrialBatches
from loratune.data.table import TokenTable
from loratune.engine.slot import MAX_GRADIENT_NORM, warmup_steps
from loratune.lora.dropout import keep_mask, row_keys
from loratune.lora.layout import Target
from loratune.lora.peft_io import lora_config
from loratune.model.nf4 import as_bitsandbytes_runs
from loratune.model.quiet import quiet
from loratune.values import HyperParameters, Trial


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Course:
    """A trained trial: losses [steps] in nats per supervised token, weights [layout.size]."""

    losses: np.ndarray
    weights: torch.Tensor


class _StatelessDropout(nn.Module):
    """Stands in for PEFT's dropout with the mask that the pack uses."""

    def __init__(self, module: str, p: float) -> None:
        super().__init__()
        self.module = module
        self.p = p
        self.keys = torch.zeros(0, dtype=torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, features = len(self.keys), x.shape[-1]  # DeepSeek and OPT have other sizes between these
        tokens = x.shape[:-1].numel() // rows
        places = torch.arange(tokens, dtype=torch.int32, device=x.device).repeat(rows)
        keys = self.keys.repeat_interleave(tokens)
        mask = keep_mask(keys, places, self.module, features=features, p=self.p)
        return x * (mask.view(x.shape).to(x.dtype) / (1 - self.p))


@contextmanager
def _peft(model: PreTrainedModel, trial: Trial, targets: Sequence[Target]) -> Iterator[PeftModel]:
    """PEFT's adapter on the model; the model and the random state are as before when the block is left."""
    state = torch.get_rng_state()
    try:
        torch.manual_seed(trial.seed)
        with quiet():
            wrapped = get_peft_model(model, lora_config(trial.hyper_parameters, model, targets))
    finally:
        torch.set_rng_state(state)
    try:
        yield wrapped
    finally:
        wrapped.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        model.eval().requires_grad_(False)


def _replace_dropout(wrapped: PeftModel, targets: Sequence[Target], p: float) -> list[_StatelessDropout]:
    replaced = []
    for target in targets:
        layer = wrapped.base_model.model.get_submodule(target.name)
        layer.lora_dropout["default"] = _StatelessDropout(target.name, p)
        replaced.append(layer.lora_dropout["default"])
    return replaced


def _batch_loss(
    model: nn.Module, table: TokenTable, rows: np.ndarray, pad: int, device: torch.device
) -> torch.Tensor:
    """Summed NLL of the supervised tokens of plainly padded rows, from the full logits."""
    pairs = [table.row(int(i)) for i in rows]
    width = max(len(tokens) for tokens, _ in pairs) + pad
    ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    labels = torch.full((len(pairs), width), -100)
    for i, (tokens, supervised) in enumerate(pairs):
        row = torch.from_numpy(np.array(tokens, np.int64))
        ids[i, : len(row)] = row
        labels[i, : len(row)] = torch.where(torch.from_numpy(np.array(supervised)), row, -100)
    logits = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1]
    if logits.dtype != torch.float64:
        logits = logits.float()
    targets = labels[:, 1:].flatten().to(device)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")


def train_alone(
    model: PreTrainedModel,
    trial: Trial,
    targets: Sequence[Target],
    table: TokenTable,
    batches: TrialBatches,
    *,
    steps: int | None = None,
    pad: int = 0,
    rows_at_once: int | None = None,
) -> Course:
    """Train one trial by PEFT and AdamW on `batches` (the first `steps` of them) and leave the model clean.

    `pad` adds that many tokens of padding to every batch, `rows_at_once` cuts it into micro-batches whose
    gradients add up: the result differs by rounding only, which shows how far PEFT is from itself.
    """
    hyper_parameters = trial.hyper_parameters
    device = next(model.parameters()).device
    with as_bitsandbytes_runs(model), _peft(model, trial, targets) as wrapped:
        wrapped.eval()
        masks = (
            _replace_dropout(wrapped, targets, hyper_parameters.lora_dropout)
            if hyper_parameters.lora_dropout
            else []
        )
        parameters = [p for p in wrapped.parameters() if p.requires_grad]
        optimiser = _optimiser(wrapped, parameters, hyper_parameters)
        total = len(batches)
        scheduler = get_linear_schedule_with_warmup(optimiser, warmup_steps(hyper_parameters, total), total)
        losses = []
        for step, rows in enumerate(islice(batches, steps)):
            supervised = int(table.supervised_counts[rows].sum())
            mean = 0.0
            for start in range(0, len(rows), rows_at_once or len(rows)):
                piece = rows[start : start + (rows_at_once or len(rows))]
                for mask in masks:
                    keys = row_keys(trial.seed, step, range(start, start + len(piece)))
                    mask.keys = torch.from_numpy(keys).to(device)
                loss = _batch_loss(wrapped, table, piece, pad, device) / supervised
                loss.backward()  # type: ignore[no-untyped-call]
                mean += loss.item()
            nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            optimiser.step()
            scheduler.step()
            optimiser.zero_grad()
            losses.append(mean)
        return Course(losses=np.array(losses), weights=_flat_weights(wrapped, targets))


def _optimiser(
    wrapped: PeftModel, parameters: Sequence[nn.Parameter], chosen: HyperParameters
) -> torch.optim.Optimizer:
    rate, decay = chosen.learning_rate, chosen.weight_decay
    if chosen.loraplus_lr_ratio == 1:
        return torch.optim.AdamW(parameters, lr=rate, eps=1e-8, weight_decay=decay)
    plus: torch.optim.Optimizer = create_loraplus_optimizer(
        wrapped,
        torch.optim.AdamW,
        lr=rate,
        loraplus_lr_ratio=chosen.loraplus_lr_ratio,
        loraplus_weight_decay=decay,
        eps=1e-8,
    )
    return plus


def _flat_weights(wrapped: PeftModel, targets: Sequence[Target]) -> torch.Tensor:
    """The adapter's numbers in the order of `AdapterLayout`."""
    pieces = []
    for target in targets:
        layer = wrapped.base_model.model.get_submodule(target.name)
        for matrices in (layer.lora_A, layer.lora_B):
            pieces.append(matrices["default"].weight.detach().reshape(-1))
    for target in targets:
        magnitudes = wrapped.base_model.model.get_submodule(target.name).lora_magnitude_vector
        pieces += [each.weight.detach() for each in magnitudes.values()]
    return torch.cat(pieces)
