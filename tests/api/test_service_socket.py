"""The service as a user runs it: a process on a port, asked over a socket, stopped by a signal."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.api.factories import TINY, TINY_TARGET, model_ms

ROOT = Path(__file__).parents[2]
START_SECONDS = 30


def first_match(stream: IO[str], pattern: str) -> str:
    for line in stream:
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError(f"the service ended before it said {pattern}")


@pytest.fixture
def service(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running process and its address; the operating system chooses the port."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VITFIT_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", "0", "--no-use-colors"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process, first_match(process.stderr, r"running on (http://127\.0\.0\.1:\d+)")
    finally:
        process.kill()
        process.communicate()


def test_a_process_answers_over_a_socket_and_stops_cleanly_on_sigterm(service):
    process, address = service
    with httpx.Client(base_url=address, timeout=60) as client:
        start = time.monotonic()
        assert client.get("/health/ready").status_code == 200
        assert time.monotonic() - start < START_SECONDS
        body = {"saliency": "tiny", "target": TINY_TARGET.slug, "speedup": 1.2}
        answer = client.post("/v1/architectures/search", json=body)
        assert answer.status_code == 200
        assert answer.json()["full_ms"] == pytest.approx(model_ms(TINY))
        problem = client.get("/v1/targets/nope")
        assert (problem.status_code, problem.headers["content-type"]) == (404, "application/problem+json")

    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=15)
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    assert process.returncode in (0, -signal.SIGTERM), "uvicorn hands the signal on once it has shut down"


def test_chunked_bodies_are_held_to_the_limit_over_a_socket(service):
    _, address = service
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=address, timeout=60) as client:
        large = client.post("/v1/latency/estimate", content=(b" " * 2**16 for _ in range(160)), headers=headers)
        assert large.status_code == 413
        assert large.json()["type"] == "/problems/body-too-large"
        chunks = iter([b'{"embed_dim":', b" 384}"])
        assert client.post("/v1/architectures/redistribute", content=chunks, headers=headers).status_code == 200
