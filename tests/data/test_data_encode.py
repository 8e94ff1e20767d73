"""Which tokens a row becomes and which of them are learnt, by known answers with one token per byte."""

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from loratune.data.chat import Messages
from loratune.data.encode import Encoded, Encoder
from loratune.data.row import End, Example, Overflow, Row, Segment
from loratune.errors import DataError
from tiny import END, byte_tokenizer

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}[system]be kind" + END + "\n{% endif %}"
    "[{{ m.role }}]{{ m.content }}"
    + END
    + "\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "so long")]


def messages(turns: Sequence[tuple[str, str]]) -> Row:
    return Row({"messages": [{"role": role, "content": content} for role, content in turns]}, "chat.jsonl:3")


def prompted(prompt: str, completion: str) -> Example:
    segments = (Segment(prompt), Segment(completion, learned=True, end=End.APPEND))
    return Example(segments, prompt + completion, "rows.jsonl:1")


class Bench:
    """A tokenizer, its encoder, and its words again."""

    def __init__(self, template: str | None = None, beginning: bool = False, max_length: int = 200) -> None:
        self.tokenizer = byte_tokenizer()
        self.tokenizer.chat_template = template
        self.end = self.tokenizer.eos_token_id
        if beginning:
            self.tokenizer.add_special_tokens({"bos_token": "<s>"})
            self.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", self.tokenizer.bos_token_id)]
            )
        self.encoder = Encoder(tokenizer=self.tokenizer, end_of_turn=self.end, max_length=max_length)

    def encode(self, example: Example, overflow: Overflow = Overflow.CUT_PROMPT) -> Encoded:
        return self.encoder.encode([example], overflow)[0]

    def words(self, encoded: Encoded) -> list[tuple[str, str]]:
        """(all, learnt) text of each piece."""
        return [
            (
                self.tokenizer.decode(tokens),
                self.tokenizer.decode([t for t, flag in zip(tokens, learned, strict=True) if flag]),
            )
            for tokens, learned in encoded.pieces
        ]

    def chat(self, turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        shape = Messages(tokenizer=self.tokenizer)
        return self.words(self.encode(shape.example(messages(turns)), shape.overflow))


def test_completion_and_end_of_turn_are_learnt() -> None:
    bench = Bench()
    encoded = bench.encode(prompted("2+2=", "4"))
    assert bench.words(encoded) == [("2+2=4" + END, "4" + END)]
    assert encoded.pieces[0][1] == [False] * 4 + [True, True]


def test_end_of_turn_is_not_doubled() -> None:
    bench = Bench()
    assert bench.words(bench.encode(prompted("a", "b" + END))) == [("ab" + END, "b" + END)]


def test_end_of_turn_in_a_prompt_is_not_learnt() -> None:
    """Labels come from lengths: the id that is also used for padding is learnt at one place only."""
    bench = Bench()
    encoded = bench.encode(prompted(f"a{END}b", "c"))
    assert bench.words(encoded) == [(f"a{END}bc{END}", "c" + END)]


def test_first_token_is_never_learnt() -> None:
    bench = Bench()
    assert bench.words(bench.encode(prompted("", "abc"))) == [("abc" + END, "bc" + END)]


def test_beginning_of_text_is_kept_once() -> None:
    bench = Bench(beginning=True)
    assert bench.words(bench.encode(prompted("ab", "c"))) == [("<s>abc" + END, "c" + END)]
    assert bench.words(bench.encode(prompted("", "abc"))) == [("<s>abc" + END, "abc" + END)]


@pytest.mark.parametrize(
    ("beginning", "limit", "expected"),
    [
        (False, 8, "prompt" + "c" + END),
        (False, 5, "mpt" + "c" + END),
        (False, 3, "t" + "c" + END),
        (False, 2, None),  # nothing would be left to predict the completion's first token from
        (True, 5, "<s>pt" + "c" + END),
        (True, 3, "<s>c" + END),
        (True, 2, None),
    ],
)
def test_long_prompts_lose_their_start_and_completions_nothing(
    beginning: bool, limit: int, expected: str | None
) -> None:
    bench = Bench(beginning=beginning, max_length=limit)
    encoded = bench.encode(prompted("prompt", "c"))
    assert bench.words(encoded) == ([] if expected is None else [(expected, "c" + END)])
    assert encoded.length == 8 + beginning
    assert encoded.cut == (expected is not None and limit < 8)


def test_long_texts_are_split_and_every_token_learnt_once() -> None:
    bench = Bench(max_length=4)
    text = "abcdefghij"
    example = Example((Segment(text, learned=True, end=End.APPEND),), text, "rows.jsonl:1")
    words = bench.words(bench.encode(example, Overflow.SPLIT))
    assert words == [("abcd", "bcd"), ("defg", "efg"), ("ghij", "hij"), ("j" + END, END)]


def test_texts_that_just_fit_stay_whole() -> None:
    example = Example((Segment("abc", learned=True, end=End.APPEND),), "abc", "rows.jsonl:1")
    for limit, rows in ((4, 1), (3, 2), (2, 3)):
        assert len(Bench(max_length=limit).encode(example, Overflow.SPLIT).pieces) == rows


def test_row_without_a_token_to_learn_is_an_error() -> None:
    bench = Bench()
    example = Example((Segment("only given"),), "", "rows.jsonl:9")
    with pytest.raises(DataError, match=r"rows\.jsonl:9 must have a token to learn, got none"):
        bench.encode(example)


def test_chat_learns_the_assistants_turns_only() -> None:
    whole = (
        f"[system]be kind{END}\n[user]hi{END}\n[assistant]hello{END}\n[user]bye{END}\n[assistant]so long{END}"
    )
    assert Bench(CHATML).chat(TURNS) == [(whole, f"hello{END}so long{END}")]


def test_chat_ends_with_the_assistants_last_turn() -> None:
    [(whole, learned)] = Bench(CHATML).chat([*TURNS[:2], ("user", "unanswered")])
    assert whole.endswith(f"[assistant]hello{END}")
    assert learned == f"hello{END}"


def test_chat_template_without_an_end_token_gets_one_at_the_end() -> None:
    template = (
        "{% for m in messages %}({{ m.role[0] }}){{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}(a){% endif %}"
    )
    assert Bench(template).chat(TURNS) == [(f"(u)hi(a)hello(u)bye(a)so long{END}", f"helloso long{END}")]


def test_chat_template_that_renders_the_last_turn_otherwise() -> None:
    """As Qwen3's: an empty thought stands before the last answer and is left out of earlier ones."""
    template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if loop.last and m.role == 'assistant' %}(thought){% endif %}"
        "{{ m.content }}" + END + "\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert Bench(template).chat(TURNS) == [
        (
            f"[user]hi{END}\n[assistant]hello{END}\n[user]bye{END}\n[assistant](thought)so long{END}",
            f"hello{END}(thought)so long{END}",
        )
    ]
    with pytest.raises(
        DataError, match=r"chat\.jsonl:3: .* must end the assistant's turns with the end-of-turn"
    ):
        Bench(template.replace(END, "")).chat(TURNS)


def test_chat_template_whose_prefixes_do_not_hold_is_refused() -> None:
    counting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"chat\.jsonl:3: .* prefix of the whole conversation"):
        Bench(counting).chat(TURNS)
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        DataError, match=r"chat\.jsonl:3: .*refuses the conversation \(roles must alternate\)"
    ):
        Bench(refusing).chat(TURNS)


def test_chat_without_a_template_is_plain_lines() -> None:
    assert Bench(beginning=True).chat(TURNS) == [
        (
            f"<s>User: hi\nAssistant: hello{END}\nUser: bye\nAssistant: so long{END}",
            f" hello{END} so long{END}",
        )
    ]


def test_long_chats_are_left_out() -> None:
    bench = Bench(CHATML, max_length=60)
    assert bench.chat(TURNS) == []
    assert len(bench.chat(TURNS[:2])) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hi", r"must be a list of messages, got text \('hi'\)"),
        ([], "got an empty list"),
        (["hi"], "message 1 must have a role that is text, got null"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "message 2 .* content"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            "message 2 .* must not be empty",
        ),
        ([{"role": "user", "content": "a"}], "must have an assistant's turn after another one, got user;"),
        ([{"role": "assistant", "content": "a"}], "must have an assistant's turn after another one"),
    ],
)
def test_broken_conversations(value: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"chat\.jsonl:7: .*{message}"):
        Messages(tokenizer=byte_tokenizer()).example(Row({"messages": value}, "chat.jsonl:7"))


def test_later_pieces_get_no_space_of_the_tokenizers_own() -> None:
    """As with SentencePiece: every text begins with '▁', but a completion continues its prompt without."""
    pieces = ["<unk>", "</s>", "▁", "\n", "a", "b", "▁a", "▁b", ":"]
    backend = Tokenizer(
        models.Unigram([(piece, -1.0 if len(piece) == 1 else -0.5) for piece in pieces], unk_id=0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    encoder = Encoder(tokenizer=tokenizer, end_of_turn=1, max_length=20)
    [encoded] = encoder.encode([prompted("a:", " b")], Overflow.CUT_PROMPT)
    assert tokenizer.convert_ids_to_tokens(encoded.pieces[0][0]) == ["▁a", ":", "▁b", "</s>"]
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in encoder.completion_ids([" b", "b"])] == [
        ["▁b", "</s>"],
        ["b", "</s>"],
    ]
