"""`report.html` in a real browser: quiet, offline, every figure drawn, nothing beyond the edge, letters that read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import WIDTHS, Seen, opened
from loratune.reporting.documents import write_html
from loratune.values import Cut, CutPoint, Truncation
from report_fixture import make_facts

pytest.importorskip("matplotlib")
pytest_plugins = ["browser"]
FIGURES = 10
SMALLEST = 10.0
"""Pixels of a letter's height, as CSS counts it."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points = tuple(
        CutPoint(
            way=Cut.UNIFORM,
            rank=r,
            parameters=r,
            nll=0.163 + 0.05 / r,
            loss=0.05 / r,
            interval=None,
            adequate=None,
        )
        for r in (2, 8, 16)
    )
    cut = Truncation(
        key="0",
        r=32,
        learning_rate=1e-3,
        nll=0.163,
        rows=120,
        margin=0.005,
        points=points,
        layers=(),
        cost=0.1,
        seconds=2.0,
    )
    return write_html(make_facts(truncation=cut), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module", params=WIDTHS)
def shown(request: pytest.FixtureRequest, chromium: Any, report: Path) -> Iterator[tuple[Any, Seen]]:
    with opened(chromium, report, width=request.param) as pair:
        yield pair


def test_no_error_no_request_no_overflow(shown: tuple[Any, Seen]) -> None:
    page, seen = shown
    assert seen.errors == []
    assert seen.requests == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_figure_is_drawn_and_described(shown: tuple[Any, Seen]) -> None:
    page, _ = shown
    found = page.evaluate(
        """[...document.querySelectorAll("svg[role=img]")].map(svg => ({
            box: svg.getBoundingClientRect().toJSON(), marks: svg.querySelectorAll("path, use").length,
            named: svg.getAttribute("aria-labelledby").split(" ").map(id => document.getElementById(id)),
            title: document.getElementById(svg.getAttribute("aria-labelledby").split(" ")[0]).textContent,
        }))"""
    )
    assert len(found) == FIGURES
    for each in found:
        assert each["box"]["width"] > 300
        assert each["box"]["height"] > 100
        assert each["marks"] > 5
        assert None not in each["named"]
    assert len({each["title"] for each in found}) == FIGURES


def test_letters_are_large_enough_and_names_are_used_once(shown: tuple[Any, Seen]) -> None:
    page, _ = shown
    smallest = page.evaluate(
        """Math.min(...[...document.querySelectorAll("svg text")].map(text => {
            const svg = text.ownerSVGElement;
            return parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width;
        }))"""
    )
    assert smallest >= SMALLEST
    twice = page.evaluate(
        """(() => { const ids = [...document.querySelectorAll("[id]")].map(each => each.id);
            return ids.filter((id, i) => ids.indexOf(id) !== i); })()"""
    )
    assert twice == []


def test_no_figure_reaches_beyond_its_frame_nor_its_legend_over_its_data(shown: tuple[Any, Seen]) -> None:
    page, _ = shown
    beyond = page.evaluate(
        """[...document.querySelectorAll("svg[role=img]")].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text")].filter(text => {
                const box = text.getBoundingClientRect();
                return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1;
            }).map(text => text.textContent);
        })"""
    )
    assert beyond == []
    legends = page.evaluate(
        """[...document.querySelectorAll("svg .legend")].map(legend => [legend.getBoundingClientRect().bottom,
            legend.ownerSVGElement.querySelector(".axes").getBoundingClientRect().top])"""
    )
    assert len(legends) == FIGURES - 1, "the heat map needs none"
    assert all(bottom <= top + 1 for bottom, top in legends)


def test_contents_lead_to_every_section(shown: tuple[Any, Seen]) -> None:
    page, _ = shown
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))")
    sections = page.evaluate("[...document.querySelectorAll('section')].map(each => each.id)")
    assert set(links) == set(sections) - {"answer"}


def test_a_button_copies_what_stands_under_it(chromium: Any, report: Path) -> None:
    with opened(chromium, report, width=1280) as (page, _):
        page.evaluate(
            "void (window.copied = [], navigator.clipboard.writeText = async text => void copied.push(text))"
        )
        buttons = page.locator(".copy button")
        for i in range(buttons.count()):
            buttons.nth(i).click()
        copied = page.evaluate("copied")
        assert len(copied) == 4
        assert copied[0].startswith("from peft import PeftModel")
        assert copied[1].startswith("loratune generate")
        assert '"learning_rate": 0.001' in copied[2]
        assert copied[3] == "loratune tune --config runs/mine/loratune.toml --out runs/again"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_worst_cell_is_as_the_paper_and_words_stand_out(chromium: Any, report: Path, scheme: str) -> None:
    with opened(chromium, report, width=390, scheme=scheme) as (page, _):
        shades = page.evaluate(
            """[...document.querySelectorAll("#batch svg path")].map(path => parseFloat(path.style.opacity))
               .filter(each => each > 0)"""
        )
        assert min(shades) < 0.1
        assert max(shades) > 0.85
        colours = page.evaluate(
            """[getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector("#gap svg text")).fill]"""
        )
        paper, ink = (sum(map(int, each.removeprefix("rgb(").rstrip(")").split(","))) / 3 for each in colours)
        assert abs(paper - ink) > 80
