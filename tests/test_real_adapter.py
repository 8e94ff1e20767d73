"""A real model's adapter, used by itself: generate, merge and the folder, from a GGUF base."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratune.app.adapted import generate, merge
from loratune.app.demo import smollm2
from loratune.app.train import train
from loratune.model.base import load_model
from loratune.runners.spec import model_cache
from tiny import animal_rows, write_jsonl

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


def test_smollm2_from_gguf_is_trained_asked_and_merged(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", animal_rows(60))
    run = tmp_path / "run"
    train(
        model=smollm2(), data=data, out=run, rank=4, learning_rate=2e-3, batch_size=4, epochs=2,
        device="cpu", dtype="float32",
    )  # fmt: skip
    assert generate(run, "woof a1", max_new_tokens=6).strip() == "dog"
    merge(run, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.eos_token == "<|im_end|>"
    base = load_model(str(smollm2()), dtype="float32", device="cpu", cache=model_cache())
    tokens = tokenizer("moo 9\nLabel: cow", return_tensors="pt").input_ids
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(base.model, run / "adapter").eval()(tokens).logits
        assert (merged(tokens).logits - tuned).abs().max() < 1e-4 * tuned.abs().max()
    card = (run / "adapter" / "README.md").read_text()
    assert f"gguf_file={smollm2().name!r}" in card
