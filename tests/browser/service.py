"""Services that the browser's tests look at: one with a library, jobs and a study, and one with nothing."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from api.network import free_port
from latency.storage import save_table
from latency.target import Target
from search.saliency import Saliency, save_saliency
from tests.api.factories import IMAGENET_GRID, MEASURED, affine_table, fill
from tests.processes import children
from vit.architecture import Architecture
from vit.groups import groups, size
from vit.presets import preset

ROOT = Path(__file__).parents[2]

EVIL = 'it\'s "quoted" <img src=x onerror=alert(1)> \u202eمرحبا'
"""A name with quotes, markup, a direction override and text that runs from right to left."""

SALIENCY, V100, CPU = "deit-t-gates", "v100-eager-amp-b256-n197", "bench-cpu-eager-fp32-b1-n197"


def decaying_saliency(arch: Architecture, seed: int = 0) -> Saliency:
    """Much in few units, as in a model's principal components, so that frontiers look as they do."""
    draw = np.random.default_rng(seed)
    values = {g: np.exp(-6 * np.arange(size(arch, g)) / size(arch, g)) * draw.uniform(0.5, 1.5) for g in groups(arch)}
    return Saliency(arch, values, "gates", "made up for a test", "", 16)


def library(root: Path) -> Path:
    """Tables and saliencies, and names that are hard to show."""
    fill(root)
    save_saliency(decaying_saliency(preset("deit-t")), root / "saliencies" / f"{SALIENCY}.safetensors")
    save_saliency(decaying_saliency(preset("deit-t"), 1), root / "saliencies" / f"{EVIL.replace('/', '_')}.safetensors")
    cpu = affine_table(IMAGENET_GRID, Target("bench-cpu", "eager", "fp32", 1, 197), preset("deit-s"), MEASURED)
    save_table(cpu, root / "tables" / "cpu.parquet")
    (root / "tables" / f"{EVIL.replace('/', '_')}.parquet").write_bytes(b"no table")
    return root


class Service:
    """`vitfit serve` on a data folder, on one port, to be stopped and started again."""

    def __init__(self, folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "VITFIT_SHIPPED_TABLES": "0", **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "api.cli", "serve", "--port", str(self.port), "--data-dir", str(self.folder)]
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=self._environment)
        deadline = time.monotonic() + 180
        while True:
            try:
                if httpx.get(f"{self.url}/health/live", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self._process.poll() is None, (self.folder / "service.log").read_text()
            assert time.monotonic() < deadline, "the service did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
            self._process = None

    def children(self) -> list[int]:
        """Its workers."""
        assert self._process is not None
        return children(self._process.pid)

    def submit(self, **body: object) -> str:
        answer = httpx.post(f"{self.url}/v1/jobs", json=body, timeout=60)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def finished(self, job: str, seconds: float = 240) -> dict[str, object]:
        deadline = time.monotonic() + seconds
        while True:
            found: dict[str, object] = httpx.get(f"{self.url}/v1/jobs/{job}", timeout=60).json()
            if found["state"] in ("done", "failed", "cancelled"):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Service]:
    service = Service(folder, **environment)
    try:
        service.start()
        yield service
    finally:
        service.stop()
