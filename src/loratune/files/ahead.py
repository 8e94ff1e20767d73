"""Modules imported in a thread, before they are needed, while others wait for files or a device."""

import threading
from contextlib import suppress
from importlib import import_module


def import_ahead(*names: str) -> threading.Thread:
    """Begin to import these modules one after the other; one that is missing is reported where it is needed."""

    def load() -> None:
        with suppress(ImportError):
            for name in names:
                import_module(name)

    thread = threading.Thread(target=load, name="import ahead", daemon=True)
    thread.start()
    return thread
