"""One short run of the main job on a real language model and real data, through the command line; and what is done
with its adapter afterwards: by PEFT, by `generate` and by `merge`, on a base from a GGUF file.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratune.app.adapted import generate, merge
from loratune.app.demo import smollm2, write_reuters
from loratune.cli.main import main
from loratune.costs import measuring
from loratune.model.base import load_model
from loratune.runners.spec import model_cache

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Tuned:
    out: Path
    code: object


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("reuters")
    train, test = write_reuters(folder / "data", 5)
    arguments = {
        "model": str(smollm2()), "data": str(train), "test": str(test), "out": str(folder / "run"), "dtype": "float32",
        "template": r"News: {text}\nTopic:", "ranks": "8", "budget": "2x", "max-length": "32",
        "train-rows": "48", "validation-rows": "16", "test-rows": "16", "pack-size": "2", "epochs": "2",
        "learning-rates": "3e-3", "batch-sizes": "4",  # one search run: higher rates are a matter of luck with 24 steps
    }  # fmt: skip
    command = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SECONDS", 0.05)
        # the usual ones have more tokens than all training here
        patch.setitem(measuring._RUNGS, "cpu", (32, 64))
        patch.setattr(sys, "argv", ["loratune", "tune", *command, "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
    return Tuned(folder / "run", stop.value.code)


def test_tune_smollm2_on_reuters(tuned: Tuned) -> None:
    assert tuned.code in (None, 0)
    values: dict[str, Any] = json.loads((tuned.out / "result.json").read_text())
    metrics = values["metrics"]
    assert metrics["test"]["nll"] < metrics["base_model"]["test"]["nll"] - 1
    assert metrics["test"]["exact_match"] > 0.4, "a third of the rows is of the largest class"
    assert {each["claim"] for each in values["evidence"] if each["holds"] is None}, "what the budget left out"
    assert "Traceback" not in (tuned.out / "report.html").read_text(encoding="utf-8")


def test_its_adapter_is_asked_and_merged(tuned: Tuned, tmp_path: Path) -> None:
    """The same answer by PEFT alone, by `generate`, and the same logits of the merged model."""
    base = load_model(str(smollm2()), dtype="float32", device="cpu", cache=model_cache())
    adapted = PeftModel.from_pretrained(base.model, tuned.out / "adapter").eval()
    assert base.tokenizer is not None
    news = "grain wheat crop exports rose"
    prompt = base.tokenizer(f"News: {news}\nTopic:", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = adapted.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
        logits = adapted(prompt).logits
    text = base.tokenizer.decode(answer, skip_special_tokens=True).strip()
    labels = {"acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"}
    assert text in labels, "it has learnt to name a label and to stop"
    assert generate(tuned.out, news, max_new_tokens=6).strip() == text
    merge(tuned.out, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer(f"News: {news}\nTopic:", return_tensors="pt").input_ids.equal(prompt)
    with torch.no_grad():
        assert (merged(prompt).logits - logits).abs().max() < 1e-4 * logits.abs().max()
    card = (tuned.out / "adapter" / "README.md").read_text()
    assert f"gguf_file={smollm2().name!r}" in card
