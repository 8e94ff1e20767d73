"""`--proxy`: a search on a smaller model, certified on the larger one, on two tiny models of one family."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

import loratune
from command_fixture import Shell
from loratune.app import tune as app
from loratune.costs import measuring
from loratune.errors import Interrupted, OutputError
from loratune.reporting.result import TuneResult
from loratune.search.carried import CarriedStrategy, carried_context
from loratune.study.record import Study
from loratune.tuning.configuration import read_options
from loratune.tuning.options import TuneOptions
from loratune.values import DataFacts, HyperParameters, SearchContext, Stage, Trial, TrialResult, TrialState
from loratune.values.events import Event, Planned, Started, TrialEnded
from tiny import animal_rows, byte_tokenizer, save_tiny_model, write_jsonl
from warm import WarmCommand

pytest_plugins = ("command_fixture",)

SETTING = HyperParameters(r=4, lora_alpha=8, learning_rate=1e-3, batch_size=8, epochs=2.0)
WISHES: dict[str, Any] = {
    "ranks": (2, 4),
    "budget": "4x",
    "dtype": "float32",
    "device": "cpu",
    "epochs": 1.0,
    "no_ledger": True,
}


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.05)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, its smaller sibling, and rows."""
    folder = tmp_path_factory.mktemp("places")
    return {
        "model": str(save_tiny_model(folder / "large", hidden=48, layers=3)),
        "proxy": str(save_tiny_model(folder / "small", hidden=16, layers=1)),
        "data": str(write_jsonl(folder / "train.jsonl", animal_rows(90))),
    }


@pytest.fixture(scope="module")
def run(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneResult, list[Event]]:
    out = tmp_path_factory.mktemp("run") / "out"
    events: list[Event] = []
    return loratune.tune(**places, **WISHES, out=out, on_event=events.append), events


def document(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return values


def searched(directory: Path) -> list[TrialResult]:
    return [each for each in Study.load(directory).results() if each.asked.stage is not Stage.FINAL]


def test_only_the_rate_is_measured_on_the_larger_model(run: tuple[TuneResult, list[Event]]) -> None:
    result, _ = run
    small = document(result.directory / "proxy")["recommended"]
    trials = searched(result.directory)
    assert 3 <= len(trials) <= 4
    rates = sorted(each.trial.hyper_parameters.learning_rate for each in trials)
    assert any(rate == pytest.approx(small["learning_rate"], rel=0.06) for rate in rates), (
        "rounded to two digits"
    )
    assert all(high / low == pytest.approx(3, rel=0.1) for low, high in pairwise(rates))
    for each in trials:
        own = each.trial.hyper_parameters
        assert (own.r, own.batch_size, own.epochs) == (small["r"], small["batch_size"], small["epochs"])
        assert own.lora_alpha == small["lora_alpha"]
    best = min(trials, key=lambda each: each.nll).trial.hyper_parameters
    assert result.recommended.learning_rate == best.learning_rate
    assert result.recommended.r == small["r"]


def test_evidence_and_cost_say_what_was_carried_and_what_was_measured(
    run: tuple[TuneResult, list[Event]], places: dict[str, str]
) -> None:
    result, _ = run
    told = document(result.directory)
    small = document(result.directory / "proxy")
    assert told["proxy"]["model"] == places["proxy"]
    assert told["proxy"]["trials"] == small["cost"]["trials"]
    assert told["proxy"]["seconds"] == pytest.approx(small["cost"]["seconds"])
    assert told["proxy"]["setting"]["r"] == small["recommended"]["r"]
    claims = [each["claim"] for each in told["evidence"]]
    assert any("measured on this model" in claim for claim in claims)
    assert any("not compared with others on this model" in claim for claim in claims)
    assert any(claim.startswith("Searched on the smaller") for claim in claims)
    page = (result.directory / "report.html").read_text()
    assert "not compared with others on this model" in page
    assert "before that" in page
    assert (result.directory / "adapter" / "adapter_model.safetensors").exists()


def test_the_events_are_those_of_two_runs(
    run: tuple[TuneResult, list[Event]], places: dict[str, str]
) -> None:
    _, events = run
    assert [each.model for each in events if isinstance(each, Started)] == [places["proxy"], places["model"]]
    small, large = [each for each in events if isinstance(each, Planned)]
    assert large.plan.trials == 3
    assert "Searched on the smaller" in large.notes[0]
    assert small.model.parameters < large.model.parameters


@pytest.mark.parametrize("when", ["in the proxy's search", "after it"])
def test_a_run_that_was_interrupted_is_resumed_by_its_own_options(
    when: str, run: tuple[TuneResult, list[Event]], places: dict[str, str], tmp_path: Path
) -> None:
    """Nothing is trained twice, and the decision is the uninterrupted run's."""
    whole, _ = run
    out = tmp_path / "run"
    options = {**places, **WISHES, "out": str(out)}
    ended: list[TrialEnded] = []
    first = len(searched(whole.directory / "proxy"))

    def stop(event: Event) -> None:
        if isinstance(event, TrialEnded):
            ended.append(event)
        if len(ended) == (2 if when == "in the proxy's search" else first + 4):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"{out}/loratune.toml --resume"):
        app.run_tune(TuneOptions(**options), stop)
    if when == "in the proxy's search":
        with pytest.raises(
            OutputError, match=rf"search on the proxy, in {out}/proxy, comes first; .* {out} --resume"
        ):
            loratune.report(out)
    again = read_options(out / "loratune.toml")
    result, code = app.run_tune(TuneOptions(**again | {"resume": True}), lambda _: None)
    assert code == 0
    assert document(out)["recommended"] == document(whole.directory)["recommended"]
    for folder in (out, out / "proxy"):
        keys = [each.asked.key for each in searched(folder)]
        assert len(keys) == len(set(keys))
    assert result.directory == out
    assert app.run_tune(TuneOptions(**again | {"resume": True}), lambda _: None)[1] == 0


def test_a_run_killed_in_the_proxys_search_goes_on(places: dict[str, str], tmp_path: Path) -> None:
    """SIGKILL, without a word: what the proxy had finished stays as it is, and is not trained again."""
    out = tmp_path / "run"
    words = [f"--{name.replace('_', '-')}" for name, value in WISHES.items() if value is True]
    for name, value in {**places, **WISHES, "out": out}.items():
        if value is not True:
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    process = WarmCommand(["tune", *words])
    try:
        limit = monotonic() + 300
        while len(list(out.glob("proxy/trials/*.npz"))) < 2:
            assert process.poll() is None, process.stderr.read()
            assert monotonic() < limit
            sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert not (out / "result.json").exists()
    files = {path: path.stat().st_mtime_ns for path in out.glob("proxy/trials/*.npz")}
    kept = {each.asked.key for each in searched(out / "proxy")}
    again = read_options(out / "loratune.toml")
    result, code = app.run_tune(TuneOptions(**again | {"resume": True}), lambda _: None)
    assert code == 0
    keys = [each.asked.key for each in searched(out / "proxy")]
    assert len(keys) == len(set(keys)) > len(kept) > 0
    assert kept <= set(keys)
    recorded = {path: seen for path, seen in files.items() if path.stem in kept}
    assert recorded == {path: path.stat().st_mtime_ns for path in recorded}
    assert result.recommended.r == document(out / "proxy")["recommended"]["r"]


def test_the_plan_prices_both(places: dict[str, str], shell: Shell) -> None:
    arguments = [f"--{name}={value}" for name, value in places.items()]
    ran = shell("plan", *arguments, "--dtype=float32", "--device=cpu", "--budget=4x", "--json", "--no-ledger")
    assert ran.code == 0, ran.err
    told = ran.document
    assert told["trials"] == 3
    assert told["proxy"]["trials"] > 3
    seconds = told["predicted_seconds"]
    assert seconds["proxy"] == told["proxy"]["predicted_seconds"]["total"] > 0
    assert seconds["total"] > seconds["proxy"] + seconds["search"]
    assert not shell.written


def test_a_rate_at_the_edge_is_widened_once() -> None:
    """Losses that fall with the rate: the fourth rate is the last, and the claim does not hold."""
    context = carried_context(
        SearchContext(data=DataFacts(rows=100, tokens=1000, supervised_tokens=500)), SETTING
    )
    strategy = CarriedStrategy(context, "carried")
    history: list[TrialResult] = []
    while trials := strategy.ask(history):
        history += [_result(each, 1 / each.hyper_parameters.learning_rate) for each in trials]
    rates = sorted(each.trial.hyper_parameters.learning_rate for each in history)
    assert rates == pytest.approx([3.3e-4, 1e-3, 3e-3, 9e-3])
    decision = strategy.decide(history)
    assert decision.settled
    assert decision.hyper_parameters.learning_rate == rates[-1]
    assert [each.holds for each in decision.evidence] == [None, False, None]


def test_a_rate_inside_is_certified() -> None:
    context = carried_context(
        SearchContext(data=DataFacts(rows=100, tokens=1000, supervised_tokens=500)), SETTING
    )
    strategy = CarriedStrategy(context, "carried")
    losses = {3.3e-4: 1.0, 1e-3: 0.8, 3e-3: 0.9}
    history = [_result(each, losses[each.hyper_parameters.learning_rate]) for each in strategy.ask([])]
    assert not strategy.ask(history)
    decision = strategy.decide(history)
    assert decision.hyper_parameters == SETTING
    assert [each.holds for each in decision.evidence] == [True, True, None]


def _result(asked: Trial, nll: float) -> TrialResult:
    return TrialResult(
        asked=asked,
        trial=asked,
        nll=nll,
        cost=1.0,
        state=TrialState.COMPLETE,
        seconds=1.0,
        trained_tokens=1000,
    )


def same(places: dict[str, str]) -> dict[str, str]:
    return {"proxy": places["model"]}


def larger(places: dict[str, str]) -> dict[str, str]:
    return {"proxy": places["model"], "model": places["proxy"]}


def other_tokens(places: dict[str, str]) -> dict[str, str]:
    folder = Path(places["proxy"]).with_name("template")
    if not folder.exists():
        shutil.copytree(places["proxy"], folder)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = "{{ messages[0].content }}"
        tokenizer.save_pretrained(folder)
    return {"proxy": str(folder)}


def other_family(places: dict[str, str]) -> dict[str, str]:
    folder = Path(places["proxy"]).with_name("mistral")
    if not folder.exists():
        shutil.copytree(places["proxy"], folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
    return {"proxy": str(folder)}


REFUSED = {
    "the model itself": (same, {}, "must be another model"),
    "a larger one": (larger, {}, "must be smaller than --model"),
    "another family": (other_family, {}, "must be of the same family .* is a mistral .* a llama"),
    "another chat template": (other_tokens, {}, "must have the tokenizer and chat template"),
    "nothing there": (lambda _: {"proxy": "no/such/model"}, {}, "no/such/model"),
    "a budget in time": (lambda _: {}, {"budget": "10m"}, "must be in runs of the proxy"),
    "ranks by layer": (lambda _: {}, {"layer-ranks": None}, "names layers of the proxy"),
    "workers": (lambda _: {}, {"devices": "workers"}, "one run directory"),
    "one storage": (lambda _: {}, {"storage": "sqlite:///a.db"}, "holds one study"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    case: str, places: dict[str, str], shell: Shell
) -> None:
    change, options, says = REFUSED[case]
    arguments = [f"--{name}={value}" for name, value in {**places, **change(places)}.items()]
    arguments += [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
    ran = shell("tune", *arguments)
    assert ran.code == 2
    assert re.search(says, ran.error), ran.error
    assert not shell.written
