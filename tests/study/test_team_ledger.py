"""A team's ledger in a real PostgreSQL: shared, versioned, without passwords or rows, and never in the way."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

import loratune
from command_fixture import Place, Shell
from loratune.costs import measuring
from loratune.errors import InputError
from loratune.study.ledger import LedgerError, read_ledger
from loratune.study.ledgers import keys_of, open_ledger, team_of
from loratune.study.secrets import with_driver
from loratune.study.team_ledger import TeamLedger, owner
from loratune.tuning.configuration import check_named, to_toml
from loratune.tuning.experience import gather, remember
from loratune.tuning.options import PriorOptions, TuneOptions
from loratune.tuning.resumption import resume_command
from loratune.values import Optimum, StudiedTask
from postgresql_fixture import PASSWORD, free_port, server

pytest_plugins = ["command_fixture"]

TASK = StudiedTask(
    dataset="abc", model="m", family="llama", kind="classification", hidden_size=64, parameters_per_rank=600_000,
    rows=100.0, epochs=3.0, supervised_tokens=500, labels=3, needed_rank=4.0, source="ledger",
    optima=(Optimum(r=8, lora_alpha=16, batch_size=16, learning_rate=3e-3, nll=0.2, inside=True),),
)  # fmt: skip


@pytest.fixture(scope="module")
def place_of_server() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.fixture
def url(place_of_server: str, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = request.node.name[:40].lower()
    engine = create_engine(with_driver(f"{place_of_server}postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return f"{place_of_server}{name}"


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = create_engine(with_driver(url))
    with engine.begin() as connection:
        found = connection.execute(text(statement))
        rows = [tuple(row) for row in found] if found.returns_rows else []
    engine.dispose()
    return rows


def test_entries_come_back_with_their_owners(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = TeamLedger(url)
    assert ledger.read().studies == ()
    assert ledger.remove(["k1"]) == 0
    monkeypatch.setenv("LORATUNE_OWNER", "ann")
    ledger.write("k1", "/runs/a", TASK)
    monkeypatch.setenv("LORATUNE_OWNER", "bob")
    ledger.write("k2", "/runs/b", replace(TASK, model="n"))
    ledger.write("k1", "/runs/c", replace(TASK, needed_rank=8.0))
    entries = {entry.key: entry for entry in TeamLedger(url).read().studies}
    assert set(entries) == {"k1", "k2"}
    assert entries["k2"].task == replace(TASK, model="n")
    assert (entries["k1"].directory, entries["k1"].owner, entries["k1"].task.needed_rank) == (
        "/runs/c",
        "bob",
        8,
    )
    assert execute(url, "SELECT key, owner, model, dataset FROM loratune_studies ORDER BY key") == [
        ("k1", "bob", "m", "abc"),
        ("k2", "bob", "n", "abc"),
    ]
    assert ledger.remove(["k1", "k3"]) == 1
    assert [entry.key for entry in ledger.read().studies] == ["k2"]
    monkeypatch.delenv("LORATUNE_OWNER")
    assert "@" in owner()


def test_all_at_once_from_nothing(url: str) -> None:
    """Tables are made once, nothing is lost, and the last of those who write one key stays."""
    start, failures = threading.Barrier(8), list[Exception]()

    def write(number: int) -> None:
        try:
            start.wait()
            for i in range(3):
                TeamLedger(url).write(f"{number}-{i}", "/runs", replace(TASK, rows=float(number)))
            TeamLedger(url).write("same", "/runs", replace(TASK, rows=float(number)))
        except Exception as error:
            failures.append(error)

    hands = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert failures == []
    found = TeamLedger(url).read()
    assert len(found.studies) == 25
    assert found.damaged == 0
    assert execute(url, "SELECT version FROM loratune_ledger") == [(1,)]


def test_what_is_damaged_or_of_another_version_is_left_alone(url: str) -> None:
    ledger = TeamLedger(url)
    ledger.write("k1", "/runs/a", TASK)
    ledger.write("k2", "/runs/b", TASK)
    execute(url, """UPDATE loratune_studies SET task = '{"model": 3}' WHERE key = 'k1'""")
    found = ledger.read()
    assert ([entry.key for entry in found.studies], found.damaged_keys) == (["k2"], ("k1",))
    execute(url, "UPDATE loratune_ledger SET version = 2")
    for use in (ledger.read, lambda: ledger.write("k3", "/runs", TASK), lambda: ledger.remove(["k2"])):
        with pytest.raises(LedgerError, match=r"of another loratune \(version 2, known is 1\)"):
            use()
    assert execute(url, "SELECT count(*) FROM loratune_studies") == [(2,)]


def test_out_of_reach_it_is_a_note_and_ones_own_serves(
    place_of_server: str, place: Place, ledger: Path
) -> None:
    absent = place_of_server.replace(place_of_server.rpartition(":")[2], f"{free_port()}/postgres")
    wrong = f"{place_of_server}postgres".replace("ann:", "bob:")
    for url, reason in (
        (absent, "refused"),
        (wrong, "authentication failed"),
        (f"{place_of_server}none", "none"),
    ):
        options = PriorOptions(model=str(place.model), data=str(place.data), ledger=(url,))
        (note,) = remember(options, reason, Path("run"), TASK)
        assert reason in note
        assert note.endswith("Meanwhile your own ledger is used.")
        found = gather(options)
        assert reason in found.notes[0]
        for said in (note, *found.notes):
            assert "s3cret" not in said
            assert PASSWORD not in said
    kept = {entry.key for entry in read_ledger(ledger).studies}
    assert kept == {"refused", "authentication failed", "none"}


def test_a_study_enters_it_and_the_next_learns_from_it(
    url: str, place: Place, ledger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: Shell
) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.setenv("LORATUNE_OWNER", "ann")
    out = tmp_path / "run"
    loratune.tune(
        **place.keywords, out=out, ledger=[url], strategy="grid", ranks=[2], learning_rates=[3e-3, 1e-2],
        batch_sizes=[8], epochs=1.0, budget="6x",
    )  # fmt: skip
    ((key, whose, model, kept),) = execute(url, "SELECT key, owner, model, task FROM loratune_studies")
    assert (whose, model) == ("ann", str(place.model))
    assert not ledger.exists()
    for line in place.data.read_text().splitlines():
        assert line not in str(kept)
    assert "animal" not in str(kept)
    for file in out.rglob("*"):
        if file.is_file():
            assert b"s3cret" not in file.read_bytes(), file
    monkeypatch.setenv("LORATUNE_LEDGER", url)
    monkeypatch.setenv("COLUMNS", "250")
    found = gather(PriorOptions(model=str(place.model), data=str(place.data)))
    assert [entry.key for entry in found.entries] == [key]
    listed = shell("ledger", "list")
    assert (listed.code, str(key)[:8] in listed.out, "s3cret" in listed.out) == (0, True, False)
    monkeypatch.delenv("LORATUNE_LEDGER")
    document = shell("ledger", "list", "--ledger", url, "--json").document
    assert [(each["key"], each["owner"]) for each in document["studies"]] == [(key, "ann")]
    assert "s3cret" not in document["path"]
    assert f"key: {key}" in shell("ledger", "show", str(key), "--ledger", url).out
    assert shell("ledger", "show", "other", "--ledger", url).code == 2
    removed = shell("ledger", "remove", str(key), "--ledger", url)
    assert (removed.code, removed.out.startswith("Removed 1 of 1")) == (0, True)
    assert TeamLedger(url).read().studies == ()


def test_what_is_no_url(shell: Shell) -> None:
    for url in ("mysql://ann:s3cret@host/db", "sqlite:///x.db"):
        refused = shell("ledger", "list", "--ledger", url)
        assert refused.code == 2
        assert "must be keys or the URL of a PostgreSQL database" in refused.error
        assert "s3cret" not in refused.err
    assert "must be the URL of a team's ledger" in shell("ledger", "list", "--ledger", "abc").error
    with pytest.raises(InputError, match="must name one database at most, got 2"):
        PriorOptions(model="m", data="d", ledger=("postgresql://a/b", "postgresql://a/c"))
    assert team_of(["abc", "postgresql://a/b"]) == "postgresql://a/b"
    assert keys_of(["abc", "postgresql://a/b"]) == ("abc",)
    assert open_ledger().name.endswith("ledger.db")


def test_it_is_not_written_down_and_not_called_by_a_strangers_file(tmp_path: Path) -> None:
    options = TuneOptions(model="m", data="d", out="run", ledger=("abc", "postgresql://ann:s3cret@host/db"))
    toml = to_toml(options)
    assert 'ledger = ["abc"]' in toml
    assert "host" not in toml
    assert resume_command(options).endswith("--resume --ledger 'postgresql://ann:***@host/db'")
    kept = {"ledger": ("postgresql://ann@stranger.example/db",)}
    with pytest.raises(InputError, match="names a team's ledger, which is only called where you name it too"):
        check_named(kept, {}, tmp_path)
    check_named(kept, {"ledger": ("postgresql://mine/db",)}, tmp_path)
