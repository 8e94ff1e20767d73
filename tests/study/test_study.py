"""The study: round trips, crash safety by real SIGKILLs, refusals, and Optuna's own tools reading it."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import inf, nan
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import numpy as np
import optuna
import pytest

from loratune.errors import OutputError
from loratune.study.record import Study
from loratune.study.secrets import has_secrets, masked
from loratune.values import CurvePoint, Stage, TrialResult, TrialState
from loratune.values.plain import to_plain
from study_fixture import assert_equal, make_result, write_until_killed
from warm import warm_context

FINGERPRINT = {"options": {"ranks": (4, 8), "margin": 0.005}, "model": "tiny", "data": "abc"}


DIVERGED = make_result(
    rank=1,
    state=TrialState.DIVERGED,
    nll=inf,
    train_nll=inf,
    metrics={},
    curve=(CurvePoint(step=5, fraction=0.1, train_nll=9.0, validation_nll=inf),),
    example_nll=None,
    example_scores={},
    message="loss became NaN at step 7",
)
STOPPED = make_result(rank=2, state=TrialState.STOPPED, message="worse than its rivals at 25 %")


def test_results_come_back_equal(tmp_path: Path) -> None:
    complete = make_result()
    elsewhere = make_result(rank=32, trial=replace(complete.trial, seed=9))
    wide = make_result(rank=2048)
    study = Study.open(tmp_path / "run", fingerprint=FINGERPRINT)
    expected = [complete, DIVERGED, STOPPED, elsewhere, wide]
    for result in expected:
        study.record(result)
    again = Study.open(tmp_path / "run", fingerprint=FINGERPRINT, resume=True)
    for reader in (study, again, Study.load(tmp_path / "run")):
        found = reader.results()
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal(ours, theirs)


def test_a_key_is_recorded_once(tmp_path: Path) -> None:
    study = Study.open(tmp_path, fingerprint={})
    study.record(make_result())
    study.record(make_result(nll=0.1))
    Study.open(tmp_path, fingerprint={}, resume=True).record(make_result(nll=0.2))
    assert [result.nll for result in Study.load(tmp_path).results()] == [1 / 3]


def test_a_trial_without_its_arrays_is_trained_again(tmp_path: Path) -> None:
    study = Study.open(tmp_path, fingerprint={})
    lost, torn, kept = make_result(4), make_result(8), make_result(16)
    for result in (lost, torn, kept):
        study.record(result)
    (tmp_path / "trials" / f"{lost.asked.key}.npz").unlink()
    (tmp_path / "trials" / f"{torn.asked.key}.npz").write_bytes(b"PK\x03\x04 torn")
    again = Study.open(tmp_path, fingerprint={}, resume=True)
    assert [result.asked.key for result in again.results()] == [kept.asked.key]
    again.record(lost)
    assert {result.asked.key for result in again.results()} == {kept.asked.key, lost.asked.key}


def test_what_optuna_sees(tmp_path: Path) -> None:
    study = Study.open(tmp_path, fingerprint={})
    whole = replace(make_result().trial, fraction=1.0)
    for result in (make_result(asked=whole, trial=whole), DIVERGED, STOPPED):
        study.record(result)
    rows = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [row.state.name for row in rows] == ["COMPLETE", "FAIL", "PRUNED"]
    complete, diverged, _ = rows
    assert complete.value == 1 / 3
    assert complete.params == {
        "r": 8,
        "lora_alpha": 16.0,
        "learning_rate": 1e-3 / 3,
        "batch_size": 16,
        "lora_dropout": 0.0,
        "weight_decay": 0.0,
    }
    rank = complete.distributions["r"]
    assert rank == optuna.distributions.IntDistribution(1, 1024, log=True)
    assert complete.intermediate_values == {10: 0.11000000000000001, 20: 0.05500000000000001}
    facts = complete.user_attrs
    assert (facts["cost"], facts["seconds"], facts["trained_tokens"]) == (0.26, 1.5, 12345)
    assert (facts["stage"], facts["fraction"], facts["seed"]) == (str(Stage.RANK), 1.0, 0)
    assert (facts["rows"], facts["accuracy"], facts["state"]) == ("all", 0.8, "complete")
    assert not [name for name in facts if isinstance(facts[name], dict | list) and name != "loratune"]
    assert diverged.user_attrs["message"] == "loss became NaN at step 7"


def test_a_metric_is_maximised(tmp_path: Path) -> None:
    whole = replace(make_result().trial, fraction=1.0)
    study = Study.open(tmp_path, fingerprint={}, metric="accuracy")
    study.record(make_result(asked=whole, trial=whole))
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/study.db")
    assert study.direction.name == "MAXIMIZE"
    assert study.best_value == 0.8
    other = replace(whole, seed=1)
    Study.load(tmp_path).record(make_result(asked=other, trial=other, metrics={"accuracy": 0.9}))
    partial = make_result(rank=16, metrics={"accuracy": 1.0})
    Study.load(tmp_path).record(partial)
    assert study.metric_names == ["validation accuracy"]
    assert study.best_value == 0.9


def test_facts_are_kept(tmp_path: Path) -> None:
    Study.open(tmp_path, fingerprint={}).put_fact("calibration", {"seconds_per_token": 1e-4})
    again = Study.open(tmp_path, fingerprint={}, resume=True)
    assert again.get_fact("calibration") == {"seconds_per_token": 1e-4}
    assert again.get_fact("phase") is None
    assert again.get_fact("phase", "search") == "search"


def test_another_study_is_refused(tmp_path: Path) -> None:
    Study.open(tmp_path, fingerprint=FINGERPRINT)
    with pytest.raises(OutputError, match="--resume"):
        Study.open(tmp_path, fingerprint=FINGERPRINT)
    changed = FINGERPRINT | {"options": {"ranks": (4, 8), "margin": 0.01}}
    with pytest.raises(OutputError, match=r"options\.margin was 0\.005 and is now 0\.01"):
        Study.open(tmp_path, fingerprint=changed, resume=True)
    without = {name: value for name, value in FINGERPRINT.items() if name != "data"}
    with pytest.raises(OutputError, match="data was 'abc' and is now None"):
        Study.open(tmp_path, fingerprint=without, resume=True)


def test_a_finished_run_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(OutputError, match="another"):
        Study.open(tmp_path, fingerprint={})


@pytest.mark.parametrize("url", ["nonsense", "oracle://scott:tiger@host/db", "sqlite:////no/such/place/x.db"])
def test_a_bad_storage_is_one_sentence_without_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(OutputError) as caught:
        Study.open(tmp_path / "new", fingerprint={}, storage=url)
    assert "--storage" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "tiger" not in str(caught.value)
    assert not (tmp_path / "new").exists()


SECRET_URLS = {
    "postgresql://ann:s3cret@host/db": "postgresql://ann:***@host/db",
    "postgresql://ann:s3cr%40t@host/db": "postgresql://ann:***@host/db",
    "postgresql://host/db?user=ann&password=s3cret": "postgresql://host/db?password=***&user=***",
    "mysql+pymysql://host/db?ssl_key=s3cret": "mysql+pymysql://host/db?ssl_key=***",
}


@pytest.mark.parametrize("url", SECRET_URLS)
def test_secrets_of_a_url_are_masked(tmp_path: Path, url: str) -> None:
    assert has_secrets(url)
    assert masked(url) == SECRET_URLS[url]
    with pytest.raises(OutputError) as caught:
        Study.open(tmp_path / "new", fingerprint={}, storage=url)
    assert "s3cr" not in str(caught.value)


def test_urls_without_secrets(tmp_path: Path) -> None:
    for url in ("sqlite:////tmp/x@y/study.db", "postgresql://ann@host/db"):
        assert not has_secrets(url)
        assert masked(url) == url


def test_a_secret_that_the_driver_repeats_is_masked(tmp_path: Path) -> None:
    """SQLite names the file that it cannot open; here the name is what must not be told."""
    url = f"sqlite:///file:{tmp_path}/none/x.db?uri=true&vfs=hunter2"
    with pytest.raises(OutputError) as caught:
        Study.open(tmp_path / "new", fingerprint={}, storage=url)
    assert "hunter2" not in str(caught.value)


def test_some_facts_are_checked(tmp_path: Path) -> None:
    study = Study.open(tmp_path, fingerprint=FINGERPRINT)
    study.check({"model": "tiny", "options": {"ranks": (4, 8), "margin": 0.005}})
    with pytest.raises(OutputError, match="model was 'tiny' and is now 'other'"):
        study.check({"model": "other"})


def test_unusable_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"):
        Study.open(tmp_path / "file" / "run", fingerprint={})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "study.db").write_bytes(b"this is no database, whatever its name says")
    with pytest.raises(OutputError, match="not a database"):
        Study.open(tmp_path / "torn", fingerprint={}, resume=True)
    with pytest.raises(OutputError, match=r"study\.db"):
        Study.load(tmp_path / "empty")


@pytest.mark.parametrize("name", ["with space", "ümlaut {x}", "100%", "what?", "#1"])
def test_odd_directory_names(tmp_path: Path, name: str) -> None:
    Study.open(tmp_path / name, fingerprint={}).record(make_result())
    assert (tmp_path / name / "study.db").exists()
    assert len(Study.load(tmp_path / name).results()) == 1


def test_two_runs_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    for name, rank in (("one", 4), ("two", 8)):
        Study.open(tmp_path / name, fingerprint={"run": name}, storage=url).record(make_result(rank))
    for name, rank in (("one", 4), ("two", 8)):
        (found,) = Study.load(tmp_path / name, storage=url).results()
        assert found.trial.hyper_parameters.r == rank
    with pytest.raises(OutputError, match="tune first"):
        Study.load(tmp_path / "three", storage=url)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    study = Study.open(tmp_path, fingerprint={})
    study.record(make_result())
    (file,) = (tmp_path / "trials").iterdir()
    with np.load(file, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["nll", "score.exact_match", "score.prediction"]


def _rest(said: Connection) -> Iterator[int]:
    """What was said until then."""
    with suppress(EOFError, OSError):  # nothing more, or half a message
        while True:
            yield said.recv()


def test_kill_9_leaves_whole_trials_only(tmp_path: Path) -> None:
    """Killed at random moments, resumed each time: all that was announced is there, whole and once."""
    random, announced = Random(0), set[int]()
    context = warm_context()
    for _ in range(4):
        heard, said = context.Pipe(duplex=False)
        child = context.Process(target=write_until_killed, args=(tmp_path, said))
        child.start()
        said.close()
        assert heard.recv() == -1
        began, count = time.monotonic(), random.randint(2, 8)
        announced |= {heard.recv() for _ in range(count)}
        # somewhere within the next trial, however fast or busy the machine is
        time.sleep(random.random() * (time.monotonic() - began) / count)
        child.kill()
        announced |= set(_rest(heard))
        child.join()
        results = Study.open(tmp_path, fingerprint={}, resume=True).results()
        seeds = [result.trial.seed for result in results]
        assert len(seeds) == len(set(seeds))
        assert announced <= set(seeds)
        assert len(set(seeds) - announced) <= 4  # recorded, but killed before it could be said
        for result in results:
            assert_equal(result, make_result(seed=result.trial.seed))
    assert len(announced) > 4
    rows = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/study.db").trials
    assert {row.state.name for row in rows} == {"PRUNED"}  # part of the rows


def whole(rank: int, seed: int = 0, **changes: object) -> TrialResult:
    """A result on all rows."""
    trial = replace(make_result(rank, seed).trial, fraction=1.0)
    return make_result(rank, seed, asked=trial, trial=trial, **changes)


def test_optuna_dashboard_and_importances_read_it(tmp_path: Path) -> None:
    """The dashboard's own answers: names, states, times; importances are those of the trials on all rows alone."""
    pytest.importorskip("optuna_dashboard")
    from optuna_dashboard import wsgi

    def importances(directory: Path) -> dict[str, float]:
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{directory}/study.db")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))

    times = {"began": 1_796_000_000.125, "ended": 1_796_000_042.5}
    study = Study.open(tmp_path / "mine", fingerprint={"model": "tiny", "data": "train.jsonl"})
    for rank in (2, 8, 32):
        for seed in (0, 1):
            study.record(whole(rank, seed, nll=1 / rank + 0.01 * seed, **times))
    alone = importances(tmp_path / "mine")
    assert alone["r"] + alone["lora_alpha"] > 0.99  # alpha is twice the rank
    for rank in (4, 16):
        study.record(make_result(rank, nll=9.0 + rank))
    study.record(DIVERGED)
    study.record(whole(64, state=TrialState.STOPPED, train_nll=nan))
    assert importances(tmp_path / "mine") == alone
    url = f"sqlite:///{tmp_path}/mine/study.db"
    listing = _get(wsgi(url), "/api/studies")
    (entry,) = listing["study_summaries"]
    assert entry["study_name"] == "loratune mine"
    detail = _get(wsgi(url), f"/api/studies/{entry['study_id']}")
    assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * 6 + ["Pruned"] * 2 + [
        "Fail",
        "Pruned",
    ]
    assert detail["objective_names"] == ["validation NLL"]
    shown = {each["key"]: each["value"] for each in detail["user_attrs"]}
    assert (shown["model"], shown["data"]) == ("tiny", "train.jsonl")
    row = optuna.load_study(study_name=None, storage=url).trials[0]
    assert row.datetime_start is not None
    assert row.duration is not None
    assert row.datetime_start.timestamp() == times["began"]
    assert row.duration.total_seconds() == 42.375


def test_a_study_of_format_2_goes_on(tmp_path: Path) -> None:
    """As that version wrote it: an unnamed objective, the study's plain name, every attribute beside the others."""
    (tmp_path / "trials").mkdir()
    expected = whole(8, example_nll=None, example_scores={})
    old = optuna.create_study(study_name="loratune", storage=f"sqlite:///{tmp_path}/study.db")
    for name, value in {
        "metric": "nll",
        "format": 2,
        "fingerprint": {"seed": 0},
        "calibration": {"pack": 2},
    }.items():
        old.set_user_attr(name, value)
    attributes = {
        "key": expected.asked.key, "stage": "rank and learning rate", "seed": 0, "fraction": 1.0, "epochs": 3.0,
        "target_modules": "q_proj v_proj", "state": "complete", "message": "", "failure": "", "nll": 1 / 3,
        "train_nll": 0.3, "metrics": {"nll": 1 / 3, "accuracy": 0.8},
        "curve": [[p.step, p.fraction, p.train_nll, p.validation_nll] for p in expected.curve],
        "trained_tokens": 12345, "steps": 20, "cost": 0.26, "seconds": 1.5, "arrays": [],
        "asked": to_plain(expected.asked), "ran": None,
    }  # fmt: skip
    old.add_trial(optuna.trial.create_trial(value=1 / 3, user_attrs=attributes))
    study = Study.open(tmp_path, fingerprint={"seed": 0}, resume=True)
    (found,) = study.results()
    assert_equal(found, expected)
    assert study.get_fact("calibration") == {"pack": 2}
    study.put_fact("calibration", {"pack": 3})
    study.record(whole(16))
    again = Study.load(tmp_path, reading=True)
    assert again.get_fact("calibration") == {"pack": 3}
    assert len(again.results()) == 2
    named = optuna.load_study(study_name="loratune", storage=f"sqlite:///{tmp_path}/study.db")
    assert named.metric_names == ["validation NLL"]


def _get(app: object, path: str) -> dict[str, object]:
    seen: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.input": sys.stdin,
        "wsgi.errors": sys.stderr,
        "wsgi.url_scheme": "http",
    }
    body = b"".join(app(environ, lambda status, headers, *_: seen.append(status)))  # type: ignore[operator]
    assert seen == ["200 OK"], body
    return json.loads(body)


def test_an_interrupt_waits_for_the_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of writing a trial: it is written, then the interrupt comes, and nothing is locked."""
    study = Study.open(tmp_path / "run", fingerprint={})
    inner = study._study.add_trial

    def interrupted(row: optuna.trial.FrozenTrial) -> None:
        signal.raise_signal(signal.SIGINT)
        inner(row)

    monkeypatch.setattr(study._study, "add_trial", interrupted)
    result = make_result()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    with pytest.raises(KeyboardInterrupt):
        study.record(result)
    signal.signal(signal.SIGINT, before)
    study.put_fact("seconds", 1.0)
    assert [each.asked.key for each in Study.load(tmp_path / "run").results()] == [result.asked.key]
