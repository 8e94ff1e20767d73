"""Money beside time: in the plan, the progress, the answer and `result.json`; nothing of it without a price."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from loratune.reporting.live import LiveView
from loratune.reporting.result import result_values
from loratune.reporting.subscribers import print_planned
from loratune.reporting.takeaways import cost_sentence
from loratune.reporting.terminal import print_plan
from loratune.reporting.wording import money
from loratune.values import ModelProfile, PlannedStage, SearchPlan
from loratune.values.events import Planned
from report_fixture import make_facts

MODEL = ModelProfile(
    name="tiny", family="llama", hidden_size=64, layers=2, attention_heads=4, vocabulary=1000,
    parameters=1_234_567, embedding_parameters=64_000, targets=(),
)  # fmt: skip
PLAN = SearchPlan(
    stages=(PlannedStage(name="rank", question="?", trials=9, cost=5.0, packs=2, seconds=1800.0),)
)

PLANNED = Planned(
    data=make_facts().profile,
    model=MODEL,
    plan=PLAN,
    slots=8,
    peak_bytes=1,
    memory_bytes=2,
    search_seconds=1800.0,
    final_seconds=600.0,
    final_run_seconds=600.0,
    test_seconds=60.0,
)


@pytest.mark.parametrize(
    ("seconds", "per_hour", "text"),
    [(3600, 2.1, "2.10"), (900, 2.1, "0.53"), (10, 2.1, "0.0058"), (0, 2.1, "0.00"), (3600, 0, "")],
)
def test_money(seconds: float, per_hour: float, text: str) -> None:
    assert money(seconds, per_hour) == text


def printed(price: float) -> str:
    console = Console(file=StringIO(), width=100)
    print_plan(console, PLAN, final_seconds=600.0, slots=8, peak_bytes=2**30, price_per_hour=price)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_plan() -> None:
    (total,) = [line for line in printed(6.0).splitlines() if "total" in line]
    assert total.split()[-3:] == ["40.0", "min", "4.00"]
    assert "price" not in printed(0.0)


def test_trials_after_the_search_count_once() -> None:
    """They are a row of their own, and not in that of the final run."""
    after = PlannedStage(name="layer ranks", question="?", trials=3, cost=3.0, packs=1, seconds=600.0)
    console = Console(file=StringIO(), width=100)
    plan = replace(PLAN, stages=(*PLAN.stages, after))
    print_planned(console, replace(PLANNED, plan=plan, final_seconds=1200.0, after_seconds=600.0))
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    rows = [line for line in lines if line.strip().startswith(("final", "total"))]
    assert [row.split()[-2:] for row in rows] == [["10.0", "min"], ["50.0", "min"]]


@pytest.mark.parametrize("price", [0.0, 3.6e6])
def test_the_progress(price: float) -> None:
    console = Console(file=StringIO(), width=120)
    view = LiveView(console, plain=True)
    view(replace(PLANNED, price_per_hour=price))
    with console.capture() as capture:
        console.print(view.picture())
    assert ("40.0 min left (" in capture.get()) is bool(price)


def test_the_answer() -> None:
    facts = make_facts()
    priced = replace(facts, cost=replace(facts.cost, price_per_hour=3.6))
    assert cost_sentence(priced).endswith("; price 0.93 at 3.6 an hour, predicted 0.89.")
    assert "price" not in cost_sentence(facts)
    cost = result_values(priced)["cost"]
    assert (cost["price_per_hour"], cost["price"], cost["predicted_price"]) == (3.6, 0.934, 0.885)
    assert not [name for name in result_values(facts)["cost"] if "price" in name]
