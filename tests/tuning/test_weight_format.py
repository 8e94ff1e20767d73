"""A base in 4 bits through whole commands: asked for, chosen where memory is short, kept by a study, told, exported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import loratune
from command_fixture import Place, Shell
from loratune.app.adapted import generate, merge
from loratune.costs.execution import ON_CPU, ON_CUDA
from loratune.costs.limits import Limits, why_packed
from loratune.data.sources import DataOptions
from loratune.errors import ModelError
from loratune.model import device
from loratune.model.device import limit_memory
from loratune.model.profile import profile_from_config
from loratune.runners import spec as runners
from loratune.runners.spec import EngineSpec
from loratune.study.record import Study
from loratune.tuning.options import TuneOptions
from loratune.tuning.resumption import fingerprint, kept_format, study_key
from loratune.tuning.workbench import open_workbench
from loratune.values import ALL_LINEAR, default_recipe
from nf4_fixture import by_bitsandbytes
from tiny import save_tiny_model

pytest_plugins = ["command_fixture"]
LONGEST = 64


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most of its 19 MB are in linear layers."""
    return save_tiny_model(tmp_path_factory.mktemp("wide"), hidden=384, layers=4)


def needed(model: Path, *, packs: bool) -> int:
    """Bytes within which a base and one trial are said to fit."""
    limits = Limits(
        model=profile_from_config(str(model), dtype="float32", device="cpu", packs=packs),
        max_length=LONGEST,
        micro_batch_tokens=LONGEST,
        device_bytes=0,
        execution=ON_CPU,
    )
    return round(limits.fullest([default_recipe()]).total / 0.92)


def mib(size: int) -> str:
    return f"{size / 2**20:.2f}MiB"


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor this is."""
    monkeypatch.setattr(device, "processor_flags", frozenset)


@pytest.mark.usefixtures("in_float32")
def test_what_does_not_fit_otherwise_is_packed_and_says_why(wide: Path) -> None:
    plain, packed = needed(wide, packs=False), needed(wide, packs=True)
    between = (plain + packed) // 2
    assert packed < between < plain

    def reason(memory: int) -> str:
        return why_packed(str(wide), device="cpu", memory=mib(memory), longest=LONGEST)

    assert reason(plain + 2**20) == ""
    assert "its linear layers are held in 4 bits (nf4)" in reason(between)
    assert "give --dtype float32 for whole weights" in reason(between)
    assert reason(packed - 2**20) == "", "nothing is gained where that does not fit either"
    assert reason(2**40) == ""


@pytest.mark.usefixtures("in_float32")
def test_a_study_keeps_its_format(wide: Path, place: Place, tmp_path: Path) -> None:
    memory = mib((needed(wide, packs=False) + needed(wide, packs=True)) // 2)
    options = TuneOptions(
        model=str(wide), data=str(place.data), out=str(tmp_path), device="cpu", max_length=LONGEST
    )
    short = replace(options, device_memory=memory)

    def opened(wishes: TuneOptions, kept: str | None = None) -> tuple[str, dict[str, object], str]:
        with open_workbench(wishes, targets=ALL_LINEAR, ranks=(2,), epochs=1.0, weight_format=kept) as bench:
            notes = " ".join(bench.notes)
            return bench.profile.weight_format, fingerprint(wishes, bench), notes

    first, made, note = opened(short)
    assert first == made["weight_format"] == "nf4"
    assert "held in 4 bits (nf4)" in note
    whole, plainly, silent = opened(options)
    assert whole == "plain"
    assert "weight_format" not in plainly, "as it was before there were others"
    assert "4 bits" not in silent
    assert study_key(made) != study_key(plainly)
    study = Study.open(tmp_path, storage=None, resume=False, fingerprint=made)
    assert kept_format(study) == "nf4"
    assert opened(options, kept_format(study))[:2] == (first, made), "with more memory it goes on as it began"
    other = Study.open(tmp_path / "other", storage=None, resume=False, fingerprint=plainly)
    assert kept_format(other) == "plain"
    assert opened(short, kept_format(other))[0] == "plain"


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "animals"
    loratune.train(
        model=place.model,
        data=place.data,
        out=out,
        dtype="nf4",
        device="cpu",
        rank=4,
        epochs=2.0,
        learning_rate=1e-2,
    )
    return out


def test_the_record_says_how_the_base_was_held(run: Path) -> None:
    record = json.loads((run / "result.json").read_text())["training"]
    assert record["weight_format"] == "nf4"
    assert record["dtype"] in ("float32", "bfloat16")
    assert "4 bits (nf4), computed in" in (run / "adapter" / "README.md").read_text()


def test_the_adapter_is_pefts_on_either_base(run: Path, place: Place) -> None:
    tokens = torch.arange(5, 25).reshape(1, -1)
    for base in (
        by_bitsandbytes(place.model, torch.float32),
        AutoModelForCausalLM.from_pretrained(place.model),
    ):
        with torch.no_grad():
            bare = base(tokens).logits
            tuned = PeftModel.from_pretrained(base, run / "adapter").eval()(tokens).logits
        assert not torch.allclose(bare, tuned)


def test_text_comes_from_the_packed_base_and_merging_from_the_whole(
    run: Path, place: Place, tmp_path: Path
) -> None:
    assert generate(run, "woof 3", max_new_tokens=4, device="cpu")
    merged = load_file(merge(run, tmp_path / "merged") / "model.safetensors")
    plain = load_file(place.model / "model.safetensors")
    assert merged.keys() == plain.keys()
    name = "model.embed_tokens.weight"
    assert torch.equal(merged[name], plain[name].to(merged[name].dtype))
    by_bitsandbytes(place.model, torch.float32).save_pretrained(tmp_path / "packed")
    with pytest.raises(
        ModelError, match=r"merged into whole weights, those of .* give the unquantised checkpoint"
    ):
        merge(run, tmp_path / "again", model=str(tmp_path / "packed"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("command", ["tune", "train", "plan", "recommend"])
def test_a_base_that_cannot_be_read_is_one_sentence(
    command: str, shell: Shell, place: Place, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    ran = shell(command, "--model", folder, "--data", place.data, "--device", "cpu")
    assert ran.code == 2
    assert "in bitsandbytes' NF4" in ran.error
    assert "give the unquantised checkpoint" in ran.error
    assert shell.written == []


def test_a_format_that_is_none(shell: Shell, place: Place) -> None:
    ran = shell("plan", "--model", place.model, "--data", place.data, "--dtype", "int4")
    assert ran.code == 2
    assert "--dtype must be auto, float32, bfloat16 or nf4, got 'int4'" in ran.error


def test_memory_answers_for_four_bits(shell: Shell, wide: Path) -> None:
    ask = ("memory", "--model", wide, "--max-length", "64", "--device-memory", "24GiB", "--json")
    plain, packed = (shell(*ask, "--dtype", kind).document for kind in ("bfloat16", "nf4"))
    assert packed["parts"]["weights"] < 0.3 * plain["parts"]["weights"]
    assert packed["parts"]["activations"] == plain["parts"]["activations"]
    assert packed["parts"]["workspace"] > plain["parts"]["workspace"]


def test_a_gpu_gives_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of PyTorch, which has no GPU here; `test_out_of_memory_gpu.py` asks a real one."""
    asked: list[float] = []
    properties = type("Properties", (), {"total_memory": 80 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: asked.append(share))
    limit_memory(torch.device("cuda"), 20 * 2**30)
    limit_memory(torch.device("cuda"), None)
    limit_memory(torch.device("cpu"), 2**30)
    assert asked == [0.25, 1.0]
    spec = EngineSpec(model="m", data=DataOptions(data="d"), device="cuda", device_memory="20GiB")
    monkeypatch.setattr(runners, "pick_device", torch.device)
    runners._limit_memory(spec)
    assert asked[-1] == (20 * 2**30 - ON_CUDA.runtime) / (80 * 2**30), "the context takes its part"
