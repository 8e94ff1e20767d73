"""A tiny model that has learnt a language, and rows of it: what a diagnosis needs to know right from wrong.

The language is a chain: every token has four successors, equally likely in what the model was trained on. The
task to be fine-tuned prefers one of them. A row is a beginning, a prompt, a separator, a completion, an end.
"""

from functools import cache

import numpy as np
import torch

from engine_fixture import VOCABULARY, tiny_llama
from loratune.data.table import TokenTable
from loratune.model.base import BaseModel

BEGIN, SEPARATOR, END, PADDING = 0, 1, 2, 3
FIRST = 4
WORDS = VOCABULARY - FIRST
SUCCESSORS = np.random.default_rng(42).permuted(np.tile(np.arange(WORDS), (WORDS, 1)), axis=1)[:, :4]
PREFERENCE = 0.85
"""Of the first successor in the task; the language itself has 1/4."""


def chains(rows: int, length: int, *, seed: int, preference: float = 0.25) -> np.ndarray:
    """[rows, length] words."""
    random = np.random.default_rng(seed)
    words = np.empty((rows, length), np.int64)
    words[:, 0] = random.integers(0, WORDS, rows)
    odds = [preference, *[(1 - preference) / 3] * 3]
    for i in range(1, length):
        words[:, i] = SUCCESSORS[words[:, i - 1], random.choice(4, rows, p=odds)]
    return words + FIRST


def pairs(rows: int, *, seed: int, preference: float = PREFERENCE) -> list[tuple[list[int], list[bool]]]:
    """Rows of the task: tokens, and which are learnt; 4 words of prompt, 5 to 9 of completion."""
    random = np.random.default_rng(seed + 1000)
    found = []
    for words in chains(rows, 13, seed=seed, preference=preference).tolist():
        completion = [*words[4 : random.integers(9, 14)], END]
        prompt = [BEGIN, *words[:4], SEPARATOR]
        found.append((prompt + completion, [False] * len(prompt) + [True] * len(completion)))
    return found


def task(rows: int, *, seed: int, preference: float = PREFERENCE) -> TokenTable:
    return TokenTable.from_rows(pairs(rows, seed=seed, preference=preference))


@cache
def speaker() -> BaseModel:
    """The tiny model after 300 steps on its language, rendered as the task is; treat it as read-only."""
    base = tiny_llama(torch.float32)
    model = base.model.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=300)
    for step in range(300):
        rows = [torch.tensor(tokens) for tokens, _ in pairs(32, seed=step, preference=0.25)]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        model(input_ids=tokens.clamp(min=0), labels=tokens).loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return base
