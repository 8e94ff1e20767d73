"""`python -m loratune`."""

from loratune.cli.main import entry

entry()
