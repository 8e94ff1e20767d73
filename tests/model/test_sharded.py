"""Linear layers spread over several holders: the whole model's numbers to the last bit, and layers read ahead."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Lock

import pytest
import torch

from families import save_family
from loratune.costs.memory import copied_bytes, weight_bytes
from loratune.maths.sizes import SHARD_BUFFERS
from loratune.model.base import BaseModel, load_model
from loratune.model.device import DType
from loratune.model.sharded import _WEIGHTS, LayerWeights, Shard, ShardedLinear, holders


class Exchanges:
    """What processes do through their driver, between threads."""

    def __init__(self, of: int) -> None:
        self._offers: list[Sequence[bytes]] = [()] * of
        self._barrier = Barrier(of, timeout=60)
        self._loading = Lock()  # transformers changes torch's default type meanwhile

    def share(self, place: int) -> Shard:
        def exchange(offers: Sequence[bytes]) -> Sequence[bytes]:
            self._offers[place] = offers
            self._loading.release()
            self._barrier.wait()
            self._loading.acquire()
            return [each[place] for each in self._offers]

        return Shard(place, len(self._offers), exchange)

    def load(self, folder: Path, dtype: DType, place: int) -> BaseModel:
        with self._loading:
            return load_model(str(folder), dtype=dtype, device="cpu", share=self.share(place))


def spread(folder: Path, dtype: DType, of: int) -> list[BaseModel]:
    exchanges = Exchanges(of)
    with ThreadPoolExecutor(of) as threads:
        loaded = [threads.submit(exchanges.load, folder, dtype, place) for place in range(of)]
        return [each.result() for each in loaded]


def numbers(base: BaseModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two rows, and the gradient that reaches the embeddings."""
    tokens = torch.arange(12).reshape(2, 6)
    embedded = base.model.get_input_embeddings()(tokens).detach().requires_grad_()
    logits = base.model(inputs_embeds=embedded, use_cache=False).logits
    logits.square().mean().backward()
    assert embedded.grad is not None
    return logits.detach(), embedded.grad


def weights_of(base: BaseModel) -> LayerWeights:
    layer = base.model.get_submodule(base.profile.targets[0][0])
    assert isinstance(layer, ShardedLinear)
    return _WEIGHTS[int(layer.source[0])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "nf4"])
@pytest.mark.parametrize("of", [2, 3])
def test_numbers_are_the_whole_model_s(dtype: DType, of: int, tmp_path: Path) -> None:
    """Of every holder, in both passes, however often: what is read ahead changes nothing."""
    if dtype == "nf4":
        pytest.importorskip("bitsandbytes")
    folder = save_family("qwen2", tmp_path)  # with biases
    whole = numbers(load_model(str(folder), dtype=dtype, device="cpu"))
    for base in spread(folder, dtype, of):
        for _ in range(3):
            logits, gradient = numbers(base)
            assert torch.equal(logits, whole[0])
            assert torch.equal(gradient, whole[1])


def test_layers_are_read_before_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the order is known: as many copies as layers of others in two passes, none while it is waited for."""
    base = spread(save_family("llama", tmp_path), "float32", 2)[0]
    weights = weights_of(base)
    theirs = len(weights.layers) - len(weights.own)
    assert 0 < theirs < len(weights.layers)
    for _ in range(3):
        numbers(base)
    waited: list[int] = []
    find = LayerWeights._find
    filled: list[int] = []
    fill = LayerWeights._fill

    def recorded(self: LayerWeights, layer: int, current: int) -> object:
        filled.append(layer)
        if layer == current:
            waited.append(layer)
        return fill(self, layer, current)

    monkeypatch.setattr(LayerWeights, "_fill", recorded)
    numbers(base)
    assert not waited
    assert len(filled) <= 2 * theirs
    assert find(weights, filled[-1]) is not None
    assert len(weights._buffers) == SHARD_BUFFERS


def test_each_holds_its_part(tmp_path: Path) -> None:
    bases = spread(save_family("llama", tmp_path), "float32", 2)
    held = [sum(t.nbytes for i in weights_of(b).own for t in weights_of(b).layers[i]) for b in bases]
    whole = load_model(str(tmp_path), dtype="float32", device="cpu").profile
    layers = sum(4 * inputs * outputs for _, inputs, outputs in whole.targets)
    assert sum(held) == layers
    assert max(held) - min(held) <= 4 * max(inputs * outputs for _, inputs, outputs in whole.targets)
    profile = bases[0].profile
    assert replace(profile, shards=1, sharded_parameters=0, largest_sharded=0) == whole
    assert weight_bytes(profile) == weight_bytes(whole) - layers // 2
    buffers = weights_of(bases[0])._buffers
    assert copied_bytes(profile) == sum(each.storage.nbytes for each in buffers)
    names = {name for name, _ in bases[0].model.named_parameters()}
    assert not names & {f"{name}.weight" for name, _, _ in whole.targets}


def test_a_weight_is_read_whole_where_it_is_no_product(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    whole = load_model(str(folder), dtype="float32", device="cpu")
    for base in spread(folder, "float32", 2):
        for name, _, _ in base.profile.targets:
            found = base.model.get_submodule(name).weight
            assert torch.equal(found, whole.model.get_submodule(name).weight)


def test_the_largest_go_to_who_holds_least() -> None:
    assert holders([4, 9, 5, 1, 1], 2) == [1, 0, 1, 0, 1]
    assert holders([3, 3, 3], 1) == [0, 0, 0]
