"""`python -m loratune`."""

from loratune.cli.main import main

main()
