"""How rows of a shape write their prompts, as a value that outlives the data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loratune.data.chat import Messages
from loratune.data.row import Row
from loratune.data.shapes import Classification, Shape, Text
from loratune.data.template import Template
from loratune.errors import DataError
from loratune.values import PromptFormat, PromptKind

Chat = Callable[[list[dict[str, str]]], str]
"""Renders a conversation with the tokenizer's chat template and its generation prompt."""


def prompt_format(shape: Shape) -> PromptFormat:
    """Of a shape that `recognise` found."""
    if isinstance(shape, Messages):
        return PromptFormat(kind=PromptKind.CHAT if shape.has_template else PromptKind.TURNS)
    if isinstance(shape, Text):
        return PromptFormat(kind=PromptKind.TEXT)
    prompt = getattr(shape, "prompt", None)
    if not isinstance(prompt, Template):
        return PromptFormat(kind=PromptKind.VERBATIM)
    label = isinstance(shape, Classification)
    return PromptFormat(kind=PromptKind.LABEL if label else PromptKind.TEMPLATE, template=prompt.text)


def render_prompt(given: PromptFormat, values: str | Mapping[str, Any], chat: Chat) -> str:
    """The text that a model is given before it completes.

    `values`: the text of the template's only field, or the fields by name where it has several.
    Raises `DataError` where they do not fit the template.
    """
    if given.template:
        template = Template.parse(given.template)
        text = template.render(Row(_fields(template.columns, values), "the text"))
        return text.rstrip(" ") if given.kind is PromptKind.LABEL else text
    if not isinstance(values, str):
        raise DataError(f"the text must be plain for rows read as {given.kind}, got fields; give the text.")
    if given.kind is PromptKind.CHAT:
        return chat([{"role": "user", "content": values}])
    return f"User: {values}\nAssistant:" if given.kind is PromptKind.TURNS else values


def _fields(columns: Sequence[str], values: str | Mapping[str, Any]) -> Mapping[str, Any]:
    names = list(dict.fromkeys(columns))
    if isinstance(values, str) and len(names) == 1:
        return {names[0]: values}
    if isinstance(values, str) or not set(names) <= set(values):
        wanted = ", ".join(f'"{name}": "…"' for name in names)
        raise DataError(
            f"the template has the fields {', '.join(names)}, got "
            f"{'one text' if isinstance(values, str) else ', '.join(values) or 'none'}; "
            f"give a JSON object: '{{{wanted}}}'."
        )
    return values
