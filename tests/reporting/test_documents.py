"""Markdown, JSON and the notebook's picture: the same facts, escaped for where they go."""

import json
from dataclasses import replace
from pathlib import Path

from markdown_it import MarkdownIt

from loratune.reporting.documents import to_json, to_markdown
from loratune.reporting.facts import RunFacts, to_stored
from loratune.reporting.result import load_result, write_result
from loratune.values.analysis import Change, ExampleRow, HeldOut, Reading
from loratune.values.plain import finite
from report_fixture import make_facts

ATTACK = "<script>alert('x')</script> | `code`\n# head"


def hostile() -> RunFacts:
    facts = make_facts()
    reading = Reading(nll=1.0, right=False, answer=ATTACK)
    row = ExampleRow(change=Change.WORSE, prompt=ATTACK, expected=ATTACK, recommended=reading, base=reading)
    profile = replace(facts.profile, labels=(ATTACK, "b", "c"))
    held_out = HeldOut(examples=(row,), counts=((Change.WORSE, 1),))
    return replace(facts, model=ATTACK, profile=profile, held_out=held_out, notes=(ATTACK,))


def test_markdown_tells_what_the_page_tells() -> None:
    text = to_markdown(make_facts())
    for told in (
        "# Rank 8, learning rate 1e-3, batch size 16",
        "**423 of 500 test rows right; the untrained model 102",
        "| better | How old must I be, asks customer 0? | age\\_limit | age\\_limit ✓ (NLL 0.020) |",
        "| recommended | 0.1662 |",
        "- **no**: Rank 2 is non-inferior to rank 32. (0.0268 nats, 95 % \\[0.0201, 0.0335\\], margin 0.005)",
        "| learning\\_rate | 1e-3 | 2e-4 |",
        "| age\\_limit | 150 | 100% | 100% | 0% |",
        "| peak memory | 1.8 GiB | 1.6 GiB | 0.91 |",
        "loratune tune --config runs/mine/loratune.toml --out runs/again",
    ):
        assert told in text
    tables = MarkdownIt("commonmark").enable("table").render(text)
    assert tables.count("<table>") == 5
    assert tables.count("<h2>") == 10


def test_markdown_from_outside_stays_text() -> None:
    page = MarkdownIt("commonmark").enable("table").render(to_markdown(hostile()))
    assert "<script" not in page
    assert "<code>code" not in page
    assert "<h1>head" not in page
    assert page.count("&lt;script&gt;alert('x')&lt;/script&gt; | `code` # head") >= 5


def test_json_has_all_facts_an_open_end_of_an_interval_as_none() -> None:
    facts = make_facts()
    values = json.loads(to_json(facts))
    assert len(values["trials"]) == len(facts.results)
    assert values["trials"][0]["trial"]["hyper_parameters"]["r"] == 2
    del values["trials"]
    assert values["decision"]["evidence"][0]["interval"] == [None, 0.0043]
    assert values == json.loads(json.dumps(finite(to_stored(facts)), allow_nan=False))


def test_a_result_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    facts = replace(
        make_facts(), model=ATTACK, profile=replace(make_facts().profile, labels=(ATTACK, "b", "c"))
    )
    write_result(facts, tmp_path)
    result = load_result(tmp_path)
    assert result.verdict[0].startswith("423 of 500 test rows right")
    shown = result._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(" in shown
    assert shown.count("<table>") == 3
    assert "<h4>Rank 8, learning rate 1e-3, batch size 16</h4>" in shown
    assert "✗ no" in shown
    assert "0.1701" in shown
