"""One thread for all tests: the models are tiny, and a second thread that waits for a busy core costs a time slice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import postgresql
from tests.torch_alone import make_torch_alone


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
