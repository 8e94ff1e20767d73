"""One short run of the main job on a real language model and real data, through the command line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from loratune.app.demo import smollm2, write_reuters
from loratune.cli.main import main
from loratune.costs import measuring
from loratune.model.base import load_model
from loratune.runners.spec import model_cache

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


def test_tune_smollm2_on_reuters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    train, test = write_reuters(tmp_path / "data", 8)
    out = tmp_path / "run"
    arguments = {
        "model": str(smollm2()), "data": str(train), "test": str(test), "out": str(out), "dtype": "float32",
        "template": r"News: {text}\nTopic:", "ranks": "8", "budget": "3x", "max-length": "32",
        "train-rows": "64", "validation-rows": "24", "test-rows": "24", "pack-size": "4", "epochs": "2",
        "learning-rates": "3e-3", "batch-sizes": "8",  # one search run: higher rates are a matter of luck with 16 steps
    }  # fmt: skip
    command = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["loratune", "tune", *command, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (None, 0)
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads((out / "result.json").read_text())
    metrics = values["metrics"]
    assert metrics["test"]["nll"] < metrics["base_model"]["test"]["nll"] - 1
    assert metrics["test"]["exact_match"] > 0.4, "a third of the rows is of the largest class"
    assert {each["claim"] for each in values["evidence"] if each["holds"] is None}, "what the budget left out"
    base = load_model(str(smollm2()), dtype="float32", device="cpu", cache=model_cache())
    tuned = PeftModel.from_pretrained(base.model, out / "adapter").eval()
    assert base.tokenizer is not None
    prompt = base.tokenizer("News: grain wheat crop exports rose\nTopic:", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = tuned.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    text = base.tokenizer.decode(answer, skip_special_tokens=True).strip()
    labels = {"acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"}
    assert text in labels, "it has learnt to name a label and to stop"
    assert "Traceback" not in (out / "report.html").read_text(encoding="utf-8")
