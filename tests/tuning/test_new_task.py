"""A kind of task that nothing but its objective and its two entries know, through `tune`: search, final run, report."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import loratune
from loratune.costs import measuring
from loratune.objectives import registry
from loratune.objectives.objective import Scored, Supervised
from loratune.values import tasks
from loratune.values.tasks import Task
from objectives.pair_margin import PairMargin
from tiny import save_tiny_model, write_jsonl


class Ranking(PairMargin):
    """`PairMargin` that says by how much each pair is right."""

    def score(self, states: torch.Tensor, asked: Supervised, output: Any) -> Scored:
        _, margin, pairs = self._pairs(states, asked, output)
        return super().score(states, asked, output)._replace(margins=margin[pairs])


def test_a_new_task_needs_its_objective_and_two_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(name="ranking", objectives=("pair_margin",), group=2, has_laws=False, is_cut=False)
    monkeypatch.setitem(cast(dict[str, Task], tasks.TASKS), task.name, task)
    monkeypatch.setitem(cast(dict[str, Any], registry.OBJECTIVES), "pair_margin", Ranking)
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    save_tiny_model(tmp_path / "model")
    rows: list[dict[str, object]] = [
        {"prompt": f"{i:x} says ", "chosen": "moo" + "o" * (i % 3), "rejected": "woof"} for i in range(60)
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    done = loratune.tune(
        model=tmp_path / "model", data=data, task="ranking", out=tmp_path / "run", strategy="grid", ranks=[2],
        learning_rates=[3e-3, 3e-2], batch_sizes=[8], budget="10x", epochs=2.0, dtype="float32", device="cpu",
        no_ledger=True,
    )  # fmt: skip
    assert done.metrics["test"]["preference_accuracy"] == 1.0
    assert done.metrics["test"]["preference_margin"] > done.metrics["base_model"]["test"]["preference_margin"]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    document = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert document["training"]["objective"] == "pair_margin"
    assert "preference accuracy" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
