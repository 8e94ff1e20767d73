"""A rank for each layer: where the ranks come from, that it is adopted only if better, and the whole way in `tune`."""

import json
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import loratune
from engine_fixture import trial
from loratune.analysis.truncation import patterned
from loratune.costs import measuring
from loratune.lora.layout import Adapter, AdapterLayout, Target
from loratune.reporting.later_stages import alpha_points, batch_cells
from loratune.reporting.result import load_result
from loratune.reporting.tables import value_tiles
from loratune.reporting.wording import count
from loratune.search.layer_ranks import LayerRanksSearch, layer_rank_claims
from loratune.search.procedure import ask, decide
from loratune.study.record import Study
from loratune.tuning.after_search import truncation_claims
from loratune.values import (
    Cut,
    CutPoint,
    DataFacts,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    TrialState,
    Truncation,
    Wishes,
)
from loratune.values.events import Event, Planned
from report_fixture import make_facts, make_trial
from tiny import animal_rows, save_tiny_model, write_jsonl

TARGETS = (Target("a", 20, 12), Target("b", 12, 30), Target("c", 16, 16))
UNIFORM = trial(r=4, lora_alpha=8).hyper_parameters
ROWS = 300
WEIGHTS = np.full(ROWS, 2.0)


def adapter_with_true_ranks(*ranks: int, r: int = 12) -> Adapter:
    """Layers whose updates have these ranks, all singular values alike."""
    setting = replace(UNIFORM, r=r, lora_alpha=2 * r)
    layout = AdapterLayout.of(setting, TARGETS)
    weights = torch.zeros(layout.size)
    for (a, b), rank in zip(layout.views(weights).values(), ranks, strict=True):
        a.copy_(torch.eye(*a.shape))
        b[:rank, :rank] = torch.eye(rank)
    return Adapter(hyper_parameters=setting, layout=layout, weights=weights)


def test_ranks_follow_the_singular_values_within_the_parameters() -> None:
    found = patterned(UNIFORM, adapter_with_true_ranks(9, 2, 0), TARGETS)
    assert found is not None
    assert dict(found.rank_pattern) == {"a": 9, "b": 2, "c": 1}
    assert found.r == 4
    own, uniform = (AdapterLayout.of(each, TARGETS).size for each in (found, UNIFORM))
    assert own <= uniform
    assert patterned(UNIFORM, adapter_with_true_ranks(1, 1, 1, r=4), TARGETS) is None
    assert patterned(UNIFORM, adapter_with_true_ranks(9, 2, 0), [*TARGETS, Target("d", 8, 8)]) is None


@pytest.mark.parametrize(
    ("gain", "adopted", "runs"), [(0.05, True, 3), (0.0, False, None), (-0.05, False, 1)]
)
def test_adopted_only_if_better(gain: float, adopted: bool, runs: int | None) -> None:
    context = SearchContext(
        data=DataFacts(rows=1000, tokens=9000, supervised_tokens=2000, validation_weights=WEIGHTS),
        wishes=Wishes(budget=inf),
    )
    other = replace(UNIFORM, rank_pattern=(("a", 9), ("b", 1)))
    rows = np.random.default_rng(1).gamma(2.0, 0.3, ROWS)

    def run(subject: Trial) -> TrialResult:
        better = gain if subject.hyper_parameters == other else 0.0
        random = np.random.default_rng([subject.seed, better > 0])
        nll = (rows - better + 0.002 * random.normal() + 0.05 * random.normal(size=ROWS)) * WEIGHTS
        return TrialResult(
            asked=subject, trial=subject, nll=float(nll.sum() / WEIGHTS.sum()), example_nll=nll
        )

    history = [run(Trial(hyper_parameters=UNIFORM, seed=seed)) for seed in (1, 2, 3)]
    search = LayerRanksSearch.after(context, UNIFORM, other, history)
    assert search.seeds == 3
    asked: list[Trial] = []
    while trials := ask(search, context, history):
        asked += trials
        history += [run(each) for each in trials]
    assert {each.hyper_parameters for each in asked} == {other}, "the uniform rank is not trained again"
    found = decide(search, context, history)
    (claim,) = layer_rank_claims(context, found, "from a test")
    assert found.changed is adopted
    assert claim.holds is {0.05: True, 0.0: None, -0.05: False}[gain]
    assert runs is None or len(asked) == runs
    assert LayerRanksSearch.after(context, UNIFORM, other, history).seeds == 3
    assert LayerRanksSearch.after(context, UNIFORM, other, []).seeds == 2


def test_no_comparison_no_adoption() -> None:
    context = SearchContext(
        data=DataFacts(rows=1000, tokens=9000, supervised_tokens=2000),
        wishes=Wishes(budget=inf),
    )
    other = replace(UNIFORM, rank_pattern=(("a", 9),))
    search = LayerRanksSearch.after(context, UNIFORM, other, [])
    (first, *_) = ask(search, context, [])
    lost = [
        TrialResult(asked=replace(first, seed=seed), trial=first, state=TrialState.DIVERGED)
        for seed in (1, 2)
    ]
    (claim,) = layer_rank_claims(context, decide(search, context, lost), "from a test")
    assert claim.holds is None


def curve(adequate_from: int, trained_margin: float = 0.005) -> Truncation:
    points = [
        CutPoint(
            way=Cut.UNIFORM, rank=k, parameters=10 * k, nll=0.5 + 0.1 / k, loss=0.1 / k, interval=(0.0, 0.2 / k),
            adequate=k >= adequate_from or (None if 2 * k == adequate_from else False),
        )
        for k in (1, 2, 4, 8, 16, 32)
    ]  # fmt: skip
    return Truncation(
        key="k", r=64, learning_rate=1e-3, nll=0.5, rows=100, margin=trained_margin, points=tuple(points),
        layers=(), cost=0.1, seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("deployable", "trained", "agree", "told", "says"),
    [
        (8, 8, True, (8, 4), "can be cut to rank 8."),
        (16, 8, True, (16, 8), "can be cut to rank 16."),
        (32, 4, None, (32, 16, 4), "cannot tell, the cut to rank 16 is undecided"),
        (4, 16, False, (16, 4, 2), "may do when trained"),
    ],
)
def test_the_cross_check(
    deployable: int, trained: int, agree: bool | None, told: tuple[int, ...], says: str
) -> None:
    found = curve(deployable)
    assert found.deployable == deployable
    *claims, last = truncation_claims(found, trained, "nats")
    assert [claim.claim.split(",")[0] for claim in claims] == [f"Cut to rank {k}" for k in told]
    assert [claim.holds for claim in claims] == [
        None if 2 * k == deployable else k >= deployable for k in told
    ]
    assert all(claim.interval and claim.margin == 0.005 for claim in claims)
    assert last.holds is agree
    assert last.value == deployable / trained
    assert says in last.claim


def test_a_cut_that_is_shown_worse_disagrees_and_no_cut_is_not_compared() -> None:
    points = [replace(p, adequate=p.adequate is True) for p in curve(32).points]
    *_, last = truncation_claims(replace(curve(32), points=tuple(points)), 4, "nats")
    assert last.holds is False
    assert "pessimistic" in last.claim
    claims = truncation_claims(curve(64), 64, "nats")
    assert [claim.claim.split(",")[0] for claim in claims] == ["Cut to rank 32"]


def test_trials_of_other_layers_are_not_mixed_into_the_grid() -> None:
    """Equal in rank, rate, batch and alpha, but not in their layers; the tiles tell the ranks and parameters."""
    facts = make_facts()
    other = make_trial(Stage.LAYER_RANKS, seed=7)
    setting = replace(other.asked.hyper_parameters, rank_pattern=(("a", 9), ("b", 1)))
    asked = replace(other.asked, hyper_parameters=setting)
    more = replace(facts, results=(*facts.results, replace(other, asked=asked, trial=asked, nll=0.01)))
    assert batch_cells(more) == batch_cells(facts)
    assert alpha_points(more) == alpha_points(facts)
    chosen = replace(
        facts, decision=replace(facts.decision, hyper_parameters=setting), adapter_parameters=4321
    )
    tiles = {name: value for name, value, _ in value_tiles(chosen)}
    assert tiles["r"] == "8 (1 to 9 by layer)"
    assert tiles["trainable parameters"] == count(4321)


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.05)
    yield
    patch.undo()


def test_tune_with_all_of_it(tmp_path: Path) -> None:
    """Every step on a tiny model, resumed in between; what is written is what PEFT loads."""
    model = save_tiny_model(tmp_path / "model")
    data = write_jsonl(tmp_path / "train.jsonl", animal_rows(120))
    wishes: dict[str, Any] = {
        "model": model, "data": data, "out": tmp_path / "run", "ranks": [2, 8], "budget": "24x", "dtype": "float32",
        "epochs": 2.0, "device": "cpu", "layer_ranks": True, "heal": True, "tune_targets": True, "margin": 10.0,
    }  # fmt: skip
    events: list[Event] = []
    result = loratune.tune(**wishes, on_event=events.append)
    (planned,) = [event for event in events if isinstance(event, Planned)]
    *searched, after = planned.plan.stages
    assert planned.search_seconds == pytest.approx(sum(stage.seconds for stage in searched))
    assert (after.name, after.seconds) == (str(Stage.LAYER_RANKS), planned.after_seconds)
    assert 0 < planned.after_seconds < planned.final_seconds - planned.final_run_seconds
    assert result.recommended.r == 2, "with such a margin the smaller rank is adequate"
    results = Study.load(result.directory).results()
    (kept,) = (result.directory / "largest").iterdir()
    best = [r for r in results if r.asked.stage is Stage.RANK and r.asked.fraction == 1 and r.finished]
    best = [r for r in best if r.asked.hyper_parameters.r == 8]
    assert kept.name == min(best, key=lambda r: r.nll).asked.key
    stages = {stage.name: stage for stage in result.stages}
    points = stages["truncation"].details["points"]
    assert {(point["way"], point["rank"]) for point in points} >= {
        (str(way), rank) for way in (Cut.UNIFORM, Cut.THRESHOLD) for rank in (1, 2, 4)
    }
    assert [point["rank"] for point in points if point["way"] == Cut.HEALED] == [1, 2, 4]
    assert len(stages["truncation"].details["layers"]) == 14
    tried = [r.asked.hyper_parameters for r in results if r.asked.stage is Stage.LAYER_RANKS]
    (pattern,) = {setting.rank_pattern for setting in tried} - {()}
    assert stages["layer ranks"].details["rank_pattern"] == dict(pattern)
    claims = [each.claim for each in result.evidence]
    assert any("Training and cutting agree" in claim for claim in claims)
    assert any("A rank for each layer" in claim for claim in claims)
    assert stages["which layers"].answer == "every linear layer at rank 2"
    compared = [claim for claim in claims if "is better than every linear layer at rank 2" in claim]
    layers = [r for r in results if r.asked.stage is Stage.TARGETS]
    assert len(compared) == len({r.asked.hyper_parameters for r in layers if r.finished}) > 0
    page = (result.directory / "report.html").read_text(encoding="utf-8")
    assert "cut, one threshold for all layers" in page
    assert loratune.tune(**wishes, resume=True).recommended == result.recommended
    (result.directory / "result.json").unlink()
    again = loratune.tune(**wishes, resume=True)
    assert again.evidence == result.evidence
    assert len(Study.load(result.directory).results()) == len(results)


def test_an_adopted_pattern_is_written_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the test's verdict forced, the final adapter has its pattern in PEFT's format and in result.json."""
    from loratune.maths.noninferiority import Comparison

    monkeypatch.setattr(Comparison, "better", lambda self, tests=1: True)
    monkeypatch.setattr(Comparison, "shown_better", lambda self, tests=1: True)
    model = save_tiny_model(tmp_path / "model")
    out = tmp_path / "run"
    data = write_jsonl(tmp_path / "train.jsonl", animal_rows(120))
    loratune.tune(
        model=model, data=data, out=out, ranks=[2, 8], learning_rates=[1e-2], batch_sizes=[16], budget="16x",
        dtype="float32", epochs=1.0, device="cpu", layer_ranks=True, margin=10.0,
    )  # fmt: skip
    result = load_result(out)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    assert config["rank_pattern"] == dict(result.recommended.rank_pattern)
    peft = result.recommended.lora_config()
    assert (peft.rank_pattern, peft.alpha_pattern) == (config["rank_pattern"], config["alpha_pattern"])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), out / "adapter")
    ranks = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default"): module.out_features
        for name, module in loaded.named_modules()
        if name.endswith("lora_A.default")
    }
    assert len(set(ranks.values())) > 1
    assert all(rank == config["rank_pattern"].get(name, 2) for name, rank in ranks.items())
