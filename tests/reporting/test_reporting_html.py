"""`report.html`: whole, offline, escaped; each figure there or a sentence why not."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loratune.reporting import documents as html
from loratune.reporting.documents import render, write_html
from loratune.reporting.facts import ModelScores
from loratune.values import Decision, Evidence, SearchPlan, TrialState
from report_fixture import OURS, make_facts, make_trial

pytest.importorskip("matplotlib")
ATTACK = "<script>alert('x')</script>"
SECTIONS = [
    "answer",
    "rows",
    "result",
    "evidence",
    "questions",
    "health",
    "classes",
    "rank",
    "metric",
    "batch",
    "alpha",
    "gap",
    "curves",
    "impacts",
    "cost",
    "notes",
    "data",
    "use",
    "reproduce",
    "glossary",
]


class Page(HTMLParser):
    """Sections, plots, loads from outside, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.plots: dict[str, int] = {}
        self.words = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._inside = tag
        if tag == "section":
            self.sections.append(values["id"] or "")
        if tag == "svg":
            assert values["role"] == "img"
            self.plots[self.sections[-1]] = self.plots.get(self.sections[-1], 0) + 1
        self.loads += [(tag, name) for name in values if name in ("src", "href", "action", "data", "srcset")
                       and not (values[name] or "").startswith("#")]  # fmt: skip

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words += data + " "


@pytest.fixture(scope="module")
def text() -> str:
    return render(make_facts())


def test_every_section_and_figure_is_there(text: str) -> None:
    page = Page(text)
    assert page.sections == SECTIONS
    assert page.plots == {"rank": 2, "metric": 1, "batch": 1, "alpha": 1, "gap": 1, "curves": 1, "cost": 2}
    for words in (
        "Rank 8, learning rate 1e-3, batch size 16",
        "Test NLL 0.0538 nats lower than the default recipe (95 % [0.041, 0.0666]).",
        "Rank 8 is non-inferior to rank 32.",
        "0.0021 nats, 95 % ≤ 0.0043, margin 0.005",
        "Ranks 1, 4, 16 and 64 were left out to fit the budget.",
        "PeftModel.from_pretrained(base, 'runs/mine/adapter')",
        "Over-fitting: after 2 epochs validation NLL rose by 0.021 nats",
        "The weights of step 240 are kept. Train 2 epochs.",
        "trials diverged, at learning rates from 0.003 on",
        "learning_rate mattered most: 0.1420 nats (0.1010 to 0.1830) between its best and its worst value; next r with "
        "0.0268 nats.",
        "61% (44% to 73%)",
        "+3 MiB",
        "loratune tune --config runs/mine/loratune.toml",
        "activate_my_card (700)",
        "Bars: 95 % intervals over seeds",
    ):
        assert words in page.words


def test_nothing_is_loaded_from_outside(text: str) -> None:
    page = Page(text)
    assert page.loads == []
    assert "@import" not in text.split("</style>")[0]
    assert "default-src 'none'" in text
    assert len(text) < 500_000


def test_what_comes_from_outside_is_escaped() -> None:
    facts = make_facts()
    hostile = render(
        replace(
            facts,
            model=ATTACK,
            data=ATTACK,
            directory=ATTACK,
            notes=(ATTACK,),
            strategy=ATTACK,
            profile=replace(facts.profile, labels=(ATTACK, "b", "c")),
            plan=SearchPlan(stages=(), dropped=(ATTACK,)),
            decision=Decision(
                hyper_parameters=replace(OURS, target_modules=(ATTACK,)), evidence=(Evidence(claim=ATTACK),)
            ),
        )
    )
    assert "alert(" in hostile
    assert "<script>alert" not in hostile
    assert Page(hostile).sections == SECTIONS
    assert Page(hostile).words.count(ATTACK) >= 8


def test_missing_stages_say_why() -> None:
    """A guide-like run: one learning rate, two ranks, no batch or alpha stage, no test split."""
    results = tuple(make_trial(r=rank, learning_rate=5e-4, fraction=0.5) for rank in (2, 8))
    page = Page(
        render(
            make_facts(
                results=results,
                plan=SearchPlan(stages=(), dropped=("Alpha was not searched, to fit the budget.",)),
                gains=(),
                recommended=ModelScores(validation={"nll": 0.2}),
                default_recipe=ModelScores(),
                base_model=ModelScores(),
                cut_by_clock=True,
            )
        )
    )
    assert page.sections == SECTIONS
    assert page.plots == {"rank": 1, "metric": 1, "gap": 1, "curves": 1, "cost": 2}
    assert "No learning rate was tried at three ranks or more." in page.words
    assert "Not run; the reason is given under what the budget left out." in page.words
    assert "Not part of this plan of the strategy “evidence”." in page.words
    assert "The budget's clock ended before all stages" in page.words


def test_a_run_in_which_all_diverged_still_has_a_page() -> None:
    results = tuple(make_trial(r=rank, state=TrialState.DIVERGED) for rank in (2, 8, 32))
    page = Page(render(make_facts(results=results)))
    assert page.sections == SECTIONS
    assert page.plots == {"cost": 2}
    assert "0 of 3 trials of this stage finished" in page.words


def test_a_gguf_base_is_loaded_through_its_folder() -> None:
    page = Page(render(make_facts(model="models/small.gguf")))
    assert "from_pretrained('models', gguf_file='small.gguf')" in page.words


def test_without_matplotlib_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'loratune\[report\]'"):
        write_html(make_facts(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    path = write_html(make_facts(), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_the_first_screen_is_the_verdict_in_words() -> None:
    facts = make_facts(cut_by_clock=True)
    words = " ".join(Page(render(facts)).words.split())
    first = words.split("Yes and no are shown", 1)[0]
    for told in (
        "423 of 500 test rows right; the untrained model 102, always “activate_my_card” about 175",
        "How sure 3 claims tested: 2 yes, 1 no; the clock cut the search",
        "Cost 36 trials, 4.91M tokens, 15.6 min",
        "Against the default recipe recommended default recipe r 8 16 lora_alpha 16 32 learning_rate 1e-3 2e-4",
        "steps 360 360 tokens 180k 180k",
        "Missing: the best of 4 learning rates at rank 16",
    ):
        assert told in first


def test_what_cannot_be_told_has_no_cross() -> None:
    claims = (Evidence(claim="rank 4 is enough", value=0.004, margin=0.005), Evidence(claim="a note"))
    page = Page(render(make_facts(decision=Decision(hyper_parameters=OURS, evidence=claims))))
    words = " ".join(page.words.split())
    assert "? cannot tell Rank 4 is enough." in words
    assert "What the budget left out, and other notes" in words.split("A note.")[0]
    assert "✗ no" not in words


def test_the_timeline_is_one_bar_with_its_numbers() -> None:
    cost = replace(
        make_facts().cost, timeline=(("start-up", 9.0), ("training", 27.0)), mean_trials_in_pack=6.4
    )
    text = render(make_facts(cost=cost))
    assert 'class="c0" style="width: 25.000%" title="start-up: 9 s"' in text
    assert 'class="c1" style="width: 75.000%" title="training: 27 s"' in text
    words = " ".join(Page(text).words.split())
    assert "start-up 9 s 25.0 % training 27 s 75.0 %" in words
    assert "6.4 trials in the pack on average" in words
