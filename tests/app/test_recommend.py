"""`recommend` with the weights at hand: base loss, warnings, the probe, the guide; its words and its document."""

import json
import sys
from dataclasses import replace
from io import StringIO
from math import inf, log
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

import loratune
from loratune.cli.main import main
from loratune.maths.laws import EPOCH_CHOICES, GUIDE
from loratune.reporting.documents import render
from loratune.reporting.tables import guide_line, length_bars, probe_lines, survey_lines
from loratune.reporting.terminal import print_ledger, print_survey
from loratune.tuning import recommendation
from loratune.tuning.options import TuneOptions
from loratune.tuning.workbench import open_workbench, search_context
from loratune.values import (
    ALL_LINEAR,
    Absorbed,
    BaseLoss,
    NearDuplicates,
    NoiseScale,
    Optimum,
    Probe,
    RateTest,
    StudiedTask,
    Survey,
    TaskKind,
)
from report_fixture import make_facts
from tiny import animal_rows, save_tiny_model, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", animal_rows(300))


def test_the_base_models_loss_is_part_of_the_profile(model: Path, data: Path) -> None:
    found = loratune.recommend(model=model, data=data, dtype="float32", device="cpu")
    survey = found.data.survey
    assert survey is not None
    assert survey.kind is TaskKind.CLASSIFICATION
    assert found.guide == GUIDE[TaskKind.CLASSIFICATION]
    loss = survey.base_loss
    assert loss is not None
    assert loss.low < loss.nll < loss.high
    assert loss.nll == pytest.approx(log(257), abs=1.0)  # random weights know nothing
    assert found.recommendation.r.tasks == 13
    assert "n = 13 tasks of 6 datasets" in found.recommendation.r.basis
    assert any("measure it" in note for note in found.recommendation.notes)
    safe = found.to_dict()["recommendation"]["safe_r"]
    assert safe["value"] == found.recommendation.safe_r.value == min(32, found.model.largest_rank)
    assert found.recommendation.r.value <= safe["value"]
    assert any("the safe 0.00" in note for note in found.recommendation.notes)


def test_the_passes_are_those_that_a_search_starts_from(model: Path, data: Path, tmp_path: Path) -> None:
    """`tune` and `plan` compare ranks at them, and then try their neighbours."""
    found = loratune.recommend(model=model, data=data, dtype="float32", device="cpu")
    options = TuneOptions(model=str(model), data=str(data), dtype="float32", device="cpu", out=str(tmp_path))
    with open_workbench(options, targets=ALL_LINEAR, ranks=(), epochs="auto") as bench:
        wishes = search_context(bench, options).wishes
    assert found.recommendation.epochs.value == wishes.epochs
    assert 1 <= wishes.epochs <= 5
    assert wishes.epoch_choices == EPOCH_CHOICES


def test_a_base_model_worse_than_guessing_is_named(model: Path, data: Path, tmp_path: Path) -> None:
    """Weights that are sure of the wrong tokens, as a model is that meets another tokenizer's ids."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        network.model.norm.weight.mul_(30)
    wrong = tmp_path / "wrong"
    network.save_pretrained(wrong)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (wrong / name).write_bytes((model / name).read_bytes())
    found = loratune.recommend(model=wrong, data=data, dtype="float32", device="cpu")
    assert any("that of guessing" in warning for warning in found.data.warnings)
    assert not any("that of guessing" in w for w in loratune.recommend(model=model, data=data).data.warnings)


def test_the_probe_shrinks_intervals_and_says_so(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recommendation, "PROBE_SECONDS", 3.0)
    arguments = [
        "--model",
        str(model),
        "--data",
        str(data),
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--probe",
    ]

    def called(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["loratune", "recommend", *arguments, *more])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    told = json.loads(called("--json"))
    before, after = told["without_probe"], told["recommendation"]
    spans = [each["learning_rate"]["high"] / each["learning_rate"]["low"] for each in (before, after)]
    assert spans[1] < spans[0]
    assert after["batch_size"]["basis"].startswith("90 % of the measured noise scale")
    assert told["probe"]["rate"]["rows"] >= 80
    assert told["probe"]["absorbed"]["rows"] > 0

    words = called()
    assert "before the probe" in words
    assert "gradient noise scale" in words
    assert "learning-rate test on" in words
    assert "The published guide, for this kind of task: rank 4 to 8" in words


SURVEY = Survey(
    kind=TaskKind.EXTRACTION,
    kind_reason="copied",
    compression_ratio=3.14,
    near_duplicates=NearDuplicates(
        threshold=0.8, rows=100, training=7, leaks=(("validation", 20, 0), ("test", 30, 3)),
        examples=(("<script>alert(1)</script>", "its twin"),),
    ),
    base_loss=BaseLoss(nll=2.0, low=1.8, high=2.2, rows=64, supervised_tokens=640, total=2000 * log(2)),
    warnings=("3 of 30 test rows are nearly in the training rows too",),
)  # fmt: skip


def test_survey_in_words() -> None:
    data = replace(
        make_facts().profile,
        survey=SURVEY,
        length_quantiles=((0.5, 12), (0.95, 31)),
        length_histogram=((8, 15, 60), (16, 31, 20)),
        unique_tokens=321,
    )
    text = " ".join(survey_lines(data))
    assert "50% ≤ 12, 95% ≤ 31; 321 different tokens" in text
    assert "Kind of task: extraction (copied)." in text
    assert "compresses 3.1 times" in text
    assert "7 of 100 training rows" in text
    assert "0 of 20 validation rows; 3 of 30 test rows" in text
    assert "2.000 nats per supervised token, 95 % [1.800, 2.200] on 64 rows; at most 2k bits" in text
    assert length_bars(data) == [("8–15", 60, 1.0), ("16–31", 20, pytest.approx(1 / 3))]
    out = StringIO()
    print_survey(Console(file=out, width=100), data)
    assert "! 3 of 30 test rows" in out.getvalue()


def test_the_report_shows_the_survey_and_escapes_the_rows() -> None:
    facts = make_facts()
    page = render(
        replace(facts, profile=replace(facts.profile, survey=SURVEY, length_histogram=((1, 1, 4),)))
    )
    section = page[page.index('<section id="data">') :].partition("</section>")[0]
    assert "Kind of task: extraction" in section
    assert "3 of 30 test rows are nearly in the training rows too" in section
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in section
    assert "<script>alert(1)" not in page
    assert "<meter" in section


def test_a_probe_in_words() -> None:
    whole = Probe(
        seconds=61.0,
        noise=NoiseScale(rows=80.0, low=60.0, high=inf, steps=12),
        rate=RateTest(
            r=8, lora_alpha=16, batch_size=8, rows=96, tried=((1e-3, 2.0), (3e-3, inf)), best=1e-3, inside=False
        ),
        absorbed=Absorbed(bits=500.0, rows=192, supervised_tokens=1000),
    )  # fmt: skip
    text = " ".join(probe_lines(whole))
    assert "gradient noise scale 80 rows, 90 % [60, no upper end], over 12 steps" in text
    assert "1e-3: 2, 3e-3: –; best 1e-3, at the edge of what was tried" in text
    assert "192 rows absorbed 500 bits, 0.50 per supervised token" in text
    assert "not measured for want of rows: gradient noise scale, learning-rate test" in " ".join(
        probe_lines(Probe(seconds=1.0))
    )
    assert "rank 32 to 64 and more" in guide_line(GUIDE[TaskKind.REASONING])


def test_the_ledger_in_words() -> None:
    out = StringIO()
    console = Console(file=out, width=160)
    print_ledger(console, [], "here.db")
    assert "No study has finished yet." in out.getvalue()
    optimum = Optimum(r=8, lora_alpha=16, batch_size=16, learning_rate=3e-3, nll=0.2, inside=True)
    task = StudiedTask(dataset="d" * 20, model="[bold]m", rows=50.0, needed_rank=4.0, optima=(optimum,))
    print_ledger(console, [("a1b2c3", "2026-11-22", "/runs/one", "", task)], "here.db")
    text = out.getvalue()
    assert "1, best 3e-3 at r 8" in text
    assert "[bold]m" in text
    assert "/runs/one" in text
    assert "a1b2c3" in text
