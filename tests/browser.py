"""A real Chromium, where one is installed: pages as people get them. `pytest_plugins` brings the fixture."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (390, 1280)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """playwright's browser over the system's Chromium, else over its own."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'loratune[dev]'")
    path = next((found for name in NAMES if (found := which(name))), None)
    with api.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium here: install the package chromium ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


class Seen:
    """What a page did while it was open."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []


@contextmanager
def opened(
    browser: Any, address: str | Path, *, width: int, scheme: str = "light"
) -> Iterator[tuple[Any, Seen]]:
    """The page at that width, and what it logs, breaks and asks for beside itself."""
    address = f"file://{address}" if isinstance(address, Path) else address
    seen = Seen()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url) if request.url != address else None)
    page.goto(address)
    try:
        yield page, seen
    finally:
        page.close()
