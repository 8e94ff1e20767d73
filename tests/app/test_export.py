"""`loratune export`: a run's own rows beside every target's files; PEFT and transformers take them for real."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_fixture import Place, Shell
from loratune.app.export import export
from loratune.app.train import train
from loratune.errors import DataError, ModelError
from loratune.export import TARGETS
from tiny import END, save_tiny_model, write_jsonl

pytest_plugins = ["command_fixture"]
SHORT: dict[str, Any] = {
    "epochs": 8, "learning_rate": 2e-2, "rank": 8, "batch_size": 12, "device": "cpu", "dtype": "float32"
}  # fmt: skip
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "animals"
    train(model=place.model, data=place.data, out=out, **SHORT)
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gets_its_files(target: str, run: Path, shell: Shell) -> None:
    ran = shell("export", run, "--to", target, "--out", "there")
    assert ran.code == 0
    folder = shell.folder / "there"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert ran.out.startswith(f"Written to there: {', '.join(sorted(written))}\n")
    if target == "peft":
        return
    assert "Run it: cd there && " in ran.out
    rows = {name: read(folder / name) for name in written if name.startswith("data/")}
    assert {len(each) for each in rows.values()} == {84, 18}, "120 rows less validation and test"
    texts = [json.dumps(row) for each in rows.values() for row in each]
    assert len(set(texts)) == len(texts), "no validation row is trained on"
    again = shell("export", run, "--to", target, "--out", "there")
    assert again.code == 2
    assert "--out must be a new or empty folder, but there is not" in again.error


def test_json_has_what_is_lost(run: Path, shell: Shell) -> None:
    document = shell("export", run, "--to", "mlx", "--json").document
    assert document["folder"] == str(run / "export" / "mlx")
    assert document["files"] == ["data/train.jsonl", "data/valid.jsonl", "mlx.yaml", "train.py"]
    assert any("does not clip gradients" in sentence for sentence in document["losses"])


def test_transformers_repeats_the_run(run: Path, place: Place, tmp_path: Path) -> None:
    """The script in a process of its own; its adapter's validation NLL beside ours, token by token."""
    export(run, to="transformers", out=tmp_path / "there")
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path / "there", check=True, capture_output=True)
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    base = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)

    def nll(adapter: Path) -> float:
        tuned = PeftModel.from_pretrained(base, adapter).eval()
        total, count = 0.0, 0
        for row in read(tmp_path / "there" / "data" / "validation.jsonl"):
            given, learned = (
                tokenizer(segment["text"], add_special_tokens=False).input_ids for segment in row["segments"]
            )
            with torch.no_grad():
                logits = tuned(torch.tensor([given + learned])).logits[0, len(given) - 1 : -1]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(learned), reduction="sum"))
            count += len(learned)
        tuned.unload()
        return total / count

    recorded = json.loads((run / "result.json").read_text())["metrics"]
    ours, theirs = nll(run / "adapter"), nll(tmp_path / "there" / "adapter")
    assert ours == pytest.approx(recorded["validation"]["nll"], abs=1e-4)
    assert theirs == pytest.approx(ours, abs=0.03)
    assert recorded["base_model_test"]["nll"] > ours + 1, "else agreeing shows nothing"


def leave_a_lock(folder: Path) -> None:
    """As a run does that is killed as it begins; the folder still counts as empty."""
    folder.mkdir()
    (folder / ".lock").touch()


def test_peft_builds_the_runs_adapter_from_the_configuration(run: Path, place: Place, tmp_path: Path) -> None:
    leave_a_lock(tmp_path / "there")
    export(run, to="peft", out=tmp_path / "there")
    config = LoraConfig.from_pretrained(tmp_path / "there")
    assert not config.inference_mode, "it is for training"
    fresh = get_peft_model(AutoModelForCausalLM.from_pretrained(place.model), config)
    saved = {name for name, _ in PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(place.model), run / "adapter"
    ).named_parameters()}  # fmt: skip
    assert {name for name, _ in fresh.named_parameters()} == saved
    assert fresh.base_model.model.model.layers[0].self_attn.q_proj.scaling == {"default": 2.0}


def patterned(run: Path) -> None:
    """Give the run ranks for its layers, as `--layer-ranks` leaves them."""
    values = json.loads((run / "result.json").read_text())
    values["hyper_parameters"]["rank_pattern"] = {"model.layers.0.self_attn.q_proj": 4}
    (run / "result.json").write_text(json.dumps(values))


def test_layer_ranks_make_a_script_for_trl_and_are_refused_before_anything_is_written(
    place: Place, shell: Shell
) -> None:
    folder = shell.folder / "run"
    train(model=place.model, data=place.data, out=folder, **SHORT | {"epochs": 1})
    patterned(folder)
    before = set(shell.written)
    ran = shell("export", folder, "--to", "llamafactory")
    assert ran.code == 2
    assert "LLaMA-Factory takes one rank for all layers, but 1" in ran.error
    assert set(shell.written) == before
    ran = shell("export", folder, "--to", "trl")
    assert "Note: TRL's YAML has neither rank_pattern" in ran.out
    script = (folder / "export" / "trl" / "train.py").read_text()
    ast.parse(script)
    assert "rank_pattern={'model.layers.0.self_attn.q_proj': 4}" in script
    assert "alpha_pattern={'model.layers.0.self_attn.q_proj': 8}" in script


def test_changed_rows_are_refused(place: Place, shell: Shell) -> None:
    data = shell.folder / "rows.jsonl"
    data.write_text(place.data.read_text())
    train(model=place.model, data=data, out=shell.folder / "run", **SHORT | {"epochs": 1})
    data.write_text("\n".join(place.data.read_text().splitlines()[:100]))
    before = set(shell.written)
    with pytest.raises(DataError, match="must hold the rows of the run"):
        export(shell.folder / "run", to="trl")
    assert set(shell.written) == before


def test_a_gguf_base_needs_a_model_to_name(run: Path, tmp_path: Path, place: Place) -> None:
    values = json.loads((run / "result.json").read_text())
    values["training"]["model"] = "base.Q4_1.gguf"
    copied = tmp_path / "run"
    copied.mkdir()
    copytree(run / "adapter", copied / "adapter")
    (copied / "result.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"a \.gguf base model cannot be trained by trl"):
        export(copied, to="trl")
    export(copied, to="trl", model=str(place.model))
    written = yaml.safe_load((copied / "export" / "trl" / "trl.yaml").read_text())
    assert written["model_name_or_path"] == str(place.model)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on conversations of two turns."""
    folder = tmp_path_factory.mktemp("chats")
    model = save_tiny_model(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    turns = [
        [{"role": role, "content": f"{word} {i}"} for role, word in
         (("user", "hi"), ("assistant", "ho"), ("user", "ha"), ("assistant", "he"))]
        for i in range(40)
    ]  # fmt: skip
    data = write_jsonl(folder / "chats.jsonl", [{"messages": each} for each in turns])
    train(model=model, data=data, out=folder / "run", **SHORT | {"epochs": 1})
    return folder / "run"


def test_turns_are_kept_apart_or_refused(chats: Path) -> None:
    rows = {}
    for target in ("trl", "axolotl", "llamafactory"):
        rows[target] = read(export(chats, to=target).folder / "data" / "train.jsonl")
    assert set(rows["trl"][0]) == {"input_ids", "attention_mask", "labels"}, "text would learn one turn only"
    for segments, messages, tokens in zip(rows["axolotl"], rows["llamafactory"], rows["trl"], strict=True):
        learned = [each["text"] for each in segments["segments"] if each["label"]]
        assert [text.split()[0] for text in learned] == ["ho", "he"]
        assert all(text.endswith(END) for text in learned)
        assert learned == [each["content"] for each in messages["messages"] if each["role"] == "assistant"]
        assert len([label for label in tokens["labels"] if label >= 0]) == sum(
            len(t) - len(END) + 1 for t in learned
        )
    with pytest.raises(ValueError, match="mlx cannot learn several turns"):
        export(chats, to="mlx")
    assert not (chats / "export" / "mlx").exists()
    assert not list((chats / "export").glob(".*")), "nothing half-written is left"


def test_a_file_of_another_trainer_sets_defaults(place: Place, shell: Shell) -> None:
    """Its options under those of the command line: the file's length is too short, the command line's is not."""
    file = shell.folder / "theirs.yaml"
    values = {"model_name_or_path": str(place.model), "dataset_name": str(place.data), "max_length": 3}
    file.write_text(yaml.safe_dump(values))
    ran = shell("plan", "--from-config", file, "--device", "cpu", "--dtype", "float32")
    assert ran.code == 2
    assert f"From the TRL file: model {str(place.model)!r}" in ran.err
    assert "of at most 3 tokens" in ran.error
    ran = shell("plan", "--from-config", file, "--data", shell.folder / "none.jsonl")
    assert ran.code == 2
    assert "none.jsonl" in ran.error
    ran = shell("plan", "--from-config", shell.folder / "absent.yaml")
    assert ran.code == 2
    assert "--from-config must be a readable YAML file" in ran.error
