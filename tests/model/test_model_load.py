"""Loading: frozen, exact, without the network; every refusal is one clear sentence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from families import EXPERTS, FAMILIES, random_model, save_family
from loratune.errors import InputError, ModelError, ResourceError
from loratune.model.base import load_model
from loratune.model.device import cpu_dtype
from loratune.model.profile import profile_from_config
from loratune.model.quiet import first_sentence
from loratune.model.source import locate
from tiny import byte_tokenizer, save_tiny_model

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_every_family_loads_frozen_with_the_profile_of_its_config(family: str, tmp_path: Path) -> None:
    base = load_model(str(save_family(family, tmp_path)), dtype="float32", device="cpu")
    model = base.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "sdpa"
    assert base.tokenizer is None
    assert base.profile == profile_from_config(str(tmp_path), dtype="float32")
    assert base.profile.parameters == sum(p.numel() for p in set(random_model(family).parameters()))
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(
        model(input_ids=tokens).logits, random_model(family).eval()(input_ids=tokens).logits
    )


def test_plain_models_load_without_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    save_family("llama", tmp_path)
    monkeypatch.delitem(sys.modules, "loratune.model.four_bit", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert load_model(str(tmp_path)).weight_format == "plain"


def test_profile_of_a_tied_llama_counted_by_hand(tmp_path: Path) -> None:
    profile = profile_from_config(str(save_family("llama", tmp_path)), dtype="bfloat16")
    attention, mlp = 32 * 32 + 2 * 32 * 16 + 32 * 32, 3 * 32 * 48
    assert profile.embedding_parameters == 260 * 32
    assert profile.parameters == 260 * 32 + 2 * (attention + mlp + 2 * 32) + 32
    assert profile.parameters_per_rank == 2 * (2 * 64 + 2 * 48 + 3 * 80)
    assert (profile.family, profile.hidden_size, profile.layers, profile.attention_heads) == (
        "llama",
        32,
        2,
        4,
    )
    assert (profile.intermediate_size, profile.vocabulary, profile.largest_rank) == (48, 260, 16)
    assert profile.bytes_per_parameter == 2.0


def test_untied_heads_count_as_embeddings_and_mixtures_by_the_experts_used(tmp_path: Path) -> None:
    assert profile_from_config(str(save_family("qwen2", tmp_path / "a"))).embedding_parameters == 2 * 260 * 32
    assert profile_from_config(str(save_family("mixtral", tmp_path / "b"))).intermediate_size == 2 * 48


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)],
)
def test_the_number_format_asked_for(dtype: str, expected: torch.dtype, tmp_path: Path) -> None:
    base = load_model(str(save_tiny_model(tmp_path)), dtype=dtype, device="cpu")  # type: ignore[arg-type]
    assert {parameter.dtype for parameter in base.model.parameters()} == {expected}
    assert base.dtype == expected
    assert base.profile.bytes_per_parameter == torch.finfo(expected).bits / 8


def test_automatic_format_follows_the_processor() -> None:
    assert cpu_dtype(frozenset({"avx2", "avx512_bf16"})) == torch.bfloat16
    assert cpu_dtype(frozenset({"amx_tile", "amx_bf16"})) == torch.bfloat16
    assert cpu_dtype(frozenset({"avx2", "avx512f"})) == torch.float32
    assert cpu_dtype(frozenset()) == torch.float32


def write_config(folder: Path, **values: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def no_config(folder: Path) -> None:
    folder.mkdir()


def broken_config(folder: Path) -> None:
    save_tiny_model(folder)
    (folder / "config.json").write_text("{")


def no_weights(folder: Path) -> None:
    save_tiny_model(folder)
    (folder / "model.safetensors").unlink()


def pickle_only(folder: Path) -> None:
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never read")


def missing_shard(folder: Path) -> None:
    no_weights(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_weights(folder: Path) -> None:
    no_weights(folder)
    (folder / "model.safetensors").write_bytes(b"not safetensors")


def wrong_shapes(folder: Path) -> None:
    save_tiny_model(folder)
    change_config(folder, intermediate_size=40)


def more_layers_than_weights(folder: Path) -> None:
    save_tiny_model(folder)
    change_config(folder, num_hidden_layers=3)


def impossible_config(folder: Path) -> None:
    save_tiny_model(folder)
    change_config(folder, hidden_act="no such function")


def wrong_type(folder: Path) -> None:
    save_tiny_model(folder)
    change_config(folder, hidden_size="big")


def encoder(folder: Path) -> None:
    BertForMaskedLM(BertConfig(**SMALL, intermediate_size=16)).save_pretrained(folder)


def classifier(folder: Path) -> None:
    LlamaForSequenceClassification(LlamaConfig(**SMALL, intermediate_size=16)).save_pretrained(folder)


def sequence_to_sequence(folder: Path) -> None:
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=64)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def state_space(folder: Path) -> None:
    MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=64)).save_pretrained(folder)


def unknown_architecture(folder: Path) -> None:
    write_config(folder, model_type="llama99", architectures=["Llama99ForCausalLM"])
    (folder / "model.safetensors").touch()


def remote_code(folder: Path) -> None:
    write_config(folder, model_type="own", auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    (folder / "modeling_own.py").write_text("raise SystemExit('this must never run')")
    (folder / "model.safetensors").touch()


def no_model_type(folder: Path) -> None:
    write_config(folder, hidden_size=16)
    (folder / "model.safetensors").touch()


def quantised(**values: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_tiny_model(folder)
        change_config(folder, quantization_config=values)

    return make


def adapter(folder: Path) -> None:
    save_tiny_model(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "the/base"}))


def two_gguf_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.gguf").touch()
    (folder / "b.gguf").touch()


def broken_gguf(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"GGUF but not really")


def foreign_tokenizer(folder: Path) -> None:
    save_family("llama", folder)
    change_config(folder, vocab_size=64)
    random = random_model("llama")
    random.resize_token_embeddings(64)
    random.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


REFUSALS: list[tuple[Callable[[Path], None], str]] = [
    (no_config, "holds no config.json"),
    (broken_config, "must be readable JSON"),
    (no_weights, "no weights: model.safetensors is missing"),
    (pickle_only, r"must be safetensors, .*pytorch_model.bin.*convert a copy that you trust"),
    (missing_shard, "lacks 1 of its 1 weight files, model-00001-of-00002.safetensors first"),
    (broken_weights, "cannot be loaded"),
    (wrong_shapes, "cannot be loaded"),
    (more_layers_than_weights, r"lack 9 tensors .*model.layers.2"),
    (impossible_config, "no such function"),
    (wrong_type, "hidden_size in config.json of .* must be a whole number of 1 to 16777216, got 'big'"),
    (encoder, "must be a causal language model, .* is a BertForMaskedLM"),
    (classifier, "is a LlamaForSequenceClassification"),
    (sequence_to_sequence, "is a T5ForConditionalGeneration"),
    (state_space, "must have attention layers, .* is a MambaForCausalLM, made of recurrent"),
    (unknown_architecture, "architecture llama99, unknown to transformers"),
    (remote_code, "needs code of its own .* never runs"),
    (no_model_type, "must name a model_type"),
    (quantised(quant_method="gptq", bits=4), r"in bitsandbytes' NF4, .* \(gptq\); give the unquantised"),
    (quantised(quant_method="awq", bits=4), r"quantised otherwise \(awq\)"),
    (quantised(quant_method="fp8"), r"quantised otherwise \(fp8\)"),
    (quantised(quant_method="bitsandbytes", load_in_8bit=True), r"\(bitsandbytes, 8 bits\)"),
    (quantised(quant_method="bitsandbytes", load_in_4bit=True), r"\(bitsandbytes, fp4\)"),
    (adapter, r"holds an adapter .* give its base model \(the/base\)"),
    (two_gguf_files, "must hold one .gguf file, found 2"),
    (broken_gguf, "cannot be read"),
    (foreign_tokenizer, "uses token 256, but the model has 64 embeddings"),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=lambda case: getattr(case, "__name__", None))
def test_what_cannot_be_used_is_refused_in_one_sentence(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    make(folder)
    with pytest.raises(ModelError, match=message) as refusal:
        load_model(str(folder), dtype="float32", device="cpu")
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(".")
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("One.\nTwo.", "One"),
        ("\n  One: two \nThree", "One: two"),
        ("One:\n\n    Two:\n\tthree.\nFour", "One: Two: three"),
        ("One:\n", "One"),
        ("", "ValueError"),
    ],
)
def test_what_is_quoted_of_a_message(message: str, sentence: str) -> None:
    assert first_sentence(ValueError(message)) == sentence


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(str(tmp_path / "absent"))
    with pytest.raises(
        ModelError, match=r"nobody/nothing was not found locally and the hub cannot be reached"
    ):
        load_model("nobody/nothing")
    with pytest.raises(ModelError, match="neither an existing folder nor a hub name"):
        load_model("two words")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match="got the file"):
        load_model(str(tmp_path / "notes.txt"))


def test_a_profile_needs_no_weights(tmp_path: Path) -> None:
    no_weights(tmp_path)
    assert locate(str(tmp_path), weights=False).folder == tmp_path
    assert profile_from_config(str(tmp_path)).family == "llama"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_or_unknown_device(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    with pytest.raises(ResourceError):
        load_model(str(tmp_path), device="cuda")
    with pytest.raises(InputError):
        load_model(str(tmp_path), device="abacus")


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(tmp_path)
    capfd.readouterr()
    load_model(str(tmp_path), dtype="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
