"""The site is built without a warning and fetches nothing; the figures in its pages are those of bench/results."""

import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from shown import ROOT

RESULTS = ROOT / "bench" / "results"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_there(site: Path) -> None:
    made = {path.stem for path in site.glob("*.html")} - {"404"}
    assert made == {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_nothing_is_fetched(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)=\"?https?:[^>]*>", text)


def test_options_and_functions_are_told(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert "--layer-ranks" in commands
    assert "options of" not in commands
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(name in api for name in ("lora_config", "MetricContract", "ResourceError"))


def test_the_grid_is_what_was_measured() -> None:
    cells: dict[tuple[int, float], list[float]] = defaultdict(list)
    with (RESULTS / "evidence_grid.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            usual = row["batch_size"] == "16" and float(row["lora_alpha"]) == 2 * int(row["rank"])
            if row["task"] == "banking77-2000" and row["state"] == "complete" and usual:
                cells[int(row["rank"]), float(row["learning_rate"])].append(float(row["val_exact_match"]))
    page = (ROOT / "docs" / "how-it-decides.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- grid: .*?-->\n\n\| rank \|(.*?)\|\n.*?\n(.*?)\n\n<!-- end -->", page, re.S)
    assert table
    rates = [float(rate) for rate in table[1].split("|")]
    told = 0
    for line in table[2].splitlines():
        rank, *values = (value.strip(" *") for value in line.strip("|").split("|"))
        for rate, value in zip(rates, values, strict=True):
            measured = cells.get((int(rank), rate), [])
            if not measured:
                assert value in ("", "diverged")
            else:
                assert value == f"{mean(measured):.3f}".lstrip("0")
                told += 1
    assert told == 15


def test_the_whole_commands_are_what_was_measured() -> None:
    page = (ROOT / "docs" / "how-it-decides.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| .*? \| (\d+) \| (\d+) \| (\.\d+) \| (\.\d+) \|$", page, re.M)
    with (RESULTS / "answer.csv").open(encoding="utf-8") as lines:
        measured = {
            (
                f"{float(row['seconds']):.0f}",
                row["trials"],
                f"{float(row['test_nll']):.3f}".lstrip("0"),
                f"{float(row['test_exact_match']):.3f}".lstrip("0"),
            )
            for row in csv.DictReader(lines)
        }
    assert len(told) == 8
    assert set(told) <= measured
