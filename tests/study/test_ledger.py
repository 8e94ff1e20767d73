"""The ledger: kept, replaced, shared by processes, and never in the way."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loratune
from command_fixture import Shell
from loratune.costs import measuring
from loratune.errors import InputError, OutputError
from loratune.maths.learned import learn_rank, learn_rate, likeness, measured_tasks
from loratune.study.ledger import LedgerError, ledger_path, read_ledger, write_entry
from loratune.study.record import Study
from loratune.tuning.experience import Corrections, correct, dataset_name, gather, optima_of, task_of_study
from loratune.tuning.options import PriorOptions
from loratune.values import HyperParameters, Optimum, StudiedTask, Trial, TrialResult, TrialState
from loratune.values.plain import from_plain, to_plain
from tiny import animal_rows, save_tiny_model, write_jsonl

pytest_plugins = ["command_fixture"]

OPTIMUM = Optimum(r=8, lora_alpha=16, batch_size=16, learning_rate=3e-3, nll=0.2, inside=True)
TASK = StudiedTask(
    dataset="abc", model="m", family="llama", kind="classification", hidden_size=64, parameters_per_rank=600_000,
    rows=100.0, epochs=3.0, supervised_tokens=500, labels=3, needed_rank=4.0, source="ledger", optima=(OPTIMUM,),
)  # fmt: skip


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORATUNE_LEDGER", str(tmp_path / "mine.db"))
    assert ledger_path() == tmp_path / "mine.db"
    monkeypatch.delenv("LORATUNE_LEDGER")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert ledger_path() == tmp_path / "data" / "loratune" / "ledger.db"


def test_entries_come_back_and_a_repetition_replaces_its_own(ledger: Path) -> None:
    assert not read_ledger(ledger).studies
    assert not ledger.exists()
    write_entry(ledger, "k1", "/runs/a", TASK)
    write_entry(ledger, "k2", "/runs/b", replace(TASK, model="n"))
    write_entry(ledger, "k1", "/runs/c", replace(TASK, needed_rank=8.0))
    entries = {entry.key: entry for entry in read_ledger(ledger).studies}
    assert set(entries) == {"k1", "k2"}
    assert entries["k2"].task == replace(TASK, model="n")
    assert (entries["k1"].directory, entries["k1"].task.needed_rank) == ("/runs/c", 8.0)


def test_many_processes_write_at_once_and_nothing_is_lost(ledger: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from loratune.study.ledger import write_entry\n"
        "from loratune.values import StudiedTask\n"
        "for i in range(10):\n"
        "    write_entry(Path(sys.argv[1]), f'{sys.argv[2]}-{i}', '/r', StudiedTask(dataset='d', model='m'))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(ledger), str(n)]) for n in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(read_ledger(ledger).studies) == 40


def break_it(path: Path, how: str) -> None:
    write_entry(path, "k", "/r", TASK)
    if how == "no database":
        path.write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        with sqlite3.connect(path) as connection:
            statement = {
                "another table": "DROP TABLE studies",
                "newer": "PRAGMA user_version = 99",
            }[how]
            connection.execute(statement)
        connection.close()


BROKEN = ("no database", "a folder", "another table", "newer")
DAMAGED = {
    "a list": "task = '[]'",
    "no JSON": "task = '{'",
    "deep JSON": f"task = '{'[' * 100_000}'",
    "text for a number": """task = json_set(task, '$.rows', 'many')""",
    "a number for text": """task = json_set(task, '$.family', 5)""",
    "no learning rate at all": """task = json_set(task, '$.optima[0].learning_rate', -1)""",
    "infinite": """task = json_set(task, '$.epochs', 9e999)""",
    "a huge number": """task = json_set(task, '$.rows', 1e300)""",
    "an unknown key": """task = json_set(task, '$.future', 1)""",
    "another type of column": "finished = x'ff00'",
    "text that is no UTF-8": "directory = CAST(x'ff' AS TEXT)",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_ledger_is_one_sentence_and_is_left_as_it_is(how: str, ledger: Path, tmp_path: Path) -> None:
    break_it(ledger, how)
    before = None if ledger.is_dir() else ledger.read_bytes()
    with pytest.raises(LedgerError, match=str(ledger)):
        read_ledger(ledger)
    data = write_jsonl(tmp_path / "data.jsonl", animal_rows(20))
    found = gather(PriorOptions(model="m", data=str(data)))
    assert found.tasks == measured_tasks()
    (note,) = found.notes
    assert str(ledger) in note
    assert gather(PriorOptions(model="m", data=str(data), no_ledger=True)).notes == ()
    assert before is None or ledger.read_bytes() == before


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_entry_is_left_out_with_a_note(how: str, ledger: Path, tmp_path: Path) -> None:
    write_entry(ledger, "good", "/r", TASK)
    write_entry(ledger, "bad", "/r", replace(TASK, model="n"))
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(f"UPDATE studies SET {DAMAGED[how]} WHERE key = 'bad'")
    found = read_ledger(ledger)
    assert [entry.key for entry in found.studies] == ["good"]
    assert found.damaged == 1
    data = write_jsonl(tmp_path / "data.jsonl", animal_rows(20))
    options = PriorOptions(model="m", data=str(data))
    experience = gather(options)
    assert any("1 of 2 studies in the ledger" in note for note in experience.notes)
    assert correct(replace(TASK, dataset=dataset_name(options), model="new"), experience).rate > 0


def test_a_locked_ledger_is_waited_for_and_then_told(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loratune.study.ledger._PATIENCE", 0.2)
    write_entry(ledger, "k", "/r", TASK)
    holder = sqlite3.connect(ledger)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(LedgerError, match=r"in use by another process .database is locked.; try again"):
            write_entry(ledger, "other", "/r", TASK)
        with pytest.raises(LedgerError, match=r"in use by another process .database is locked.; try again"):
            read_ledger(ledger)
    finally:
        holder.close()
    assert len(read_ledger(ledger).studies) == 1


def result(rate: float, nll: float, *, r: int = 8, seed: int = 0, **changes: Any) -> TrialResult:
    values = HyperParameters(r=r, lora_alpha=2 * r, learning_rate=rate, batch_size=16)
    trial = Trial(hyper_parameters=values, seed=seed, fraction=changes.pop("fraction", 1.0))
    state = TrialState.COMPLETE if nll < 100 else TrialState.DIVERGED
    return TrialResult(asked=trial, trial=trial, state=state, nll=nll, train_nll=nll, **changes)


def test_optima_are_read_off_full_trials_with_seeds_pooled() -> None:
    found = optima_of(
        [
            result(1e-3, 0.4), result(1e-3, 0.2, seed=1), result(3e-3, 0.25), result(9e-3, 0.5),
            result(1e-3, 0.1, fraction=0.25), result(1e-3, 0.3, r=32), result(1e-4, 0.5, r=2), result(1e-3, 999, r=2),
        ]
    )  # fmt: skip
    assert [(each.r, each.inside) for each in found] == [(2, False), (8, True)]
    assert found[1].nll == 0.25
    assert 1e-3 < found[1].learning_rate < 9e-3


def test_the_same_data_has_one_name_whatever_it_is_called(tmp_path: Path) -> None:
    rows = animal_rows(20)
    one, two = (write_jsonl(tmp_path / name, rows) for name in ("a.jsonl", "b.jsonl"))
    other = write_jsonl(tmp_path / "c.jsonl", animal_rows(20, seed=1))
    names = [
        dataset_name(PriorOptions(model="m", data=str(path), seed=n))
        for n, path in enumerate((one, two, other))
    ]
    assert names[0] == names[1] != names[2]
    assert names[0] != dataset_name(PriorOptions(model="m", data=str(one), train_rows=10))


def test_earlier_studies_move_the_prior_towards_what_they_measured(ledger: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", animal_rows(20))
    options = PriorOptions(model="m", data=str(data))
    new = replace(TASK, dataset=dataset_name(options), model="new", optima=(), needed_rank=0.0)
    before = correct(new, gather(options))
    high = replace(OPTIMUM, learning_rate=5e-2)
    write_entry(ledger, "k", "/r", replace(TASK, dataset=new.dataset, optima=(high,), needed_rank=64.0))
    after = correct(new, gather(options))
    assert after.rate > before.rate
    assert after.rank > 1.5 * before.rank
    assert "1 finished study of the ledger, 1 of them on this data" in after.notes[0]
    assert (
        correct(new, gather(options, own_key="k"))
        == before
        == Corrections(rate=before.rate, rank=before.rank)
    )
    assert from_plain(Corrections, json.loads(json.dumps(to_plain(after)))) == after


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("place")
    return {
        "model": save_tiny_model(folder / "model"), "data": write_jsonl(folder / "train.jsonl", animal_rows(120)),
        "dtype": "float32", "device": "cpu", "strategy": "grid", "budget": "8x",
        "train_rows": 40, "validation_rows": 16, "test_rows": 16,
        "learning_rates": [1e-3, 1e-2], "batch_sizes": [16],
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)


def test_tune_writes_the_ledger_and_the_next_study_says_that_it_used_it(
    place: dict[str, Any], tmp_path: Path, ledger: Path
) -> None:
    loratune.tune(**place, ranks=[2, 8], out=tmp_path / "one")
    (entry,) = read_ledger(ledger).studies
    assert entry.directory == str((tmp_path / "one").resolve())
    assert entry.task == task_of_study(tmp_path / "one")
    assert {each.r for each in entry.task.optima} == {2, 8}
    assert entry.task.needed_rank == 0  # the user's list decided
    assert (entry.task.kind, entry.task.labels) == ("classification", 3)

    repeated = loratune.tune(**place, ranks=[2, 8], out=tmp_path / "again")
    assert not any("ledger" in each.claim for each in repeated.evidence)  # alike, whatever it left behind
    assert len(read_ledger(ledger).studies) == 1

    third = loratune.tune(**place, ranks=[4], out=tmp_path / "three")
    assert any("1 finished study of the ledger" in each.claim for each in third.evidence)
    kept = from_plain(Corrections, Study.load(tmp_path / "three").get_fact("corrections"))
    assert kept.rate != from_plain(Corrections, Study.load(tmp_path / "again").get_fact("corrections")).rate


def test_a_broken_ledger_stops_no_run(place: dict[str, Any], tmp_path: Path, ledger: Path) -> None:
    break_it(ledger, "no database")
    before = ledger.read_bytes()
    found = loratune.tune(**place, ranks=[2], out=tmp_path / "run")
    assert found.recommended.r == 2
    assert any(str(ledger) in each.claim for each in found.evidence)
    assert ledger.read_bytes() == before


def test_from_study_takes_over_to_a_new_base_model(
    place: dict[str, Any], tmp_path: Path, ledger: Path
) -> None:
    loratune.tune(**place, ranks=[2, 8], out=tmp_path / "old", no_ledger=True)
    assert not ledger.exists()
    wider = save_tiny_model(tmp_path / "wider", seed=1, hidden=64)
    options = {**place, "model": wider, "ranks": [4], "no_ledger": True}
    plain, warm = (loratune.plan(**options, from_study=each).corrections for each in (None, tmp_path / "old"))
    assert plain.notes == ()
    assert warm.rate != plain.rate
    taken, total = warm.notes
    assert "2 measured learning-rate optima" in taken
    assert "sizes and family are the new model's" in taken
    assert total.startswith("With earlier studies the learning rate is expected at ")
    other = write_jsonl(tmp_path / "other.jsonl", animal_rows(120, seed=5))
    elsewhere = loratune.plan(**{**options, "data": other}, from_study=tmp_path / "old").corrections
    assert any("another file than this one" in note for note in elsewhere.notes)
    with pytest.raises(OutputError, match=r"study\.db"):
        loratune.plan(**options, from_study=tmp_path / "nowhere")


def test_a_toy_says_nothing_of_a_large_model_and_all_of_its_like() -> None:
    """Half the weight for each factor of 2 in width, for each factor of 4 in rows."""
    assert likeness(TASK, TASK) == 1
    assert likeness(TASK, replace(TASK, hidden_size=128)) == pytest.approx(0.5)
    assert likeness(TASK, replace(TASK, hidden_size=32, rows=400.0)) == pytest.approx(0.25)
    assert likeness(TASK, replace(TASK, hidden_size=4096)) == 0
    assert likeness(replace(TASK, source="named"), replace(TASK, hidden_size=4096)) == 1
    large = replace(TASK, dataset="other", model="large", hidden_size=4096, optima=(), needed_rank=0.0)
    wild = replace(TASK, optima=(replace(OPTIMUM, learning_rate=0.5),), needed_rank=64.0)
    for learn in (learn_rate, learn_rank):
        plain = learn(large, measured_tasks())
        assert learn(large, (*measured_tasks(), wild)) == plain
        assert (
            learn(large, (*measured_tasks(), replace(wild, source="named"))).belief.mean > plain.belief.mean
        )
    half, full = (learn_rate(replace(large, hidden_size=size), (wild,)).belief.mean for size in (256, 64))
    assert 0 < half < full


def test_which_entries_are_used_is_said_and_can_be_named(ledger: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", animal_rows(20))
    new = replace(TASK, dataset="new", model="new", optima=(), needed_rank=0.0)
    write_entry(ledger, "like", "/r", TASK)
    write_entry(ledger, "toy", "/r", replace(TASK, hidden_size=2))
    found = correct(new, gather(PriorOptions(model="m", data=str(data))))
    assert (
        "takes in 1 finished study of the ledger, 0 of them on this data: like (m, weight 1)"
        in found.notes[0]
    )
    assert "1 finished study of the ledger is of models or data of another size" in found.notes[1]
    named = correct(new, gather(PriorOptions(model="m", data=str(data), ledger=("toy",))))
    assert "toy (m, weight 1)" in named.notes[0]
    with pytest.raises(InputError, match="no nowhere"):
        gather(PriorOptions(model="m", data=str(data), ledger=("toy", "nowhere")))


def test_entries_are_listed_shown_and_removed(ledger: Path, shell: Shell) -> None:
    write_entry(ledger, "k1", "/runs/\x1b[2Ja", TASK)
    write_entry(ledger, "k2", "/runs/b", replace(TASK, model="[bold]n\x1b[0m"))
    write_entry(ledger, "bad", "/r", TASK)
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE studies SET task = '{' WHERE key = 'bad'")
    listed = shell("ledger", "list")
    assert all(word in listed.out for word in ("k1", "k2", "1 of 3 studies", "Their keys: bad"))
    assert "\x1b" not in listed.out
    assert shell("ledger", "--json").document == shell("ledger", "list", "--json").document
    shown = shell("ledger", "show", "k2")
    assert "model: [bold]n\\x1b[0m" in shown.out
    assert shell("ledger", "show", "k2", "--json").document["optima"][0]["r"] == 8
    for wrong in (("show", "bad"), ("show", "k3"), ("remove", "k1", "k3"), ("remove",)):
        assert shell("ledger", *wrong).code == 2
    assert len(read_ledger(ledger).studies) == 2
    assert "Removed 2 of 3" in shell("ledger", "remove", "k1", "bad").out
    found = read_ledger(ledger)
    assert ([each.key for each in found.studies], found.damaged) == (["k2"], 0)
