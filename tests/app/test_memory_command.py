"""`loratune memory`: from weights or a configuration alone, what fits and what does not."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from transformers import LlamaConfig

import loratune
from command_fixture import Place, Shell
from loratune.app.memory import estimate_memory

pytest_plugins = ["command_fixture"]


@pytest.fixture
def config(place: Place, tmp_path: Path) -> Path:
    """A folder with a config.json and nothing else."""
    folder = tmp_path / "config"
    folder.mkdir()
    shutil.copy(place.model / "config.json", folder)
    return folder


def test_memory_from_a_configuration_alone(shell: Shell, config: Path) -> None:
    arguments = ("memory", "--model", config, "--max-length", "64", "--device-memory", "24GiB")
    small, large = (shell(*arguments, "--rank", rank, "--json").document for rank in ("2", "16"))
    assert small["device"] == 24 * 2**30
    assert small["verdict"] == "fits"
    for told in (small, large):
        assert sum(told["parts"].values()) == told["total"]
    adapters = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert small["parts"]["adapters"] == 2 * adapters * (4 + 2), (
        "float32, and the bfloat16 that the products read"
    )
    assert large["parts"]["adapters"] == 16 * adapters * (4 + 2)
    assert large["total"] > small["total"]
    assert large["largest_rank"] == 16
    assert large["largest_trials"] <= small["largest_trials"]
    assert shell.written == []


def test_what_is_said_to_fit_fits_when_it_is_asked_for(tmp_path: Path) -> None:
    """Near the limit, where micro-batches must be smaller; one more does not."""
    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    ask = partial(estimate_memory, model=str(tmp_path), device="cuda", device_memory="24GiB")
    first = ask()
    assert ask(rank=first.largest_rank).verdict == "fits"
    assert ask(rank=first.largest_rank + 1).verdict == "tight"
    assert ask(trials=first.largest_pack).verdict == "fits"
    assert ask(trials=first.largest_pack + 1).verdict == "tight"
    beyond = ask(rank=first.largest_rank + 1)
    assert (beyond.largest_batch, beyond.largest_rank) == (0, first.largest_rank)


def test_the_largest_rank_of_some_layers_may_be_asked_for(shell: Shell, config: Path) -> None:
    """Where others are narrower."""
    arguments = ("memory", "--model", config, "--target-modules", "gate_proj", "--device-memory", "24GiB")
    largest = shell(*arguments, "--json").document["largest_rank"]
    assert largest == 32
    assert shell(*arguments, "--rank", str(largest), "--json").document["verdict"] == "fits"


def test_memory_that_does_not_suffice(shell: Shell, config: Path) -> None:
    arguments = ("memory", "--model", config, "--device-memory", "1MiB")
    told = shell(*arguments, "--json").document
    assert told["verdict"] == "does not fit"
    assert told["device"] == 2**20
    assert (told["largest_batch"], told["largest_rank"], told["largest_trials"]) == (0, 0, 0)
    words = shell(*arguments)
    assert words.code == 0
    assert "This does not fit in 1 MiB." in words.out
    assert "Not even one row" in words.out


def test_memory_as_a_function(config: Path) -> None:
    one, eight = (loratune.estimate_memory(model=str(config), trials=n, device_memory="8GiB") for n in (1, 8))
    assert one.verdict == "fits"
    assert eight.estimate.optimiser == 8 * one.estimate.optimiser
    assert eight.estimate.weights == one.estimate.weights


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (("--rank", "0"), "--rank"),
        (("--rank", "64"), "at most 16"),
        (("--batch-size", "0"), "--batch-size"),
        (("--trials", "0"), "--trials"),
        (("--max-length", "1"), "--max-length"),
        (("--dtype", "int8"), "--dtype"),
        (("--device-memory", "lots"), "--device-memory"),
        (("--model", "./nowhere"), "nowhere"),
    ],
)
def test_memory_refuses(bad: tuple[str, ...], says: str, shell: Shell, config: Path) -> None:
    ran = shell("memory", "--model", config, *bad)
    assert ran.code == 2
    assert says in ran.error
