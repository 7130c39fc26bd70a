"""One thread for all tests: the models are tiny, and a second thread that waits for a busy core costs a time slice."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadFileScheduling

from tests import postgresql
from tests.api.pages import CHROMIUM
from tests.torch_alone import make_torch_alone


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """The tests of a file share what its fixtures started, so one process runs them all; benchmarks share nothing."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "test_benchmarks.py" in nodeid else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What failed is told at once: a run that is killed never comes to its summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} failed in its {report.when}:\n{report.longreprtext[-4000:]}", flush=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, one at a time: while Playwright runs in a thread, it cannot be started there again, nor can
    another event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has torch and its requirements alone."""
    return make_torch_alone(tmp_path_factory.mktemp("torch-alone"))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    if not postgresql.PROGRAMS:
        pytest.skip(postgresql.MISSING)
    with postgresql.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind, as the setting has it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite'}"
        return
    with postgresql.database(request.getfixturevalue("postgresql_server")) as url:
        yield url
