"""The live page: who may read and stop, what is refused, and the page in a real browser while a search goes on."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from browser import WIDTHS, opened
from command_fixture import Place, Shell
from loratune.app.live_page import watch
from loratune.app.page_server import PageServer
from loratune.app.tune import CLOCK_CUT, run_tune
from loratune.costs import measuring
from loratune.files.lock import FolderLock, is_asked_to_stop
from loratune.study.events import FILE, EventLog
from loratune.tuning.options import TuneOptions
from loratune.values.events import Finished, Note, Phase, PhaseBegan, StageBegan, Started

pytest_plugins = ["browser", "command_fixture"]


@contextmanager
def served(*directories: Path) -> Iterator[PageServer]:
    with watch(list(directories), port=0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A search that goes on, as far as files tell."""
    directory = tmp_path / "run"
    with FolderLock(directory) as lock, EventLog() as log:
        lock.acquire()
        log.open(directory)
        log(Started(command="tune", model="<img src=x onerror=alert(1)>", data="d", directory=str(directory)))
        log(Note(text="<script>alert(1)</script>"))
        log(PhaseBegan(phase=Phase.SEARCHING))
        log(StageBegan(name="rank and learning rate", trials=9))
        yield directory


def asked(server: PageServer, method: str, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """With the key and the right host, unless `headers` say otherwise."""
    own = {"Host": server.hosts[0], "X-Loratune-Token": server.token}
    given = own | {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers={name: value for name, value in given.items() if value})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, dict(answer.headers)


FOREIGN = {
    "no key": {"X_Loratune_Token": ""},
    "a wrong key": {"X_Loratune_Token": "é" * 32},
    "a name that leads here": {"Host": "rebound.example:80"},
    "a page elsewhere": {"Origin": "http://elsewhere.example"},
    "a sandboxed page": {"Origin": "null"},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_from_outside_nothing_is_read_or_written(run: Path, case: str) -> None:
    with served(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        for method, path in (("GET", "/api/runs"), ("POST", "/api/runs/0/stop")):
            status, body, headers = asked(server, method, path, **FOREIGN[case])
            assert status == 403
            assert "run" not in body
            assert "Access-Control-Allow-Origin" not in headers
        assert asked(server, "GET", "/runs/0/report.html?token=wrong", **FOREIGN[case])[0] == 403
    assert not is_asked_to_stop(run)


def test_stop_is_one_file_and_only_where_a_search_goes_on(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    with served(run) as server:
        state = json.loads(asked(server, "GET", "/api/runs")[1])["runs"][0]
        assert (state["status"], state["can_stop"]) == ("running", True)
        assert asked(server, "POST", "/api/runs/1/stop")[0] == 404
        assert asked(server, "POST", "/api/runs/0/stop", Origin=f"http://{server.hosts[1]}")[0] == 200
        assert {path.name for path in run.iterdir()} == before | {"stop"}
        state = json.loads(asked(server, "GET", "/api/runs")[1])["runs"][0]
        assert (state["stopping"], state["can_stop"]) == (True, False)
        with EventLog() as log:
            log.open(run)
            log(Finished(directory=str(run), seconds=5.0, cut=True, stopped=True))
        assert asked(server, "POST", "/api/runs/0/stop")[0] == 409


def test_a_run_that_was_killed_has_ended(tmp_path: Path) -> None:
    with EventLog() as log:
        log.open(tmp_path)
        log(Started(command="tune", model="m", data="d"))
    with served(tmp_path) as server:
        (state,) = json.loads(asked(server, "GET", "/api/runs")[1])["runs"]
        assert state["status"].startswith("ended without a result")
        assert state["over"]
        assert asked(server, "POST", "/api/runs/0/stop")[0] == 409


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../watch.py",
        "/runs/0/../report.html",
        "/runs/x/report.html",
        "/runs/%C2%B2/report.html",
        "/runs/-1/report.html",
    ],
)
def test_no_path_leads_out(run: Path, path: str) -> None:
    with served(run) as server:
        assert asked(server, "GET", path)[0] in (403, 404)
        status, _, headers = asked(server, "GET", "/")
        assert status == 200
        assert "'unsafe" not in headers["Content-Security-Policy"]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_refusals_are_one_sentence(run: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = shell("watch", tmp_path / "empty")
    assert refused.code == 2
    assert FILE in refused.error
    with served(run) as server:
        refused = shell("watch", run, "--port", str(server.server_port))
        assert refused.code == 2
        assert "--port must be free" in refused.error
    assert shell("watch", run, "--port", "70000").code == 2


@pytest.mark.parametrize(("width", "scheme"), [(WIDTHS[0], "dark"), (WIDTHS[1], "light")])
def test_outside_text_is_text(run: Path, chromium: Any, width: int, scheme: str) -> None:
    with served(run) as server, opened(chromium, server.address, width=width, scheme=scheme) as (page, seen):
        page.wait_for_selector("article")
        assert "<img src=x" in page.locator("article").inner_text()
        assert page.locator("article img, article script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.wait_for_timeout(200)
        assert seen.errors == []
        assert all(
            each.startswith(f"http://{server.hosts[0]}/") or each == "data:," for each in seen.requests
        )


def test_the_stop_button_ends_a_real_search(
    place: Place, tmp_path: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves are drawn while it goes on; after the click it ends with a result, and the page tells its verdict."""
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    out = tmp_path / "run"
    options = TuneOptions(
        model=str(place.model), data=str(place.data), out=str(out), dtype="float32", device="cpu",
        ranks=(2, 8), budget="200x", epochs=4.0, pack_size=2,
    )  # fmt: skip
    codes: list[int] = []
    search = Thread(target=lambda: codes.append(run_tune(options)[1]), daemon=True)
    search.start()
    while search.is_alive() and not (out / FILE).exists():
        search.join(0.2)
    with served(out) as server, opened(chromium, server.address, width=1280) as (page, seen):
        page.wait_for_selector("[data-plot=curves] polyline", timeout=120_000)
        page.wait_for_selector("[data-plot=lanes] rect", timeout=120_000)
        button = page.get_by_role("button")
        button.click()
        button.click()
        search.join(240)
        assert codes == [CLOCK_CUT]
        page.wait_for_selector(".verdict", timeout=60_000)
        assert page.locator("[data-text=status]").inner_text() == "finished"
        assert "stopped by request" in page.locator("article").inner_text()
        assert page.locator("polyline.best").count() == 1
        assert button.count() == 0
        assert seen.errors == []
    assert (out / "adapter" / "adapter_model.safetensors").exists()
