"""Pages read as users read them, in Debian's chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")


def in_a_browser(test):
    """A test of one page, light and dark, on a phone and on a desk."""
    for mark in (
        pytest.mark.parametrize("scheme", ["light", "dark"]),
        pytest.mark.parametrize("width", [400, 1400]),
        pytest.mark.skipif(CHROMIUM is None, reason="no chromium; `make test` installs it when run as root on Debian"),
        pytest.mark.browser,
    ):
        test = mark(test)
    return test


@contextmanager
def opened(browser: Any, path: Path, scheme: str, width: int) -> Iterator[Any]:
    """A page; at the end it has asked for nothing outside itself, complained of nothing, and fits the screen."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else problems.append(request.url))
    try:
        page.goto(path.as_uri())
        yield page
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert problems == []
    finally:
        page.close()


def assert_drawn(page: Any, *charts: str) -> None:
    for chart in charts:
        assert page.locator(f"#{chart} svg").count() == 1
        assert page.locator(f"#{chart} svg path").count() > 5
