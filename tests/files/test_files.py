"""Files that appear whole or not at all, links that are not followed, text that is not obeyed."""

import os
from io import StringIO
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from loratune.cli.main import explain
from loratune.errors import OutputError, printable
from loratune.files.paths import disk_is_full
from loratune.files.read_json import parse_json
from loratune.files.write import make_folder, new_folder, remove_unfinished, replacing, write_atomically
from loratune.reporting.screen import Screen

EVIL = "a\x1b[31mred\x07\u202e\r"
SHOWN = r"a\x1b[31mred\x07\u202e\r"


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    target = tmp_path / "report.html"
    target.symlink_to(precious)
    write_atomically(target, "ours")
    assert precious.read_text() == "mine"
    assert not target.is_symlink()
    assert target.read_text() == "ours"


def test_what_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("before")

    def stopped_half_way() -> None:
        with replacing(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for content in ("first", "second"):
        with new_folder(target, replace=True) as fresh:
            (fresh / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]

    def stopped_half_way() -> None:
        with new_folder(target, replace=True) as fresh:
            (fresh / "third").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_folder_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(OSError), new_folder(tmp_path / "mine"):  # noqa: PT011 (the system's own)
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


def test_folders_and_those_above_are_synced_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a loss of power takes the folder with all that was synced in it."""
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", sync)
    make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    with new_folder(tmp_path / "a" / "b" / "c") as fresh:
        (fresh / "file").write_text("x")
    assert [Path(each).name for each in synced[2:]] == ["file", fresh.name, "b"]


def test_what_killed_processes_left_is_removed_once_nobody_is_at_it(tmp_path: Path) -> None:
    for name in (".study.db.x.tmp", ".adapter.y.tmp", ".result.json.z.tmp", "mine.tmp"):
        (tmp_path / name).mkdir() if "adapter" in name else (tmp_path / name).write_text("")
        if "result" not in name:
            os.utime(tmp_path / name, (0, 0))
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".result.json.z.tmp", "mine.tmp"]


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("Größe 5 € 猫🐈") == "Größe 5 € 猫🐈"
    assert printable("\udcff") == r"\udcff"


def test_a_screen_obeys_no_text_from_outside() -> None:
    shown = StringIO()
    screen = Screen(file=shown, width=200, force_terminal=True, color_system="standard")
    table = Table()
    table.add_column("x")
    table.add_row(EVIL)
    screen.print(EVIL, markup=False, style="bold")
    screen.print(Text(f"one\n{EVIL}"))
    screen.print(table)
    text = shown.getvalue()
    assert text.count(SHOWN.split("[")[0]) == 3
    assert "\x1b[31m" not in text
    assert "\x1b[1m" in text  # its own styles are obeyed
    assert "one\n" in text


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OutputError("a sentence"), 2, "a sentence"),
        (OSError(28, "No space left on device"), 4, "is full"),
        (MemoryError(), 4, "Memory is used up"),
        (FileNotFoundError(2, "No such file or directory", "x\n"), 2, "'x\\n'"),
        (OSError(36, "File name too long", "x" * 300), 2, "too long"),
        (ZeroDivisionError("by zero"), 1, "Unexpected ZeroDivisionError"),
    ],
)
def test_every_end_is_a_sentence_and_a_code(error: BaseException, code: int, says: str) -> None:
    sentence, found = explain(error)
    assert found == code
    assert says in sentence


def test_a_full_disk_is_known_through_other_errors() -> None:
    error = RuntimeError("the library failed")
    error.__cause__ = OSError(28, "No space left on device")
    assert disk_is_full(error)
    assert disk_is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not disk_is_full(OSError(2, "No such file or directory"))


def test_json_that_was_written_is_read() -> None:
    text = f'{{"a": [1, -2.5, 1e300, true, null], "b": {2**63}, "c": -{2**63}}}'
    assert parse_json(text) == {"a": [1, -2.5, 1e300, True, None], "b": 2**63, "c": -(2**63)}
    assert parse_json(text.encode()) == parse_json(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("9" * 20, "an integer in it has 20 digits"),
        ("[-" + "9" * 5000 + "]", "an integer in it has 5000 digits"),
        ("[" * 100_000, "nested too deep"),
        (b"\xff\xfe\xff", "codec can't decode"),
        ("{", "Expecting"),
    ],
)
def test_damaged_json_is_one_kind_of_error(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)
