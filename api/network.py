"""Our own service in a process of its own, on the loopback interface."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from vit.errors import VitfitError


class ServiceError(VitfitError, RuntimeError):
    """The service did not start; the message names its log."""


def free_port() -> int:
    """A port of the loopback interface on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_service(folder: Path) -> Iterator[str]:
    """`vitfit serve` on a data folder; yields its address once it is ready, stops it at the end. Log: service.log."""
    port = free_port()
    command = [sys.executable, "-m", "api.cli", "serve", "--port", str(port), "--data-dir", str(folder)]
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"the service did not start; see {log}")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)
