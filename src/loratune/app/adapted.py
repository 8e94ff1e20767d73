"""A finished run's base model with its adapter on it, and what is done with the two: completions, one merged model."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from loratune.data.encode import Encoder
from loratune.data.shapes import render_prompt
from loratune.data.template import Template
from loratune.errors import InputError, ModelError
from loratune.files.lock import check_new
from loratune.files.paths import user_path
from loratune.files.write import new_folder
from loratune.lora.peft_io import described
from loratune.model.architecture import read_config
from loratune.model.base import BaseModel, load_model
from loratune.model.nf4 import is_packed
from loratune.model.quiet import first_sentence, quiet
from loratune.model.source import locate
from loratune.runners.spec import model_cache
from loratune.tuning.outcome import TrainedRun, load_run
from loratune.values import PLAIN, PromptFormat, PromptKind

_NOT_AN_ADAPTER = (
    *(SafetensorError, RuntimeError, ValueError, OSError),
    *(TypeError, AttributeError, KeyError, AssertionError, NotImplementedError, RecursionError),
)
"""What PEFT and safetensors raise of files that are not what was written, or of another base model's."""


def generate(
    directory: str | Path,
    text: str | Mapping[str, Any],
    *,
    max_new_tokens: int = 256,
    model: str | None = None,
    device: str = "auto",
) -> str:
    """The completion of one text by the adapter of a finished run, greedily, in the prompt it was trained with.

    `text`: of the template's only field, a user's message, or the prompt itself, as the rows were; the fields by
    name where a template has several. `model`: the base model, where it has moved. Raises `InputError`.
    """
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {max_new_tokens}; give for example 64.")
    run = load_run(user_path(directory))
    if run.classifies:
        raise InputError(
            f"generate completes text, and {run.directory} holds a classifier; load it as its "
            "adapter/README.md shows."
        )
    base, tuned = _opened(run, model, device)
    tokens = _prompt_tokens(run, base, text)
    tokenizer = base.tokenizer
    assert tokenizer is not None
    with torch.no_grad(), quiet():
        output = tuned.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    return str(tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True))


def merge(directory: str | Path, out: str | Path, *, model: str | None = None, device: str = "cpu") -> Path:
    """Write the base model with the adapter added to its weights: a transformers folder in safetensors.

    The folder appears whole or not at all. `model`: the base model, where it has moved. An adapter that was trained on
    a base in 4 bits is added to the whole weights. Raises `InputError`.
    """
    run, folder = load_run(user_path(directory)), user_path(out)
    check_new(folder)
    base, tuned = _opened(run, model, device, whole=True)
    merged = tuned.merge_and_unload(safe_merge=True)
    for config in (merged.config, merged.config.get_text_config()):
        config.use_cache = True  # loading for training turned it off
    with new_folder(folder, replace=True) as fresh, quiet():  # instead of what a killed run left there
        merged.save_pretrained(fresh)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(fresh)
        check_new(folder)  # loading and saving may have taken long
    return folder


def _opened(
    run: TrainedRun, model: str | None, device: str, *, whole: bool = False
) -> tuple[BaseModel, PeftModel]:
    """The base model as it was held in the run, or with `whole` its plain weights; the adapter on it."""
    described(run.adapter)
    record = run.training
    kind = record.dtype if whole or record.weight_format == PLAIN else record.weight_format
    name = model or record.model
    if whole and record.weight_format != PLAIN and _is_packed(name):
        raise ModelError(
            f"an adapter is merged into whole weights, those of {name} are in 4 bits; give the unquantised checkpoint "
            "with --model."
        )
    base = load_model(
        name,
        dtype=kind,  # type: ignore[arg-type]
        device=device,
        cache=model_cache(),
        classifier=record.classifier,
    )
    try:
        with quiet():
            tuned = PeftModel.from_pretrained(base.model, run.adapter)
    except _NOT_AN_ADAPTER as error:
        raise ModelError(
            f"the adapter of {run.directory} does not fit {name}: {first_sentence(error)}; give the "
            "base model that it was trained on with --model."
        ) from None
    return base, tuned.eval()


def _is_packed(name: str) -> bool:
    return is_packed(read_config(locate(name)))


def _prompt_tokens(run: TrainedRun, base: BaseModel, text: str | Mapping[str, Any]) -> torch.Tensor:
    """[1, T] as the rows' prompts were tokenised."""
    tokenizer, given = base.tokenizer, run.training.prompt
    if tokenizer is None:
        raise ModelError(f"{run.training.model} holds no tokenizer; give a folder that does with --model.")

    def chat(messages: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    prompt = render_prompt(given, _values(given, text), chat)
    ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if given.kind is not PromptKind.CHAT:  # a chat template writes its own beginning
        end = int(tokenizer.eos_token_id)
        ids = (
            Encoder(tokenizer=tokenizer, end_of_turn=end, max_length=run.training.max_length).beginning + ids
        )
    if not ids:
        raise InputError("the text must not be empty, got ''; give at least one word.")
    return torch.tensor([ids], device=base.device)


def _values(given: PromptFormat, text: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """The fields of a JSON object where the template has several and these are they."""
    if not isinstance(text, str) or not given.template:
        return text
    template = Template.parse(given.template)
    if len(set(template.columns) | template.optional) < 2:
        return text
    try:
        values = loads(text)
    except (ValueError, RecursionError):  # among them an integer of 5,000 digits
        return text
    return values if isinstance(values, dict) and set(template.columns) <= set(values) else text


def generate_command(
    directory: Path, text: str, *, max_new_tokens: int, model: str | None, device: str, as_json: bool
) -> None:
    """Print the completion, or a document with it."""
    completion = generate(directory, text, max_new_tokens=max_new_tokens, model=model, device=device)
    print(dumps({"completion": completion}) if as_json else completion)


def merge_command(directory: Path, out: Path, *, model: str | None, device: str) -> None:
    """Print where the merged model is."""
    print(f"Merged model: {merge(directory, out, model=model, device=device)}")
