"""Serves the live page on loopback: files of its own, the runs as JSON, and a request to a run to stop.

Whoever asks must name this host and, but for the page's own files, bring the key that was made for this start: a
page elsewhere can do neither, whatever names it lets its own host have. Nothing that a request says becomes a path.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from json import dumps
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

HOST = "127.0.0.1"
_OWN = {
    "/": ("watch.html", "text/html"),
    "/watch.css": ("watch.css", "text/css"),
    "/report.css": ("report.css", "text/css"),
    "/watch.js": ("watch.js", "text/javascript"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALONE = "sandbox allow-scripts; frame-ancestors 'none'"
"""The policy of a report, whose own page says what it may do: it has nothing in common with this one."""


class Run(Protocol):
    """What is shown."""

    @property
    def report(self) -> Path: ...

    def state(self) -> dict[str, Any]: ...

    def stop(self) -> bool: ...


class PageServer(ThreadingHTTPServer):
    """A thread for each request, none of which outlives the process."""

    daemon_threads = True

    def __init__(
        self, runs: Sequence[Run], heads: Mapping[str, Sequence[str]], *, port: int, token: str
    ) -> None:
        """Raises `OSError` where the port is taken."""
        self.runs, self.heads, self.token = runs, heads, token
        templates = files("loratune.reporting") / "templates"
        self.own = {path: (templates / name).read_bytes() for path, (name, _) in _OWN.items()}
        super().__init__((HOST, port), _Handler)

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser on this machine calls it."""
        return tuple(f"{name}:{self.server_port}" for name in (HOST, "localhost"))

    @property
    def address(self) -> str:
        """The page's address; the key stands behind `#`, which a browser sends nowhere."""
        return f"http://{self.hosts[0]}/#{self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "loratune", ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the terminal is the user's."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if not self._from_here():
            return
        if address.path in _OWN:
            self._send(self.server.own[address.path], _OWN[address.path][1])
        elif address.path == "/api/runs":
            if self._has_key(self.headers.get("X-Loratune-Token", "")):
                document = {"heads": self.server.heads, "runs": [run.state() for run in self.server.runs]}
                self._send(dumps(document).encode(), "application/json")
        elif (run := self._run(address.path, "/runs/", "/report.html")) is not None:
            if self._has_key(parse_qs(address.query).get("token", [""])[0]):
                self._report(run)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def do_POST(self) -> None:
        self.close_connection = True  # whatever body comes is not read
        if not self._from_here():
            return
        run = self._run(urlsplit(self.path).path, "/api/runs/", "/stop")
        if run is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such run.")
        elif self._has_key(self.headers.get("X-Loratune-Token", "")):
            self._stop(run)

    def _stop(self, run: Run) -> None:
        try:
            stopped = run.stop()
        except OSError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"The run cannot be read: {error.strerror}.")
            return
        if stopped:
            self._send(b"{}", "application/json")
        else:
            self._refuse(HTTPStatus.CONFLICT, "No search is running there.")

    def _report(self, run: Run) -> None:
        try:
            self._send(run.report.read_bytes(), "text/html", policy=_ALONE)
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no report yet.")

    def _run(self, path: str, before: str, after: str) -> Run | None:
        """The run whose number stands between the two."""
        number = path.removeprefix(before).removesuffix(after)
        if path != f"{before}{number}{after}" or not (number.isascii() and number.isdigit()):
            return None
        runs = self.server.runs
        return runs[int(number)] if len(number) < 5 and int(number) < len(runs) else None

    def _from_here(self) -> bool:
        """Whether it names this host; a page elsewhere whose name leads here names its own."""
        origin = self.headers.get("Origin")
        hosts = self.server.hosts
        if self.headers.get("Host") in hosts and origin in (None, *(f"http://{host}" for host in hosts)):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "This page is for this machine alone.")
        return False

    def _has_key(self, given: str) -> bool:
        if compare_digest(given.encode(), self.server.token.encode()):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "The key in the address that watch printed is missing.")
        return False

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(sentence.encode(), "text/plain", status=status)

    def _send(
        self, body: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, policy: str = _POLICY
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
