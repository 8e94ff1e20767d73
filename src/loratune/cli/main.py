"""The entry point: runs the command line in streams that last; errors become one sentence and an exit code.

Imports little: what a command needs is loaded when it is known which one.
"""

from __future__ import annotations

import os
import sys

from loratune import __version__
from loratune.cli.endings import Received, lasting_streams, stoppable
from loratune.errors import Interrupted, ResourceError, printable


def main() -> None:
    """Entry point: no traceback reaches a user unless LORATUNE_DEBUG is set."""
    with stoppable() as received, lasting_streams() as streams:
        try:
            code = _run(received)
        except KeyboardInterrupt:  # while the last words were said
            code = received.exit_code
    for stream in streams:
        if stream.loss is not None and code == 0:
            _say(
                f"The output could not be written ({stream.loss.strerror}); free some space and run it again."
            )
            code = ResourceError.exit_code
    sys.exit(code)


def _run(received: Received) -> int:
    """The exit code of the command line, an error printed as one sentence."""
    if sys.argv[1:] == ["--version"]:  # in less time than it takes to load the commands
        print(f"loratune {__version__}")
        return 0
    try:
        from loratune.cli.commands import app

        app()  # typer turns its own usage errors into exit code 2 and what interrupts it into 130
    except SystemExit as end:
        interrupted = end.code == Interrupted.exit_code
        return received.exit_code if interrupted else int(end.code or 0)
    except BaseException as error:
        if os.environ.get("LORATUNE_DEBUG"):
            raise
        from loratune.cli.endings import explain

        message, code = explain(error)
        _say(message)
        return code
    return 0


def _say(message: str) -> None:
    print(f"error: {printable(message)}", file=sys.stderr)
