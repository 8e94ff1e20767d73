"""Whether TRL, from an exported run, trains an adapter as good as ours: validation NLL of both, seed by seed.

    make .exports/trl/installed; .venv/bin/python bench/exported_trl.py --trl .exports/trl/bin/trl

Each seed is trained by `loratune train`, exported, and trained again by `trl sft` from the exported YAML; both adapters
are loaded by PEFT and scored token by token on the run's validation rows.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from loratune.app.demo import smollm2, write_reuters
from loratune.app.export import export
from loratune.app.train import train
from loratune.model.base import load_model
from loratune.runners.spec import model_cache
from record import append, circumstances

RESULTS = Path(__file__).parent / "results" / "exported_trl.csv"


def base_model(name: str, folder: Path) -> Path:
    """SmolLM2-135M-Instruct as safetensors, or a random Llama of 1.6M parameters with its tokenizer."""
    base = load_model(str(smollm2()), dtype="float32", device="cpu", cache=model_cache())
    assert base.tokenizer is not None
    base.tokenizer.save_pretrained(folder)
    if name == "smollm2":
        base.model.save_pretrained(folder)
        return folder
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(base.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def nll(model: Path, adapter: Path, rows: Path) -> float:
    """Nats per supervised token of rows that are tokens."""
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter
    )
    total, count = 0.0, 0
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = tuned(torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels >= 0).sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", type=Path, required=True)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = base_model(options.model, folder / "model")
        data, _ = write_reuters(folder / "data", 8)
        pairs = [
            compare(options, seed, model, data, folder / f"seed-{seed}") for seed in range(options.seeds)
        ]
    ours, theirs = zip(*pairs, strict=True)
    print(
        f"loratune {mean(ours):.4f}, TRL {mean(theirs):.4f}, difference {mean(theirs) - mean(ours):+.4f} nats"
    )
    if len(pairs) > 1:
        print(f"between seeds: loratune {stdev(ours):.4f}, TRL {stdev(theirs):.4f}")


def compare(
    options: argparse.Namespace, seed: int, model: Path, data: Path, out: Path
) -> tuple[float, float]:
    """Validation NLL of our adapter and of TRL's, of one seed."""
    train(
        model=model, data=data, out=out, rank=8, learning_rate=options.learning_rate, batch_size=16, seed=seed,
        epochs=options.epochs, train_rows=options.rows, validation_rows=100, test_rows=20, max_length=48,
        device="cpu", dtype="float32",
    )  # fmt: skip
    there = export(out, to="trl").folder
    rows = export(out, to="unsloth").folder / "data" / "validation.jsonl"
    command = [str(options.trl.resolve()), "sft", "--config", "trl.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        command, cwd=there, check=True, capture_output=True, env={**environment, "HF_HUB_OFFLINE": "1"}
    )
    ours, theirs = nll(model, out / "adapter", rows), nll(model, there / "trl-run", rows)
    print(f"seed {seed}: loratune {ours:.4f}, TRL {theirs:.4f}", flush=True)
    row = {"model": options.model, "seed": seed, "rows": options.rows, "epochs": options.epochs}
    append(RESULTS, {**circumstances(), **row, "ours": f"{ours:.6f}", "trl": f"{theirs:.6f}"})
    return ours, theirs


if __name__ == "__main__":
    main()
