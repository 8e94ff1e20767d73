"""What every command says of model and rows before anything else, and what it refuses there."""

from pathlib import Path

import pytest

from command_fixture import Shell
from families import save_family
from loratune.engine.label_search import searched_tokens
from loratune.tuning.options import SearchOptions
from loratune.tuning.workbench import open_workbench, search_context
from loratune.values import ALL_LINEAR, PASSES_PER_LABELLING
from tiny import animal_rows, byte_tokenizer, save_tiny_model, write_jsonl

pytest_plugins = ["command_fixture"]

FROZEN = "LoRA adapts its attention projections only; the experts"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_family("mixtral", tmp_path_factory.mktemp("mixture"))
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled rows with a column that is not read."""
    rows = [{**row, "id": number} for number, row in enumerate(animal_rows(60))]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", rows)


@pytest.mark.parametrize("command", ["memory", "recommend", "train", "plan", "selfcheck"])
def test_frozen_experts_are_named_at_the_start(
    command: str, mixture: Path, rows: Path, tmp_path: Path, shell: Shell
) -> None:
    data = ("--data", str(rows), "--dtype", "float32", "--device", "cpu")
    options = {
        "memory": ("--max-length", "32", "--device", "cpu"),
        "selfcheck": ("--steps", "1", "--device", "cpu"),
        "train": (*data, "--rank", "2", "--out", str(tmp_path / "run")),
        "plan": (*data, "--strategy", "grid", "--ranks", "2", "--learning-rates", "1e-3"),
        "recommend": data,
    }[command]
    ran = shell(command, "--model", str(mixture), *options)
    assert ran.code in (0, 1 if command == "selfcheck" else 0)
    said = " ".join((ran.out + ran.err).split())
    assert FROZEN in said
    if command in ("train", "plan", "recommend"):
        assert "Columns not read: id." in said


@pytest.mark.parametrize("command", ["recommend", "train"])
def test_tokens_without_an_embedding_are_refused(command: str, tmp_path: Path, shell: Shell) -> None:
    model = save_tiny_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new1>", "<new2>"])
    tokenizer.save_pretrained(model)
    rows = [{"prompt": f"<new2> moo {i}", "completion": "cow"} for i in range(40)]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    more = ("--rank", "2", "--out", str(tmp_path / "run")) if command == "train" else ()
    ran = shell(command, "--model", str(model), "--data", str(data), "--device", "cpu", *more)
    assert ran.code == 2
    assert "the rows hold token 258 ('<new2>'), but the model has embeddings for 0 to 256 only" in ran.error
    assert "resize_token_embeddings" in ran.error
    assert not (tmp_path / "run").exists()
    write_jsonl(
        data, [{**row, "prompt": str(row["prompt"])[6:]} for row in rows]
    )  # the advice: without the token
    assert shell(command, "--model", str(model), "--data", str(data), "--device", "cpu", *more).code == 0


def test_completions_from_a_small_set_are_scored_as_classes(tmp_path: Path, shell: Shell) -> None:
    model = save_tiny_model(tmp_path / "model")
    pairs = [{"prompt": f"{row['text']} is a ", "completion": row["label"]} for row in animal_rows(120)]
    data = write_jsonl(tmp_path / "train.jsonl", pairs)
    options = ("--model", str(model), "--data", str(data), "--device", "cpu", "--rank", "4", "--json")
    document = shell("train", *options, "--out", str(tmp_path / "run")).document
    for split in ("test", "base_model_test"):
        metrics = document["metrics"][split]
        assert 0 <= metrics["accuracy"] <= 1
        assert 0 <= metrics["f1"] <= 1
        assert metrics["accuracy"] >= metrics["exact_match"]  # a word that is right beats all others


def test_thousands_of_classes_are_planned_at_their_price(tmp_path: Path, shell: Shell) -> None:
    model = save_tiny_model(tmp_path / "model")
    rows = [{"text": f"word{i}", "label": f"class{i}"} for i in range(1200)]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    options = SearchOptions(model=str(model), data=str(data), device="cpu", metric="accuracy")
    with open_workbench(options, targets=ALL_LINEAR, ranks=(), epochs=1.0, metric="accuracy") as bench:
        validation = bench.data.validation
        prompts = int(validation.lengths.sum() - validation.supervised_counts.sum())
        searched = searched_tokens(len(validation), prompts) / float(validation.lengths.sum())
        assert (
            search_context(bench, options).costs.evaluation_passes == 1 + searched > 1 + PASSES_PER_LABELLING
        )
    ran = shell("plan", "--model", model, "--data", data, "--device", "cpu", "--metric", "accuracy")
    assert ran.code == 0
    assert "Labels: 1200." in ran.out
    assert "classes have no training row" in ran.out
