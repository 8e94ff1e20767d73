"""A real run says the same wherever it is shown: terminal, result.json, page, Markdown, model card, by the number."""

import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import loratune
from command_fixture import Place
from loratune.app.report import facts_of, print_answer
from loratune.costs import measuring
from loratune.reporting.documents import to_json, to_markdown
from loratune.reporting.wording import count, duration

pytest_plugins = ["command_fixture"]

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
MODELS = {"recommended": (), "default recipe": ("default_recipe",), "base model": ("base_model",)}
"""By the name of their rows in tables; where they are in result.json."""


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SECONDS", 0.05)
        patch.setenv("COLUMNS", "150")
        loratune.tune(
            **place.keywords,
            ranks=[2, 4],
            learning_rates=[3e-3, 3e-2],
            batch_sizes=[8],
            epochs=1,
            budget="12x",
            no_ledger=True,
            out=out,
        )
    return out


@pytest.fixture
def shown(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Each document as lines of plain words."""
    monkeypatch.setenv("COLUMNS", "150")
    print_answer(run)
    page = (run / "report.html").read_text()
    page = re.sub(r"<(script|style|svg)\b.*?</\1>|<wbr>", "", page, flags=re.S)
    page = re.sub(r"\s+", " ", page).replace("</tr>", "\n").replace("</li>", "\n").replace("</p>", "\n")
    return {
        "terminal": capsys.readouterr().out,
        "page": html.unescape(re.sub(r"<[^>]+>", " ", page)),
        "Markdown": to_markdown(facts_of(run)).replace("\\", ""),
        "card": (run / "adapter" / "README.md").read_text().replace("this adapter", "recommended"),
    }


def result_of(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "result.json").read_text())
    return values


def test_the_scores(run: Path, shown: dict[str, str]) -> None:
    metrics = result_of(run)["metrics"]
    for name, place in MODELS.items():
        scores = metrics[place[0]] if place else metrics
        known = scores["test"]
        for where, text in shown.items():
            rows = [line for line in text.splitlines() if line.strip(" |").startswith(name)]
            found = [numbers for line in rows if len(numbers := NUMBER.findall(line)) >= len(known)]
            assert found, (where, name)
            (row,) = found[:1]
            for written, value in zip(row[-len(known) :], known.values(), strict=True):
                digits = len(written.partition(".")[2])
                assert float(written) in (round(value, digits), round(100 * value, digits)), (where, name)


def test_the_gains(shown: dict[str, str]) -> None:
    pattern = r"test (.+?) ([\d.]+) (?:nats|points) (?:lower|higher) than the (.+?) \(95 % \[(.+?), (.+?)\]\)"
    gains = re.findall(pattern, shown["terminal"])
    assert len(gains) >= 3
    for where in ("page", "Markdown"):
        assert set(gains) <= set(re.findall(pattern, shown[where].replace("Test", "test"))), where
    card = {
        (name, over, low, high): float(value)
        for name, value, over, low, high in re.findall(
            r"- (.+?): ([\d.]+) (?:nats|points) better than the (.+?) \[(.+?), (.+?)\]", shown["card"]
        )
    }
    for name, value, over, low, high in gains:
        assert card[name, over, low, high] == pytest.approx(float(value), rel=1e-3)


def test_evidence_and_cost(run: Path, shown: dict[str, str]) -> None:
    result = result_of(run)
    states, cost = Counter(each["state"] for each in result["evidence"]), result["cost"]
    assert sum(states.values()) > states["note"] > 0
    sure = f"{sum(states.values()) - states['note']} claims tested"
    words = [f"{states[each]} {each}" for each in ("yes", "no", "cannot tell") if states[each]]
    taken = f"{cost['trials']} trials, {count(cost['trained_tokens'])} tokens, {duration(cost['seconds'])}"
    for where in ("terminal", "page", "Markdown"):
        text = " ".join(shown[where].split())
        assert f"{sure}: {', '.join(words)};" in text, where
        assert taken in text, where
        assert all(sentence in text for sentence in result["verdict"]), where


def test_the_choice(run: Path, shown: dict[str, str]) -> None:
    chosen = result_of(run)["recommended"]
    told = json.loads(to_json(facts_of(run)))["decision"]["hyper_parameters"]
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (chosen["r"], chosen["lora_alpha"]) == (config["r"], config["lora_alpha"])
    assert told["learning_rate"] == chosen["learning_rate"]
    assert f"Recommended: r {chosen['r']}, alpha {chosen['lora_alpha']:g}," in shown["terminal"]
    for where in ("page", "Markdown"):
        assert f"Rank {chosen['r']}, learning rate" in shown[where]
    rates = {
        float(re.search(r"learning rate ([\d.e-]+)", shown[where])[1])  # type: ignore[index]
        for where in ("terminal", "page", "Markdown")
    }
    assert rates == {float(f"{chosen['learning_rate']:.1e}")}
