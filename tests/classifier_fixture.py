"""Packs of classifiers, and PEFT's `SEQ_CLS` models trained alone on the same rows."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from engine_fixture import engine
from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.engine.reference import _replace_dropout
from loratune.engine.slot import MAX_GRADIENT_NORM, Slot, warmup_steps
from loratune.lora.dropout import row_keys
from loratune.lora.layout import Adapter
from loratune.lora.peft_io import lora_config
from loratune.model.base import BaseModel
from loratune.objectives.classification import Classification
from loratune.values import Trial

CLASSES, PAD = 3, 96


def classes_table(rows: int, seed: int = 0) -> TokenTable:
    """Random tokens of the class's third of the vocabulary; asked at the last one."""
    random = np.random.default_rng(seed)
    pairs, answers = [], []
    for _ in range(rows):
        kind, length = int(random.integers(CLASSES)), int(random.integers(3, 13))
        tokens = 30 * kind + random.integers(0, 30, length)
        pairs.append((tokens.tolist(), [False] * (length - 1) + [True]))
        answers.append(kind)
    table = TokenTable.from_rows(pairs)
    return TokenTable(
        tokens=table.tokens,
        supervised=table.supervised,
        offsets=table.offsets,
        answers=np.array(answers, np.int64),
    )


def classifiers(base: BaseModel, table: TokenTable, **changes: Any) -> PackEngine:
    return engine(base, table, objective=Classification, **changes)


def trained(packs: PackEngine, trials: Sequence[Trial], steps: int) -> list[Slot]:
    slots = packs.slots(trials)
    with packs.attached() as step:
        for _ in range(steps):
            if going := [slot for slot in slots if not slot.done]:
                step(going)
    return slots


def alone(
    model: PreTrainedModel,
    asked: Trial,
    initial: Adapter,
    batches: Any,
    table: TokenTable,
    steps: int,
    padding: int = PAD,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """PEFT's `SEQ_CLS` model, its loss by its own head on padded rows, torch's AdamW and clipping."""
    setting, targets = asked.hyper_parameters, initial.layout.targets
    torch.manual_seed(asked.seed)
    wrapped = get_peft_model(model, lora_config(setting, model, targets, head=initial.head()))
    wrapped.eval()
    masks = _replace_dropout(wrapped, targets, setting.lora_dropout) if setting.lora_dropout else []
    own = {
        name.replace("base_model.model.", "").replace(".modules_to_save.default", ""): parameter
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad
    }
    with torch.no_grad():
        for name, value in initial.head().items():
            own[name].copy_(value)
    optimiser = torch.optim.AdamW(
        own.values(), lr=setting.learning_rate, eps=1e-8, weight_decay=setting.weight_decay
    )
    total = len(batches)
    scheduler = get_linear_schedule_with_warmup(optimiser, warmup_steps(setting, total), total)
    losses = []
    for step, rows in enumerate(islice(batches, steps)):
        for mask in masks:
            mask.keys = torch.from_numpy(row_keys(asked.seed, step, range(len(rows))))
        loss = loss_of(wrapped, table, rows, padding)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.values(), MAX_GRADIENT_NORM)
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses, {name: value.detach().clone() for name, value in own.items()}


def loss_of(model: Any, table: TokenTable, rows: np.ndarray, padding: int = PAD) -> torch.Tensor:
    """As transformers' classifiers have it, on rows padded to the right."""
    assert table.answers is not None
    pieces = [torch.from_numpy(table.row(int(row))[0].astype(np.int64)) for row in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=padding)
    labels = torch.from_numpy(table.answers[rows])
    real = torch.arange(tokens.shape[1]) < torch.tensor([len(piece) for piece in pieces])[:, None]
    loss: torch.Tensor = model(input_ids=tokens, attention_mask=real.long(), labels=labels).loss
    return loss


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
