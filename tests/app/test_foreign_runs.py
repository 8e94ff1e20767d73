"""Run folders that come from elsewhere: commands that read one change nothing in it, and what writes stays inside."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import loratune
from command_fixture import Place, Shell
from loratune.app.export import export
from loratune.app.live_page import watch
from loratune.costs import measuring
from loratune.errors import OutputError
from loratune.files.paths import check_own

pytest_plugins = ["command_fixture"]


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SECONDS", 0.05)
        loratune.tune(
            **place.keywords, ranks=[2], epochs=1, budget="6x", strategy="random", no_ledger=True, out=out
        )
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder with permissions, time and content."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        facts = path.lstat()
        found[str(path)] = (
            facts.st_mode,
            facts.st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
    return found


READERS: dict[str, Callable[[Path, Place, Path], tuple[str | Path, ...]]] = {
    "report as Markdown": lambda run, place, out: ("report", run, "--format", "markdown"),
    "report as JSON": lambda run, place, out: ("report", run, "--format", "json"),
    "--from-study": lambda run, place, out: (
        *("plan", *place.options, "--no-ledger", "--budget", "6x"),
        *("--from-study", run),
    ),
    "--config": lambda run, place, out: ("plan", "--config", run / "loratune.toml"),
    "export": lambda run, place, out: ("export", run, "--to", "trl", "--out", out),
    "generate": lambda run, place, out: ("generate", run, "meow 1", "--max-new-tokens", "2"),
    "merge": lambda run, place, out: ("merge", run, "--out", out),
}


@pytest.mark.parametrize("case", READERS)
def test_a_reader_changes_nothing(case: str, run: Path, place: Place, shell: Shell, tmp_path: Path) -> None:
    before = state(run)
    ran = shell(*READERS[case](run, place, tmp_path / "elsewhere"))
    assert ran.code == 0, ran.err
    assert state(run) == before


def test_report_writes_its_page_alone(run: Path, shell: Shell) -> None:
    (run / "report.html").unlink()
    before = state(run)
    assert shell("report", run).code == 0
    after = state(run)
    assert set(after) - set(before) == {str(run / "report.html")}
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {str(run)}  # a name more


def test_watching_changes_nothing(run: Path) -> None:
    before = state(run)
    with watch([run], port=0) as server:
        for each in server.runs:
            assert each.state()["verdict"]
    assert state(run) == before


@pytest.mark.parametrize("storage", ["sqlite:///{}/new/all.db", "journal:///{}/new/all.log"])
def test_a_storage_that_a_folder_names_is_not_made(
    storage: str, run: Path, shell: Shell, tmp_path: Path
) -> None:
    """As older versions did: tables in whatever file the foreign folder named."""
    (run / "study.db").unlink()
    toml = run / "loratune.toml"
    toml.write_text(f"{toml.read_text()}storage = {json.dumps(storage.format(tmp_path))}\n")
    before = state(tmp_path)
    assert shell("report", run).code == 2
    assert state(tmp_path / "run") == {
        path: each for path, each in before.items() if path.startswith(str(run))
    }
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["trials", "study.db", ".lock", "adapter"])
def test_a_link_to_elsewhere_is_not_written_through(
    name: str, run: Path, place: Place, tmp_path: Path
) -> None:
    """To go on with a run would put trials, rows and adapters where the folder's maker has them point."""
    outside = tmp_path / "outside"
    if (run / name).exists():
        (run / name).rename(outside)
    else:
        outside.write_text("precious")
    (run / name).symlink_to(outside)
    before = state(tmp_path)
    with pytest.raises(OutputError, match="is a link to elsewhere"):
        loratune.resume(run, budget="7x")
    assert state(tmp_path) == before


def test_an_export_stays_inside(run: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (run / "export").symlink_to(tmp_path / "outside")
    with pytest.raises(OutputError, match="is a link to elsewhere"):
        export(run, to="peft")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_name_is_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "red\x1b[31m"
    folder.mkdir()
    (folder / "trials").symlink_to(tmp_path)
    with pytest.raises(OutputError) as caught:
        check_own(folder)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("adapter_config.json", lambda text: text[: len(text) // 2], "must be what tune or train wrote"),
        ("adapter_config.json", lambda text: b"{}", "must be what tune or train wrote"),
        ("adapter_model.safetensors", lambda text: text[:-9], "must be what tune or train wrote"),
        ("adapter_model.safetensors", None, "must hold adapter/adapter_model.safetensors, but does not"),
    ],
)
def test_an_adapter_that_is_damaged_is_no_other_model(
    file: str, damage: Callable[[bytes], bytes] | None, says: str, run: Path, shell: Shell
) -> None:
    path = run / "adapter" / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    for command in (("export", run, "--to", "peft"), ("generate", run, "x"), ("merge", run, "--out", "m")):
        ran = shell(*command)
        assert ran.code == 2
        assert says in ran.error
        assert "--model" not in ran.error
    assert not shell.written


def test_a_lost_answer_is_made_again(run: Path) -> None:
    """From the study: its trials are not trained again."""
    before = json.loads((run / "result.json").read_text())
    for lose in (
        lambda: shutil.rmtree(run / "adapter"),
        lambda: (run / "result.json").write_bytes(b'{"schema": 1, "recomm'),
    ):
        lose()
        loratune.resume(run)
        after = json.loads((run / "result.json").read_text())
        for name in ("recommended", "metrics", "evidence", "stages"):
            assert after[name] == before[name]
        assert after["cost"]["trials"] == before["cost"]["trials"]
        assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_trials_that_are_lost_are_not_passed_over_in_silence(run: Path, shell: Shell) -> None:
    shutil.rmtree(run / "trials")
    for form in ("html", "json"):
        ran = shell("report", run, "--format", form)
        assert ran.code == 0
        assert "trials cannot be read, as their files" in " ".join(ran.err.split())


def test_a_run_that_was_moved_says_where_it_is(run: Path, shell: Shell) -> None:
    moved = run.rename(run.parent / "moved")
    assert f"loratune generate {moved}" in " ".join(shell("report", moved).out.split())


def test_a_finished_run_is_finished_without_its_events(run: Path) -> None:
    (run / "events.jsonl").write_bytes(b"")
    with watch([run], port=0) as server:
        (state,) = [each.state() for each in server.runs]
    assert (state["status"], state["report"]) == ("finished", True)
    assert state["verdict"]


def test_a_link_to_itself_is_no_run(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "needs the run directory of a tune" in shell("watch", tmp_path / "loop").error
    for command in (
        ("report", tmp_path / "loop"),
        ("tune", tmp_path / "loop", "--resume", "--out", tmp_path),
    ):
        assert shell(*command).code == 2
