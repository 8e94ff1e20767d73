"""The adapter's folder can be used and handed on by itself: tokenizer, card, base name, code that runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_fixture import Place, Shell
from loratune.app.adapted import generate, merge
from loratune.app.train import train
from loratune.data.shapes import render_prompt
from loratune.errors import DataError
from loratune.model.source import portable_name
from loratune.reporting.card import generating_code
from loratune.values import PromptFormat, PromptKind
from tiny import animal_rows, save_tiny_model, write_jsonl

pytest_plugins = ["command_fixture"]
SHORT = {"epochs": 8, "learning_rate": 2e-2, "rank": 8, "batch_size": 8, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learnt which animal says what."""
    out = tmp_path_factory.mktemp("run") / "animals"
    train(model=place.model, data=place.data, out=out, **SHORT)
    return out


def test_the_record_repeats_the_run(run: Path, place: Place) -> None:
    values = json.loads((run / "result.json").read_text())
    record = values["training"]
    assert record["model"] == str(place.model)
    assert record["data_options"]["data"] == str(place.data)
    assert record["prompt"] == {"kind": "label", "template": "{text}\nLabel:"}
    assert record["dtype"] == "float32"
    assert record["end_of_turn"] == "<|end|>"
    assert record["seed"] == 0
    assert record["rows"] == 120 - 2 * 18
    assert re.fullmatch("[0-9a-f]{16}", record["data_fingerprint"])


def test_peft_loads_base_and_adapter_from_the_folder_alone(run: Path, place: Place) -> None:
    tuned = AutoPeftModelForCausalLM.from_pretrained(run / "adapter", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    assert tokenizer.eos_token == "<|end|>"
    assert tuned.peft_config["default"].base_model_name_or_path == str(place.model)
    tokens = tokenizer("woof 5\nLabel:", return_tensors="pt").input_ids
    bare = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)
    with torch.no_grad():
        assert not torch.allclose(tuned(tokens).logits, bare(tokens).logits)


def test_the_card_says_what_it_is(run: Path, place: Place) -> None:
    values = json.loads((run / "result.json").read_text())
    card = ModelCard.load(run / "adapter" / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None, "a path on this machine is no hub name"
    assert values["training"]["data_fingerprint"] in card.text
    assert "{text}\nLabel:\n```\n\nA completion ends" in card.text
    assert f"{values['metrics']['test']['nll']:.4f}" in card.text
    assert f"{values['metrics']['base_model_test']['nll']:.4f}" in card.text
    (low, high) = re.search(r"nats better than the base model \[(.*), (.*)\]", card.text).groups()  # type: ignore[union-attr]
    saved = values["metrics"]["base_model_test"]["nll"] - values["metrics"]["test"]["nll"]
    assert 0 < float(low) < saved < float(high)
    assert str(place.data.parent) not in card.text.replace(str(place.model), "")


def test_the_cards_code_runs(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (run / "adapter" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(run)
    exec(compile(code.replace("'…'", "'moo 7'"), "card", "exec"), {})
    assert capsys.readouterr().out.strip() == "cow"


@pytest.mark.parametrize(("said", "kind"), [("meow 3", "cat"), ("woof 11", "dog"), ("moo 9", "cow")])
def test_generate_writes_the_prompt_of_the_run(run: Path, said: str, kind: str, shell: Shell) -> None:
    ran = shell("generate", run, said, "--max-new-tokens", "8", "--device", "cpu")
    assert ran.code == 0
    assert ran.out.strip() == kind
    assert shell("generate", run, said, "--json").document == {"completion": f" {kind}"}


def test_generate_stops_after_so_many_tokens(run: Path) -> None:
    assert generate(run, "meow 3", max_new_tokens=2) == " c"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("generate", "{here}", "x"), "must hold result.json"),
        (("generate", "{run}", "x", "--max-new-tokens", "0"), "--max-new-tokens must be at least 1, got 0"),
        (("generate", "{run}", "x", "--model", "nowhere/at/all"), "does not exist"),
        (("merge", "{run}", "--out", "{run}"), "must be a new or empty folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    run: Path, arguments: tuple[str, ...], told: str, shell: Shell
) -> None:
    ran = shell(*(each.format(run=run, here=shell.folder) for each in arguments))
    assert ran.code == 2
    assert told in ran.error
    assert not shell.written


def test_another_base_model_is_refused(run: Path, tmp_path: Path, shell: Shell) -> None:
    other = save_tiny_model(tmp_path / "other", hidden=64)
    ran = shell("generate", run, "x", "--model", other)
    assert ran.code == 2
    assert "does not fit" in ran.error


def test_the_merged_model_gives_the_adapters_logits(run: Path, place: Place, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / ".lock").touch()  # of a run that was killed as it began
    merge(run, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.config.use_cache
    tokens = tokenizer("moo 9\nLabel: cow", return_tensors="pt").input_ids
    with torch.no_grad():
        bare = base(tokens).logits
        tuned = PeftModel.from_pretrained(base, run / "adapter")(tokens).logits
        ours = merged(tokens).logits
    assert (ours - tuned).abs().max() < 1e-4 * tuned.abs().max()
    assert (bare - tuned).abs().max() > 1e-2 * tuned.abs().max(), "else the test shows nothing"
    assert list((tmp_path / "merged").glob("*.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["merged"], "nothing half-written is left"


def test_a_path_into_the_hubs_cache_has_the_hubs_name() -> None:
    path = "/home/me/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/abc123"
    assert portable_name(path) == "HuggingFaceTB/SmolLM2-135M"
    assert portable_name("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    assert portable_name("models/mine") == "models/mine"


def _chat(messages: list[dict[str, str]]) -> str:
    return f"<user>{messages[0]['content']}<assistant>"


@pytest.mark.parametrize(
    ("kind", "template", "values", "prompt"),
    [
        (PromptKind.CHAT, "", "Hi", "<user>Hi<assistant>"),
        (PromptKind.TURNS, "", "Hi", "User: Hi\nAssistant:"),
        (PromptKind.TEXT, "", "Once", "Once"),
        (PromptKind.VERBATIM, "", "Q: 1?\nA:", "Q: 1?\nA:"),
        (PromptKind.LABEL, "{text} ", "Hi", "Hi"),
        (PromptKind.TEMPLATE, "{a}|{b}: {{x}} ", {"a": "1", "b": 2}, "1|2: {x} "),
        (PromptKind.TEMPLATE, "{a}\n{b?}\n", "1", "1\n"),
        (PromptKind.TEMPLATE, "{a}\n{b?}\n", {"a": "1", "b": "2"}, "1\n2\n"),
    ],
)
def test_prompts_are_written_as_the_rows_were(
    kind: PromptKind, template: str, values: str | dict[str, object], prompt: str
) -> None:
    assert render_prompt(PromptFormat(kind=kind, template=template), values, _chat) == prompt


def test_fields_that_are_missing_are_named() -> None:
    given = PromptFormat(kind=PromptKind.TEMPLATE, template="{a}|{b}")
    with pytest.raises(DataError, match="the fields a, b, got one text; give a JSON object"):
        render_prompt(given, "Hi", _chat)
    with pytest.raises(DataError, match="got a; give"):
        render_prompt(given, {"a": "1"}, _chat)


def test_the_cards_code_leaves_optional_fields_out() -> None:
    code = generating_code("owner/base", PromptFormat(kind=PromptKind.TEMPLATE, template="{a}\n{b?}\n"))
    (line,) = [line for line in code.splitlines() if line.startswith("prompt = ")]
    values: dict[str, str] = {}
    exec(line, values)
    assert values["prompt"] == "…\n"


def test_a_template_of_two_fields_takes_a_json_object(place: Place, tmp_path: Path) -> None:
    rows = [{"sound": row["text"], "ask": "Who?", "label": row["label"]} for row in animal_rows(60)]
    data = write_jsonl(tmp_path / "two.jsonl", rows)
    options = {**SHORT, "epochs": 1}
    train(model=place.model, data=data, template="{sound} {ask}", out=tmp_path / "run", **options)
    assert isinstance(generate(tmp_path / "run", '{"sound": "moo 7", "ask": "Who?"}', max_new_tokens=2), str)
    for text in ("moo 7", '{"sound": ' + "7" * 5000, '{"sound":' * 5000):
        with pytest.raises(DataError, match="the fields sound, ask"):
            generate(tmp_path / "run", text)
