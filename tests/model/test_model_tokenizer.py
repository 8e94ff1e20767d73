"""The tokenizer that training sees: pad token, padding side, and the token that ends a turn."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loratune.errors import ModelError
from loratune.model.base import load_model
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from tiny import END, byte_tokenizer, save_tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def test_without_pad_token_and_template_the_end_token_serves_both(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.chat_template is None
    assert tokenizer.pad_token == tokenizer.eos_token == END
    assert tokenizer.padding_side == "right"
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids(END)
    base = load_model(str(tmp_path), dtype="float32", device="cpu")
    assert base.tokenizer is not None
    assert base.tokenizer.pad_token == END


def test_the_template_decides_what_ends_a_turn_whatever_the_file_says(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.eos_token = "<|im_start|>"  # what transformers 5.17 reads from SmolLM2's GGUF
    tokenizer.save_pretrained(save_tiny_model(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.pad_token == "<|im_end|>"
    row = loaded.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )
    assert row.endswith("b<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", END),
        ("{% for m in messages %}{{ m.content }}</s>{% endfor %}", END),
        ("{{ raise_exception('never') }}", END),
        (None, END),
    ],
    ids=["no token", "plain text", "unusable", "no template"],
)
def test_without_a_special_token_after_the_reply_the_files_own_end_holds(
    template: str | None, expected: str
) -> None:
    tokenizer = chat_tokenizer(template)
    assert tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)) == expected


def test_no_tokenizer_and_no_end_token_are_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "a")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "a" / name).unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path / "a"))
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="must have an end-of-sequence token"):
        end_of_turn_id(tokenizer)
    save_tiny_model(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(str(tmp_path / "b"))
