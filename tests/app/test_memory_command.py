"""`loratune memory`: from weights or a configuration alone, what fits and what does not."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

import loratune
from command_fixture import Place, Shell
from loratune.app.memory import estimate_memory
from loratune.costs.limits import CARDS

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
    assert words.code == 4
    assert "This does not fit in 1 MiB." in words.out
    assert "Not even one row" in words.out


def test_memory_as_a_function(config: Path) -> None:
    one, eight = (loratune.estimate_memory(model=str(config), trials=n, device_memory="8GiB") for n in (1, 8))
    assert one.verdict == "fits"
    assert eight.estimate.optimiser == 8 * one.estimate.optimiser
    assert eight.estimate.weights == one.estimate.weights


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Asks for a model of Llama 3's 8B shape on a GPU: 14.96 GiB of weights in bfloat16."""
    folder = tmp_path_factory.mktemp("eight")
    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return partial(estimate_memory, model=folder, device="cuda")


def test_what_is_needed_does_not_grow_with_the_device(eight: Any) -> None:
    totals = {eight(device_memory=memory).estimate.total for memory in ("1GiB", "24GiB", "80GiB", "1000GiB")}
    assert len(totals) == 1
    assert 15 * 2**30 < totals.pop() < 20 * 2**30
    assert eight(device_memory="80GiB").largest_micro_batch > eight(device_memory="24GiB").largest_micro_batch


def test_the_smallest_card(eight: Any) -> None:
    """The one before it would be too small, by the bytes that a process sees of it."""
    for wishes in ({}, {"trials": 32}, {"max_length": 8192, "trials": 4}, {"dtype": "nf4"}):
        found = eight(device_memory="24GiB", **wishes)
        place = CARDS.index(found.card)
        assert found.estimate.fits(CARDS[place].bytes)
        assert not found.estimate.fits(CARDS[place - 1].bytes)
    assert "24 GB" in eight(device_memory="24GiB").card.name
    assert eight(device_memory="24GiB", dtype="nf4").card.bytes < 16 * 2**30
    assert eight(device_memory="24GiB", trials=256, rank=512).card is None


@pytest.mark.parametrize(
    ("memory", "wishes", "kinds"),
    [
        ("12GiB", {}, {"--dtype nf4"}),
        ("24GiB", {"trials": 12}, {"--trials", "--rank", "--dtype nf4"}),
        ("24GiB", {"max_length": 16384}, {"--max-length"}),
        ("10GiB", {"trials": 64, "max_length": 8192}, {"--dtype nf4 --trials 1 --max-length"}),
    ],
)
def test_what_is_advised_fits_when_it_is_asked_for(
    memory: str, wishes: dict[str, Any], kinds: set[str], eight: Any
) -> None:
    found = eight(device_memory=memory, **wishes)
    assert found.verdict != "fits"
    assert {kind for kind in kinds if any(kind in change.options for change in found.changes)} == kinds
    for change in found.changes:
        words = change.options.split()
        pairs = {
            n.removeprefix("--").replace("-", "_"): v for n, v in zip(words[::2], words[1::2], strict=True)
        }
        more = {name: value if name == "dtype" else int(value) for name, value in pairs.items()}
        again = eight(device_memory=memory, **(wishes | more))
        assert again.verdict == "fits", change
        assert again.estimate.total == change.total
        assert again.changes == ()


def test_a_configuration_without_sizes_is_refused(shell: Shell, config: Path) -> None:
    """A llama of which nothing is said would be counted as one of 7B."""
    values = json.loads((config / "config.json").read_text())
    del values["num_hidden_layers"], values["vocab_size"]
    (config / "config.json").write_text(json.dumps(values))
    ran = shell("memory", "--model", config, "--device-memory", "24GiB")
    assert ran.code == 2
    assert "lacks vocab_size, num_hidden_layers" in ran.error


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
