"""A PostgreSQL server on loopback for the tests of one session, from Debian's package or any other on the path.

Where there is none its tests are skipped; where LORATUNE_REQUIRE_POSTGRESQL is set, as in CI, they fail.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest

PASSWORD = "s3cret/ü@?"
"""Of the server's user: with what must be percent-encoded in a URL."""


def programs() -> Path | None:
    """The folder of initdb and postgres; the newest of Debian's, which are not on the path."""
    found = shutil.which("initdb")
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: int(each.parts[-3]), reverse=True
    )
    return Path(found).resolve().parent if found else debian[0].parent if debian else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server() -> Iterator[str]:
    """A new, empty server; gives `postgresql://ann:...@127.0.0.1:PORT/`, to be followed by `postgres`."""
    binaries = programs()
    if binaries is None:
        reason = "no PostgreSQL server here: apt-get install postgresql"
        if os.environ.get("LORATUNE_REQUIRE_POSTGRESQL"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(mkdtemp(prefix="loratune-postgresql-"))
    owner = None
    if os.getuid() == 0:  # a server refuses to run as root
        owner = "nobody"
        shutil.chown(folder, owner)
    secret, place, port = folder / "secret", folder / "data", free_port()
    secret.write_text(PASSWORD)
    secret.chmod(0o444)
    initdb = ["initdb", "-D", place, "-U", "ann", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8"]
    _run(binaries, [*initdb, "--locale=C", "--no-sync"], owner)
    settings = f"-h 127.0.0.1 -p {port} -F -k {folder}"
    start = ["pg_ctl", "-D", place, "-l", folder / "log", "-w", "-o", settings, "start"]
    try:
        _run(binaries, start, owner)
        yield f"postgresql://ann:s3cret%2F%C3%BC%40%3F@127.0.0.1:{port}/"
    finally:
        _run(binaries, ["pg_ctl", "-D", place, "-m", "immediate", "-w", "stop"], owner)
        shutil.rmtree(folder, ignore_errors=True)


def _run(binaries: Path, command: list[str | Path], owner: str | None) -> None:
    program, *rest = map(str, command)
    subprocess.run(
        [str(binaries / program), *rest],
        check=True,
        user=owner,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
