"""The functions of `import loratune`: signatures that an editor shows, and progress for who calls them."""

import inspect
import io
import re
import sys
from dataclasses import MISSING, fields
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

import loratune
from command_fixture import Place
from loratune.errors import InputError, OutputError
from loratune.reporting.notebook import Bars, in_notebook
from loratune.tuning.configuration import to_toml
from loratune.tuning.options import RecommendOptions, SearchOptions, TrainOptions, TuneOptions
from loratune.values import Stage, Trial, default_recipe
from loratune.values.events import (
    Event,
    Finished,
    LiveTrial,
    Note,
    Phase,
    PhaseBegan,
    Progress,
    StageBegan,
    Started,
    TrialEnded,
)
from loratune.values.trial import TrialState

pytest_plugins = ["command_fixture"]

OF = {
    "tune": (TuneOptions, {"on_event", "progress"}),
    "plan": (SearchOptions, {"on_event", "progress"}),
    "recommend": (RecommendOptions, set()),
    "train": (TrainOptions, {"on_event", "progress"}),
}


@pytest.mark.parametrize("name", OF)
def test_the_signature_is_that_of_the_options(name: str) -> None:
    """An option more, or another default, stands in the dataclass and here."""
    cls, more = OF[name]
    shown = inspect.signature(getattr(loratune, name)).parameters
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in shown.values())
    own = {key: each.default for key, each in shown.items() if key not in more}
    expected = {
        each.name: inspect.Parameter.empty if each.default is MISSING else each.default
        for each in fields(cls)
    }
    assert own == expected
    assert set(shown) - set(own) == more


@pytest.mark.parametrize("name", [*OF, "estimate_memory", "resume"])
def test_every_parameter_has_a_type_and_is_explained(name: str) -> None:
    function = getattr(loratune, name)
    names = set(inspect.signature(function).parameters)
    assert names <= set(get_type_hints(function))
    explained = set(re.findall(r"\w+", inspect.getdoc(function) or ""))
    assert names <= explained


def test_what_there_is_is_listed() -> None:
    assert {"tune", "plan", "recommend", "train", "resume", "estimate_memory"} <= set(dir(loratune))
    assert all(callable(getattr(loratune, name)) for name in loratune.__all__ if name != "__version__")
    assert files("loratune").joinpath("py.typed").is_file()


def test_who_calls_is_told_of_every_event(place: Place, tmp_path: Path) -> None:
    told: list[Event] = []
    out, written = tmp_path / "run", io.StringIO()
    bars = Bars(file=written, mininterval=0)

    def on_event(event: Event) -> None:
        told.append(event)
        bars(event)

    loratune.train(**place.keywords, out=out, rank=2, on_event=on_event, progress=False)
    assert isinstance(told[0], Started)
    assert isinstance(told[-1], Finished)
    (ended,) = [event for event in told if isinstance(event, TrialEnded)]
    assert f"lowest validation NLL {ended.nll:.4f}" in written.getvalue()
    assert "100%" in written.getvalue()


def live(share: float) -> LiveTrial:
    trial = Trial(hyper_parameters=default_recipe(), seed=0, stage=Stage.FINAL)
    return LiveTrial(trial=trial, step=round(100 * share), total_steps=100, loss=1.0)


def test_a_bar_never_goes_back_and_ends_full() -> None:
    """A trial that enters a pack when another one ends takes nothing from what was shown."""
    written = io.StringIO()
    shown = []
    with Bars(file=written, mininterval=0) as bars:
        bars(PhaseBegan(phase=Phase.SEARCHING))
        bars(StageBegan(name="rank", trials=2))
        for shares, ended in (((0.5,), 0), ((0.9, 0.2), 0), ((0.1,), 1), ((), 1)):
            for _ in range(ended):
                bars(TrialEnded(key="k", trial=live(1).trial, state=TrialState.COMPLETE, nll=0.25))
            bars(Progress(trials=tuple(map(live, shares)), steps=1, tokens=1, seconds=1.0, occupancy=1.0))
            shown.append(bars._bar.n)
        bars(Note(text="a note"))
    assert shown == pytest.approx([0.5, 1.1, 1.1, 2.0])
    assert "a note" in written.getvalue()
    assert "lowest validation NLL 0.2500" in written.getvalue()


def test_a_notebook_is_told_from_other_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    def shell(config: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(get_ipython=lambda: SimpleNamespace(config=config))

    for module, expected in ((None, False), (shell({}), False), (shell({"IPKernelApp": {}}), True)):
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert in_notebook() is expected


def test_resume_in_python_reads_the_directory(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name the database by --storage"):
        loratune.resume(_kept(tmp_path / "a", "nll"))
    with pytest.raises(InputError, match="names code"):
        loratune.resume(_kept(tmp_path / "b", "evil:score"))


def _kept(out: Path, metric: str) -> Path:
    """A directory with options and somebody's file, but no study."""
    out.mkdir()
    text = to_toml(TuneOptions(model="m", data="d", out="elsewhere")).replace('"nll"', f'"{metric}"')
    (out / "loratune.toml").write_text(text)
    return out
