"""Imports in a thread: they are there in the end, and one that is missing hurts nobody."""

import sys

from loratune.files.ahead import import_ahead


def test_modules_are_imported_up_to_one_that_is_missing() -> None:
    sys.modules.pop("xml.dom.expatbuilder", None)
    import_ahead("xml.dom.expatbuilder", "loratune.no_such_module").join(timeout=60)
    assert "xml.dom.expatbuilder" in sys.modules
    assert "loratune.no_such_module" not in sys.modules
