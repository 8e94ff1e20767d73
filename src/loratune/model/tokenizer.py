"""A base model's tokenizer, ready for training: right padding, a pad token, the right end of a turn."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loratune.errors import ModelError, panics_as
from loratune.model.architecture import read_config
from loratune.model.copies import drop_copy, keep_copy, one_unpacks
from loratune.model.quiet import first_sentence, quiet, silent_libraries
from loratune.model.source import Source, locate

_REPLY = "loratune"
_SAMPLE = "A text: 1 + 1 = 2, größer 猫🐈\n"
"""Encoded once, since a tokenizer whose files are broken may still load."""


def load_tokenizer(
    name: str, *, cache: Path | None = None, classifies: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, hub name or .gguf file; the model's weights are not touched.

    Its `eos_token` is what ends an assistant's turn (`end_of_turn_id`), whatever the file says:
    transformers 5.17 reads SmolLM2's from GGUF as `<|im_start|>`. A missing pad token becomes the
    end-of-turn token, which is harmless as labels come from lengths, never from pad ids.
    With `classifies` no turn ends, and the file's own end-of-sequence token stays.
    `cache` keeps what was read from a .gguf file. Raises `ModelError`, also for a model that could not
    be trained (not for .gguf files, whose configuration takes long to read: there only `load_model` does).
    """
    source = locate(name, weights=False)
    if source.gguf is None or classifies:
        read_config(source, classifies=classifies)
    return open_tokenizer(source, cache, classifies=classifies)


def open_tokenizer(
    original: Source, cache: Path | None = None, *, classifies: bool = False
) -> PreTrainedTokenizerBase:
    """`load_tokenizer` for files already found and checked."""
    if not original.has_tokenizer:
        raise ModelError(
            f"{original.name} holds no tokenizer (tokenizer.json); copy its files there with save_pretrained."
        )
    with one_unpacks(original, cache, "tokenizer") as source:
        try:
            tokenizer = _read(source, classifies)
        except ModelError:
            if source is original or cache is None:
                raise
            drop_copy(original, cache, "tokenizer")
            source, tokenizer = original, _read(original, classifies)
        if source.gguf is not None and cache is not None:
            keep_copy(source, cache, "tokenizer", tokenizer)
    return tokenizer


def _read(source: Source, classifies: bool) -> PreTrainedTokenizerBase:
    advice = "check that its files belong together"
    try:
        with (
            quiet(),
            silent_libraries(),
            panics_as(f"the tokenizer of {source.name} cannot be used", advice),
        ):
            tokenizer = AutoTokenizer.from_pretrained(source.folder, **source.arguments)
            tokenizer.padding_side = "right"
            if not classifies:
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
            tokenizer.decode(tokenizer(_SAMPLE)["input_ids"])
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {source.name} cannot be read: {first_sentence(error)}; {advice}."
        ) from None
    return tokenizer


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that a fine-tuned model has to learn to stop with.

    With a chat template it is the first special token that the template writes after an assistant's
    message (Gemma's `<end_of_turn>` where the eos token is `<eos>`); otherwise, or if the template
    writes none, the tokenizer's own end-of-sequence token. Raises `ModelError` where there is neither.
    """
    special = {str(added) for added in tokenizer.added_tokens_decoder.values() if added.special}
    special.update(tokenizer.all_special_tokens)
    for token in tokenizer.tokenize(_after_reply(tokenizer)):
        if token in special:
            return int(tokenizer.convert_tokens_to_ids(token))
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "a tokenizer must have an end-of-sequence token, this one has none; "
            "set eos_token in tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def _after_reply(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's message; empty without a usable template."""
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _REPLY}]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # templates raise whatever they like; the data room reports it where chat data is given
        return ""
    return rendered.rpartition(_REPLY)[2] if _REPLY in rendered else ""
