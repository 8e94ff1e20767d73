"""`--task classification` as a user has it: what rows may hold, what is refused, what comes out and who reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import loratune
from command_fixture import Shell
from loratune.reporting.result import load_result
from loratune.tuning.single import Trained
from tiny import animal_rows, save_tiny_encoder, write_jsonl

pytest_plugins = ["command_fixture"]
SHORT: Mapping[str, Any] = {
    "task": "classification", "dtype": "float32", "device": "cpu", "learning_rate": 1e-2, "rank": 4, "batch_size": 8,
    "epochs": 3.0, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "model")


def rows_of(kind: str, count: int = 120) -> list[dict[str, object]]:
    """Animals as a class, as labels of which several hold, or as a number between 10 and 12."""
    animals = animal_rows(count)
    names = sorted({str(row["label"]) for row in animals})
    found: list[dict[str, object]] = []
    for number, row in enumerate(animals):
        label = str(row["label"])
        answer: Mapping[str, object] = {
            "class": {"label": label},
            "whole": {"label": names.index(label)},
            "labels": {"labels": [label, "animal"] if label != "cow" else []},
            "number": {"score": 10.0 + names.index(label) + (number % 7) / 100},
        }[kind]
        found.append({"text": row["text"], **answer})
    return found


def trained(kind: str, encoder: Path, folder: Path) -> Trained:
    data = write_jsonl(folder / "rows.jsonl", rows_of(kind))
    return loratune.train(model=encoder, data=data, out=folder / "run", **SHORT)


@pytest.mark.parametrize(
    ("kind", "metric", "outputs"),
    [("whole", "accuracy", 3), ("labels", "f1", 3), ("number", "correlation", 1)],
)
def test_what_was_trained_is_what_peft_reads(
    kind: str, metric: str, outputs: int, encoder: Path, tmp_path: Path
) -> None:
    """From rows to an adapter: with its head and the pooler, which the base had not, on a base loaded by itself."""
    done = trained(kind, encoder, tmp_path)
    tested, before = done.metrics["test"], done.metrics["base_model_test"]
    assert tested[metric] > 0.8 > before[metric]
    assert ("perplexity" in tested) is (kind != "number")
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"] == [
        "bert.pooler",
        "classifier",
    ]
    torch.manual_seed(9)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=outputs)
    model = PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    texts = {"cat": "meow 7", "cow": "moo 8", "dog": "woof 9"}
    with torch.no_grad():
        logits = model(**tokenizer(list(texts.values()), return_tensors="pt", padding=True)).logits.numpy()
    if kind in ("class", "whole"):
        assert logits.argmax(1).tolist() == [0, 1, 2]
    elif kind == "labels":
        assert (logits > 0).tolist() == [[True, True, False], [False, False, False], [True, False, True]]
    else:
        np.testing.assert_allclose(logits[:, 0], [10.03, 11.03, 12.03], atol=0.35)


def test_labels_are_in_the_order_that_people_expect(encoder: Path, tmp_path: Path) -> None:
    """Whole numbers by their value: 2 before 10."""
    rows = [{"text": f"row {i}", "label": [2, 10, 1][i % 3]} for i in range(60)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = loratune.train(model=encoder, data=data, out=tmp_path / "run", **(dict(SHORT) | {"epochs": 0.2}))
    classifier = done.training.classifier
    assert classifier is not None
    assert classifier.labels == ("1", "2", "10")


def bad_rows(kind: str, change: Mapping[int, object]) -> list[dict[str, object]]:
    rows = rows_of(kind, 30)
    for number, value in change.items():
        rows[number][next(name for name in rows[number] if name != "text")] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (bad_rows("class", {4: None}), "rows.jsonl:5: 'label' must hold a label, got null"),
        (
            bad_rows("class", {4: {"a": 1}}),
            "rows.jsonl:5: label 'label' must be text or a whole number, got an object",
        ),
        (bad_rows("labels", {6: "cat"}), "rows.jsonl:7: 'labels' must be a list of labels"),
        (bad_rows("number", {3: "much"}), "different ones in 30 rows"),
        (
            [{"text": f"row {i}"} for i in range(30)],
            "rows.jsonl:1 must have a label column for --task classification",
        ),
        ([{"label": i % 2, "a": "x", "b": "y"} for i in range(30)], "must have a text column"),
        (
            [{"text": f"row {i}", "label": f"l{i}"} for i in range(30)],
            "must repeat, got 30 different ones in 30 rows",
        ),
        ([{"text": f"row {i}", "label": "one"} for i in range(30)], "at least two classes, got only 'one'"),
        ([*rows_of("class", 20), {"text": "moo"}], "rows.jsonl:21 has no column 'label'"),
    ],
)
def test_wrong_rows_are_one_sentence(
    rows: list[dict[str, object]], said: str, encoder: Path, shell: Shell
) -> None:
    data = write_jsonl(shell.folder / "rows.jsonl", rows)
    ran = shell("tune", "--task", "classification", "--model", encoder, "--data", data, "--out", "run")
    assert ran.code == 2
    assert said in ran.error
    assert shell.written == [data]


def test_what_a_task_cannot_be_is_one_sentence(encoder: Path, shell: Shell, tmp_path: Path) -> None:
    """An encoder without --task, a base without a class for sequences, weights in 4 bits, metrics of other rows."""
    data = write_jsonl(shell.folder / "rows.jsonl", rows_of("class", 40))
    numbers = write_jsonl(shell.folder / "numbers.jsonl", rows_of("number", 40))
    t5 = tmp_path / "t5"
    t5.mkdir()
    (t5 / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    (t5 / "model.safetensors").write_bytes((encoder / "model.safetensors").read_bytes())
    before = set(shell.written)
    task = ("--task", "classification")
    for options, said in (
        (
            ("--model", encoder, "--data", data),
            "is a BertModel; add --task classification to train it on labels",
        ),
        (
            ("--model", encoder, "--data", data, "--task", "labels"),
            "task must be one of causal, preference, classification, got 'labels'",
        ),
        (
            ("--model", t5, "--data", data, *task),
            "must have a base model of which transformers makes a sequence",
        ),
        (
            ("--model", encoder, "--data", data, *task, "--dtype", "nf4"),
            "must have plain weights, got --dtype nf4",
        ),
        (("--model", encoder, "--data", data, *task, "--metric", "correlation"), "needs numbers to be met"),
        (("--model", encoder, "--data", numbers, *task, "--metric", "f1"), "needs labels or text"),
    ):
        ran = shell("tune", *options, "--out", "run")
        assert ran.code == 2, options
        assert said in ran.error
        assert set(shell.written) == before


def test_a_search_goes_on_and_its_result_is_a_classifier(encoder: Path, shell: Shell) -> None:
    """Search, report, resumption, PEFT's configuration from the result, exports; generate has nothing to say."""
    data = write_jsonl(shell.folder / "rows.jsonl", rows_of("labels", 60))
    options = (
        "--model", encoder, "--data", data, "--task", "classification", "--dtype", "float32", "--ranks", "1,4",
        "--learning-rates", "1e-2", "--batch-sizes", "8", "--epochs", "1", "--budget", "2x", "--metric", "f1",
    )  # fmt: skip
    assert shell("tune", *options, "--out", "run", "--no-ledger").code == 0
    result = load_result(Path("run"))
    config = result.recommended.lora_config()
    assert config.task_type == "SEQ_CLS"
    assert set(config.modules_to_save) == {"bert.pooler", "classifier"}
    assert set(result.metrics["test"]) >= {"nll", "accuracy", "f1", "exact_match"}
    told = " ".join(each.claim for each in result.evidence)
    assert "accuracy" in told
    assert "exact match" not in told, "the accuracy under another name"
    again = shell("tune", "run", "--resume")
    assert again.code == 0
    assert load_result(Path("run")).recommended == result.recommended
    assert shell("report", "run").code == 0
    assert "AutoModelForSequenceClassification" in Path("run/report.html").read_text()
    assert "AutoModelForSequenceClassification" in Path("run/adapter/README.md").read_text()
    assert shell("export", "run", "--to", "peft").code == 0
    assert json.loads(Path("run/export/peft/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    refused = shell("export", "run", "--to", "trl")
    assert refused.code == 2
    assert "holds a classifier; export --to peft" in refused.error
    refused = shell("generate", "run", "meow")
    assert refused.code == 2
    assert "holds a classifier;" in refused.error
    assert shell("merge", "run", "--out", "merged").code == 0
    assert json.loads(Path("merged/config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_plan_memory_and_prior_know_the_task(encoder: Path, shell: Shell) -> None:
    data = write_jsonl(shell.folder / "rows.jsonl", rows_of("class", 60))
    task = ("--model", encoder, "--task", "classification")
    ran = shell("memory", *task, "--dtype", "float32", "--max-length", "64", "--device", "cpu", "--json")
    assert ran.code == 0
    assert ran.document["verdict"] == "fits"
    ran = shell("recommend", *task, "--data", data, "--dtype", "float32", "--no-ledger", "--json")
    assert ran.code == 0
    assert any("not validated" in note for note in ran.document["notes"])
    assert ran.document["data"]["survey"]["kind"] == "classification"
    ran = shell(
        "plan", *task, "--data", data, "--dtype", "float32", "--no-ledger", "--budget", "2x", "--json"
    )
    assert ran.code == 0
