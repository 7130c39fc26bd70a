"""One thread for all tests: the models are tiny, and a second thread that waits for a busy core costs a time slice."""

from pathlib import Path

import pytest
import torch

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
