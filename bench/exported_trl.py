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
from random import Random
from statistics import mean, stdev

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from loratune.app.demo import reuters, smollm2
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


def write_rows(folder: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """The same rows for every seed, so that seeds differ by first weights and order alone."""
    found = reuters("train")
    Random(0).shuffle(found)
    files = {}
    for name, size in sizes.items():
        rows = [{"text": " ".join(text.split()[:8]), "label": label} for text, label in found[:size]]
        del found[:size]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


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
    parser.add_argument("--trl-seeds", type=int, default=3, help="how many of the seeds TRL trains too")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--validation-rows", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = base_model(options.model, folder / "model")
        files = write_rows(folder, {"data": options.rows, "validation": options.validation_rows, "test": 20})
        pairs = [
            compare(options, seed, model, files, folder / f"seed-{seed}") for seed in range(options.seeds)
        ]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs if pair[1] is not None]
    print(
        f"loratune {mean(ours):.4f}, TRL {mean(theirs):.4f}, difference {mean(theirs) - mean(ours):+.4f} nats"
    )
    for name, values in (("loratune", ours), ("TRL", theirs)):
        if len(values) > 1:
            print(f"sd between seeds: {name} {stdev(values):.4f}")


def compare(
    options: argparse.Namespace, seed: int, model: Path, files: dict[str, Path], out: Path
) -> tuple[float, float | None]:
    """Validation NLL of our adapter and of TRL's, of one seed; None where TRL does not train this one."""
    train(
        data=files["data"], validation=files["validation"], test=files["test"],
        model=model, out=out, rank=8, learning_rate=options.learning_rate, batch_size=16, seed=seed,
        epochs=options.epochs, max_length=48, device="cpu", dtype="float32",
    )  # fmt: skip
    there = export(out, to="trl").folder
    rows = export(out, to="unsloth").folder / "data" / "validation.jsonl"
    ours, theirs = nll(model, out / "adapter", rows), None
    if seed < options.trl_seeds:
        command = [str(options.trl.absolute()), "sft", "--config", "trl.yaml"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(
            command, cwd=there, check=True, capture_output=True, env={**environment, "HF_HUB_OFFLINE": "1"}
        )
        theirs = nll(model, there / "trl-run", rows)
    told = "not trained" if theirs is None else f"{theirs:.4f}"
    print(f"seed {seed}: loratune {ours:.4f}, TRL {told}", flush=True)
    row = {"model": options.model, "seed": seed, "rows": options.rows, "epochs": options.epochs}
    values = {"ours": f"{ours:.6f}", "trl": "" if theirs is None else f"{theirs:.6f}"}
    append(RESULTS, {**circumstances(), **row, "learning_rate": options.learning_rate, **values})
    return ours, theirs


if __name__ == "__main__":
    main()
