"""The service keeps one worker: another one where it died, none where it had nothing to do."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from api.settings import Settings
from api.worker_process import WorkerProcess

PROGRAM = """
import sys
from pathlib import Path
settings = sys.stdin.readline()
with Path({log!r}).open("a") as log:
    log.write(settings)
{then}
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def starts(tmp_path: Path) -> Callable[[], int]:
    """How often a worker was started; each writes down what it was told."""

    def count() -> int:
        log = tmp_path / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        told = Settings(data_dir=tmp_path).model_dump(mode="json") | {"queue": "cpu"}
        assert set(lines) <= {json.dumps(told)}
        return len(lines)

    return count


def worker(folder: Path, then: str) -> WorkerProcess:
    program = PROGRAM.format(log=str(folder / "log"), then=then)
    return WorkerProcess(Settings(data_dir=folder), (sys.executable, "-c", program))


def test_one_is_kept_however_often_it_is_asked_for_and_ends_with_the_service(tmp_path, starts):
    kept = worker(tmp_path, "sys.stdin.read()")
    for _ in range(3):
        kept.ensure()
    wait_until(lambda: starts() == 1)
    process = kept._process
    assert process is not None
    assert process.poll() is None
    kept.stop()
    assert process.poll() is not None
    kept.ensure()
    assert starts() == 1, "a service that ends starts nothing"


def test_one_that_dies_is_followed_by_another(tmp_path, starts, caplog):
    kept = worker(tmp_path, "sys.exit(3)")
    kept.ensure()
    wait_until(lambda: starts() == 2)
    kept.stop()
    assert "the worker ended with exit status 3; another one starts in 1 s" in caplog.text


def test_one_that_ends_by_itself_is_started_again_when_it_is_asked_for(tmp_path, starts):
    kept = worker(tmp_path, "")
    kept.ensure()
    wait_until(lambda: kept._keeper is None)
    assert starts() == 1
    kept.ensure()
    wait_until(lambda: starts() == 2)
    kept.stop()


def test_one_that_was_asked_for_while_it_ended_is_started_again(tmp_path, starts):
    kept = worker(tmp_path, "import time; time.sleep(0.3)")
    kept.ensure()
    wait_until(lambda: starts() == 1)
    kept.ensure()
    wait_until(lambda: starts() == 2)
    kept.stop()


def test_nothing_happens_to_a_service_without_jobs(tmp_path, starts):
    kept = worker(tmp_path, "")
    kept.stop()
    assert starts() == 0
