"""A pack in a process that may not grow: prints losses, and where memory ran out, as JSON. Run by a test."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine_fixture import engine, frozen, trial
from loratune.engine.memory import Shortage
from loratune.engine.selfcheck import random_table


def run(room: int = 0) -> dict[str, Any]:
    """Losses by seed, and the shortages; `room`: bytes of address space beyond what is taken before, 0: no limit."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = frozen(LlamaForCausalLM(config), torch.float32)
    table = random_table(4000, rows=24, longest=250)
    shortages: list[Shortage] = []
    packs = engine(
        base, table, table.take(range(4)), max_tokens_per_micro_batch=65536, on_shortage=shortages.append
    )
    assert packs.chosen_paths.rows.flat
    waiting = [trial(seed, batch_size=12, epochs=1.0) for seed in range(3)]
    losses: dict[str, list[float]] = {}
    if room:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    packs.run(
        lambda: waiting.pop(0) if waiting else None,
        slots=3,
        on_result=lambda result, _: losses.update({str(result.trial.seed): result.step_nll.tolist()}),
    )
    return {"losses": losses, "shortages": [(each.place, each.tokens) for each in shortages]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(run(int(sys.argv[1]))))
