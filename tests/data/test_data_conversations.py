"""Conversations as people store them: what is rendered, what is learnt, what is refused, what is noted."""

import json
from typing import Any

import pytest

from loratune.data.chat import Messages
from loratune.data.encode import Encoder
from loratune.data.recognise import recognise
from loratune.data.row import Row
from loratune.data.shapes import examples
from loratune.data.sources import DataOptions, Source
from loratune.errors import DataError
from tiny import END, byte_tokenizer

PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOOLS = (
    "{% if tools %}[tools]{{ tools | tojson }}" + END + "\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}" + END + "\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT_ARGUMENTS = TOOLS.replace(
    "{{ c.function.arguments | tojson }}", "{{ c.function.name + ' ' + c.function.arguments }}"
)
THINKING = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    + END
    + "\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
KNOWN_ROLES = PLAIN.replace(
    "{% for m in messages %}", "{% for m in messages if m.role in ['system', 'user', 'assistant'] %}"
)


def user(text: Any = "hi") -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any = "ho", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(arguments: Any = '{"q": "ü"}', **more: Any) -> list[dict[str, Any]]:
    return [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}, **more}]


SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOL = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
ANSWER = [{"role": "tool", "tool_call_id": "c1", "content": "cow"}, assistant("A cow.")]


def read(
    rows: list[dict[str, Any]], template: str | None = PLAIN
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(whole text, learnt text) of each row, and the notes."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    source = Source(
        name="a.jsonl", open=lambda: (Row(row, f"a.jsonl:{n}") for n, row in enumerate(rows, start=1))
    )
    shape = recognise(source, DataOptions(data="a.jsonl"), tokenizer)
    assert isinstance(shape, Messages)
    encoder = Encoder(tokenizer=tokenizer, end_of_turn=tokenizer.eos_token_id, max_length=2000)
    texts = []
    for encoded in encoder.encode(list(examples(shape, source)), shape.overflow):
        [(tokens, learned)] = encoded.pieces
        kept = [token for token, flag in zip(tokens, learned, strict=True) if flag]
        texts.append((tokenizer.decode(tokens), tokenizer.decode(kept)))
    return texts, shape.notes


def refused(row: dict[str, Any], template: str | None = PLAIN) -> str:
    with pytest.raises(DataError) as caught:
        read([row], template)
    message = str(caught.value)
    assert message.startswith("a.jsonl:1: ")
    assert "\n" not in message
    return message


SAME = f"[user]hi{END}\n[assistant]ho{END}"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user(), assistant()]},
        {"messages": json.dumps([user(), assistant()])},  # as tables hold it
        {
            "messages": [
                user([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]),
                assistant(["h", "o"]),
            ]
        },
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "ho"}]},
        {"conversations": [user(), assistant()]},
        {"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho", "weight": None}]},
        {"prompt": [user()], "completion": [assistant()]},
        {"dialogue": [user(), assistant(refusal=None)]},
    ],
)
def test_ways_to_write_the_same_conversation(row: dict[str, Any]) -> None:
    assert read([row]) == ([(SAME, f"ho{END}")], ())


def test_a_system_column_comes_first() -> None:
    row = {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
    }
    assert read([row])[0] == [(f"[system]Be kind.{END}\n{SAME}", f"ho{END}")]


def test_only_the_completion_of_turns_is_learnt() -> None:
    [(_, learned)], _ = read(
        [{"prompt": [user(), assistant("no"), user()], "completion": [assistant("yes")]}]
    )
    assert learned == f"yes{END}"


@pytest.mark.parametrize("content", ["Look.", None, ""])
@pytest.mark.parametrize("arguments", ['{"q": "ü"}', {"q": "ü"}], ids=["text", "mapping"])
def test_tool_calls_are_rendered_and_learnt(content: str | None, arguments: Any) -> None:
    turns = [user(), assistant(content, tool_calls=call(arguments)), *ANSWER]
    [(whole, learned)], notes = read(
        [{"messages": turns, "tools": [{"type": "function", "function": TOOL}]}], TOOLS
    )
    called = f'{content or ""}<call>look {{"q": "ü"}}</call>{END}'
    assert learned == f"{called}A cow.{END}"
    assert whole.startswith('[tools][{"type": "function", "function": {"name": "look"')
    assert whole.endswith(f"[assistant]{called}\n[tool]cow{END}\n[assistant]A cow.{END}")
    assert notes == ()


@pytest.mark.parametrize(
    "turn",
    [
        assistant(None, tool_calls=[{"name": "look", "arguments": {"q": "ü"}}]),
        assistant(None, function_call={"name": "look", "arguments": '{"q": "ü"}'}),
        {"role": "assistant", "tool_calls": call()},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"q": "ü"}}'},
    ],
)
def test_other_ways_to_write_a_tool_call(turn: dict[str, Any]) -> None:
    [(whole, learned)], _ = read([{"messages": [user(), turn, *ANSWER], "tools": json.dumps([TOOL])}], TOOLS)
    assert learned == f'<call>look {{"q": "ü"}}</call>{END}A cow.{END}'
    assert '"description": "Looks."' in whole


def test_arguments_are_given_as_text_where_the_template_wants_text() -> None:
    [(_, learned)], _ = read([{"messages": [user(), assistant(None, tool_calls=call())]}], TEXT_ARGUMENTS)
    assert learned == f'<call>look look {{"q": "ü"}}</call>{END}'


@pytest.mark.parametrize("template", [PLAIN, None])
def test_what_a_template_cannot_show_is_refused_by_name(template: str | None) -> None:
    calling = {"messages": [user(), assistant("Look.", tool_calls=call()), *ANSWER]}
    assert "does not show" in refused(calling)
    assert "tool_calls of message 2" in refused(calling, template)
    with_tools = {"messages": [user(), assistant()], "tools": [TOOL]}
    assert "the row's tools" in refused(with_tools, template)
    # what the sentences advise works
    del calling["messages"][1]["tool_calls"], with_tools["tools"]
    assert len(read([calling, with_tools], template)[0]) == 2


def test_content_that_a_template_drops_is_refused() -> None:
    row = {"messages": [user(), assistant(), {"role": "tool", "content": "cow"}, assistant()]}
    assert "not show the content of message 3 (role 'tool')" in refused(row, KNOWN_ROLES)


def test_developer_is_given_as_system_where_the_template_does_not_know_it() -> None:
    row = {"messages": [{"role": "developer", "content": "Be kind."}, user(), assistant()]}
    [(whole, _)], notes = read([row], KNOWN_ROLES)
    assert whole == f"[system]Be kind.{END}\n{SAME}"
    assert notes == ("1 messages of the role developer are given as system, for the chat template.",)
    assert read([row])[0][0][0].startswith("[developer]Be kind.")


def test_turns_of_weight_zero_are_given_but_not_learnt() -> None:
    row = {"messages": [user(), assistant("WRONG", weight=0), user("no"), assistant("right", weight=1)]}
    for template in (PLAIN, None):
        [(whole, learned)], notes = read([row, row], template)[0][:1], read([row, row], template)[1]
        assert "WRONG" in whole
        assert learned.strip() == f"right{END}"
        assert notes == ("2 of 4 assistant's turns have weight 0: they are read, but not learnt.",)
    assert "must have a weight of 0 or 1, got 0.5" in refused({"messages": [user(), assistant(weight=0.5)]})
    assert "got weight 0 for all" in refused({"messages": [user(), assistant(weight=0)]})


def test_a_turn_that_answers_nothing_is_given() -> None:
    [(whole, learned)], notes = read(
        [{"conversations": [{"from": "gpt", "value": "Hello?"}, user(), assistant()]}]
    )
    assert (whole, learned) == (f"[assistant]Hello?{END}\n{SAME}", f"ho{END}")
    assert notes == ("1 of 1 conversations begin with the assistant's turn: it is given, not learnt.",)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_reach_the_template_or_are_noted(name: str) -> None:
    row = {"messages": [user(), assistant("a", **{name: "hm"}), user(), assistant("b", **{name: "well"})]}
    [(_, learned)], notes = read([row], THINKING)
    assert learned == f"a{END}<think>well</think>b{END}"
    assert notes == (
        "The chat template leaves out the thinking of 1 of 2 assistant's turns: it is neither given nor learnt.",
    )
    assert "the thinking of 2 of 2 assistant's turns" in read([row])[1][0]


def test_thoughts_within_the_content_that_a_template_strips_are_noted() -> None:
    row = {"messages": [user(), assistant("<think>hm</think>a"), user(), assistant("b")]}
    [(_, learned)], notes = read([row], THINKING)
    assert learned == f"a{END}<think></think>b{END}"
    assert notes == (
        "The chat template leaves out the thinking of 1 of 2 assistant's turns: it is neither given nor learnt.",
        "The chat template writes '<think></think>' before the words of 1 of 2 assistant's turns: it is learnt "
        "with them.",
    )


def test_a_generation_prompt_that_opens_a_thought_is_noted() -> None:
    """As DeepSeek-R1's: answers in the data have no thought, so they begin where the two agree."""
    template = PLAIN.replace("[assistant]{% endif", "[assistant]<think>\n{% endif")
    texts, notes = read([{"messages": [user(), assistant("<b>ho</b>")]}], template)
    assert texts == [(f"[user]hi{END}\n[assistant]<b>ho</b>{END}", f"<b>ho</b>{END}")]
    assert notes == (
        "The chat template's generation prompt ends in '<think>', which 1 of 1 assistant's turns do not begin with.",
    )


def test_content_beside_tool_calls_that_a_template_leaves_out_is_noted() -> None:
    template = TOOLS.replace("]{{ m.content }}", "]{% if not m.tool_calls %}{{ m.content }}{% endif %}")
    [(_, learned)], notes = read(
        [{"messages": [user(), assistant("Look.", tool_calls=call()), *ANSWER]}], template
    )
    assert learned.startswith("<call>look")
    assert notes == (
        "The chat template leaves out the content beside tool_calls in 1 of 2 assistant's turns.",
    )


def test_contents_are_given_as_parts_where_the_template_wants_parts() -> None:
    """As templates of models for images: text that is no list of parts is left out, or an error."""
    for part in ("{% if p.type == 'text' %}{{ p.text }}{% endif %}", "{{ p['text'].strip() }}"):
        template = PLAIN.replace("{{ m.content }}", "{% for p in m.content %}" + part + "{% endfor %}")
        assert read([{"messages": [user(), assistant()]}], template) == ([(SAME, f"ho{END}")], ())


def test_a_missing_content_is_not_learnt_as_none() -> None:
    calling = {"messages": [user(), assistant(None, tool_calls=call()), *ANSWER]}
    assert "None" not in read([calling], TOOLS)[0][0][0]
    content = "{% if m.content is string %}{{ m.content }}{% else %}(nothing){% endif %}"
    assert "(nothing)<call>look" in read([calling], TOOLS.replace("{{ m.content }}", content))[0][0][1]
    assert "tool_calls of message 2" in refused(calling)


def test_other_fields_and_unanswered_messages_are_noted() -> None:
    row = {"messages": [{**user(), "name": "Ann"}, assistant(audio={"id": 1}), user("unanswered")]}
    _, notes = read([row])
    assert notes == (
        "1 of 1 conversations end in a message that is not the assistant's: it is not learnt, and what follows the "
        "last answer is not read.",
        "The field 'name' of 1 messages is not shown by the chat template.",
        "The field 'audio' of 1 messages is not read.",
    )
    [(whole, _)], notes = read(
        [{"messages": [*row["messages"][:1], assistant()]}],
        PLAIN.replace("]{{", "]{% if m.name %}{{ m.name }}:{% endif %}{{"),
    )
    assert whole.startswith("[user]Ann:hi")
    assert notes == ()


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([user(), assistant(None)], "message 2 must have a content that is text, got null"),
        (
            [user([{"type": "image_url", "image_url": "x"}]), assistant()],
            "parts of type 'text' only, got 'image_url'",
        ),
        ([user(3), assistant()], r"message 1 must have a content that is text, got a number (3)"),
        (
            [user(), assistant(None, tool_calls=call("not json"))],
            "arguments of 'look' as a JSON object, got text",
        ),
        (
            [user(), assistant(None, tool_calls=[{"id": "c1"}])],
            "message 2 must name the function of every tool call",
        ),
        ([{"from": "human"}, assistant()], "message 1 must have a content that is text, got null"),
    ],
)
def test_broken_turns_are_named(turns: list[Any], message: str) -> None:
    assert message in refused({"messages": turns}, TOOLS)


def test_tools_that_are_no_functions_are_named() -> None:
    assert "'tools' must be a list of functions with a name, got 3" in refused(
        {"messages": [user(), assistant()], "tools": [3]}, TOOLS
    )


def test_conversations_differ_by_everything_that_is_learnt() -> None:
    rows = [
        {"messages": [user(), assistant("a")]},
        {"messages": [user(), assistant("a", tool_calls=call())]},
        {"messages": [user(), assistant("a", tool_calls=call('{"q": "u"}'))]},
        {"messages": [user(), assistant("a", weight=0), user(), assistant("a")]},
        {"messages": [user(), assistant("a"), user(), assistant("a")]},
        {"messages": [user(), assistant("a")], "tools": [TOOL]},
    ]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TOOLS
    shape = Messages(tokenizer=tokenizer)
    assert len({shape.example(Row(row, "a.jsonl:1")).identity for row in rows}) == len(rows)
