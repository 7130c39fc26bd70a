"""A browser, services to look at, and what holds for every page that a test opens."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.api.pages import CHROMIUM
from tests.browser.service import ROOT, Service, library, running

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
PICTURES = Path(os.environ.get("VITFIT_SCREENSHOTS") or ROOT / "build" / "screenshots")
"""Where pictures of the pages are left, to be looked at."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no chromium; `make test` installs it as root on Debian"))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With tables, saliencies and a model. No job is done."""
    with running(library(tmp_path_factory.mktemp("library")), VITFIT_WORKER="0") as found:
        yield found


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With nothing at all."""
    with running(tmp_path_factory.mktemp("empty"), VITFIT_WORKER="0") as found:
        yield found


PATIENCE_MS = 180_000
"""On a machine that does much else; a page is there in a second or two."""

Open = Callable[..., Any]


class Watched:
    """A page, and all that it should not have done."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        page.on("console", lambda one: self.complaints.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda one: self._requested(one.url, origin))

    def _requested(self, url: str, origin: str) -> None:
        if not url.startswith((f"{origin}/", "data:", "blob:")):
            self.strangers.append(url)


@contextmanager
def watched(browser: Any, origin: str, path: str, *, refused: tuple[int, ...] = (), **context: Any) -> Iterator[Any]:
    """A page that is ready. At its end it asked nobody else, complained of nothing, and fits its screen.

    Args:
        refused: statuses that the page is meant to meet; the browser reports each as an error of its own.
    """
    still = {"reduced_motion": "reduce"}  # or colours are looked at half way between two themes
    size = {"width": 1400, "height": 900}
    options = {"viewport": size, "locale": "en-GB", "timezone_id": "UTC", **still, **context}
    opened = browser.new_context(**options)
    page = opened.new_page()
    page.set_default_timeout(PATIENCE_MS)
    seen = Watched(page, origin)
    page.goto(origin + path)
    page.wait_for_selector("body[data-ready]")
    yield page
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    opened.close()
    assert wide[0] <= wide[1], f"the page scrolls sideways: {wide}"
    assert seen.strangers == []
    meant = tuple(f"status of {status}" for status in refused) + (("net::ERR",) if 0 in refused else ())
    assert [text for text in seen.complaints if not any(words in text for words in meant)] == []


class Late:
    """Holds back the answer to the first request of a page that matches; later ones pass."""

    def __init__(self, page: Any, pattern: str) -> None:
        self.page = page
        self.asked = False
        self.held: Any = None
        page.route(pattern, self._take)

    def _take(self, route: Any) -> None:
        if self.asked:
            route.continue_()
            return
        self.asked = True
        self.held = route, route.fetch()

    def wait(self) -> None:
        """Until the service has answered."""
        for _ in range(PATIENCE_MS // 10):
            if self.held is not None:
                return
            self.page.wait_for_timeout(10)
        raise AssertionError("the page never asked")

    def answer(self) -> None:
        """Long after the page asked something newer; of a request that was given up nothing comes."""
        route, answer = self.held
        route.fulfill(response=answer)
        self.page.wait_for_timeout(500)


@pytest.fixture
def open_page(browser: Any, service: Service) -> Open:
    def open_(path: str, *, on: Service | None = None, **context: Any) -> Any:
        return watched(browser, (on or service).url, path, **context)

    return open_


@pytest.fixture(scope="session")
def violations() -> Callable[[Any], list[str]]:
    """What axe-core finds serious or worse, with contrast in it; [] for a page that everybody can use."""
    source = AXE.read_text(encoding="utf-8")

    def found(page: Any) -> list[str]:
        page.evaluate(f"() => {{ {source}\n}}")
        result = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        return [
            f"{one['id']} ({one['impact']}): {one['help']}: "
            + json.dumps([node["target"] for node in one["nodes"]][:4])
            for one in result["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    return found


LOOKS = {"light": ("light", 1400), "dark": ("dark", 1400), "narrow": ("light", 360), "wide": ("light", 2560)}


def pictures(page: Any, name: str) -> None:
    """The page as it is now in each of LOOKS, as NAME-LOOK.png."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    before = page.viewport_size
    for look, (scheme, width) in LOOKS.items():
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)  # charts follow the size of their place
        page.screenshot(path=str(PICTURES / f"{name}-{look}.png"), full_page=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(before)
    page.wait_for_timeout(300)
