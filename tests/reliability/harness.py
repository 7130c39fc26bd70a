"""Workers as processes of their own on one database, killed with -9 at random, and small real jobs that are judged."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from api.blobs import Blobs
from api.job_inputs import model_path
from api.jobs import FINISHED, Job, Jobs
from api.settings import Settings
from tests.api.factories import DIGITS, save_model

ROOT = Path(__file__).parents[2]

DEAD_SECONDS = 5.0

Document = dict[str, Any]


def make_library(folder: Path) -> Path:
    save_model(DIGITS, folder / model_path("digits"))
    return folder


def small_jobs(count: int) -> list[Document]:
    """Of several kinds, each of seconds at most; the same ones every time. Their results are known from one another:
    jobs that ask the same give the same."""
    kinds = [_saliency, _study, _prune, _export]
    return [kinds[index % len(kinds)](index) for index in range(count)]


def _saliency(index: int) -> Document:
    asked = {"criterion": "gates", "batches": 4, "batch_size": 32}
    return {"kind": "saliency", "model": "digits", "data": "digits", **asked, "save_as": f"saliency-{index}"}


def _study(index: int) -> Document:
    space = {"embed_dim": {"from": 104, "to": 256, "step": 8}}
    study = {"study": f"shapes-{index}", "make": "redistribute", "target": "macs", "space": space, "trials": 40}
    return {"kind": "study", "study": {**study, "objectives": ["latency_ms", "params"], "sampler": "random"}}


def _prune(index: int) -> Document:
    asked = {"target": "macs", "speedup": 1.5, "rounds": 3, "interval": 2, "batches": 2}
    return {"kind": "prune", "model": "digits", "data": "digits", **asked, "save_as": f"pruned-{index}"}


def _export(index: int) -> Document:
    return {"kind": "export", "model": "digits", "format": "standalone"}


@dataclass
class Cluster:
    """
    Attributes:
        folder: data folder of all workers: one machine.
        processes: that live, as far as is known.
    """

    folder: Path
    database_url: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0

    @property
    def settings(self) -> Settings:
        return Settings(data_dir=self.folder, database_url=self.database_url, worker_dead_seconds=DEAD_SECONDS)

    @property
    def environment(self) -> dict[str, str]:
        given = {
            "PYTHONPATH": str(ROOT),
            "VITFIT_DATA_DIR": str(self.folder),
            "VITFIT_DATABASE_URL": self.database_url,
            "VITFIT_WORKER_DEAD_SECONDS": str(DEAD_SECONDS),
            "OMP_NUM_THREADS": "1",
        }
        return {**os.environ, **given}

    def start_worker(self, *options: str) -> subprocess.Popen[bytes]:
        self.started += 1
        command = [sys.executable, "-m", "api.cli", "worker", "--name", f"w{self.started}", *options]
        log = (self.folder / f"worker-{self.started}.log").open("wb")
        process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        log.close()
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        process.send_signal(number)
        process.wait()
        self.processes.remove(process)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    def close(self) -> None:
        for process in list(self.processes):
            if process.poll() is None:
                self.kill(process)


@contextmanager
def cluster(folder: Path, database_url: str = "") -> Iterator[Cluster]:
    found = Cluster(make_library(folder), database_url)
    try:
        yield found
    finally:
        found.close()


def submit_all(jobs: Jobs, documents: Sequence[Document]) -> list[str]:
    return [jobs.submit(document["kind"], document).id for document in documents]


def wait_for(jobs: Jobs, ids: Sequence[str], seconds: float) -> list[Job]:
    """The jobs, once all have ended; as they are where that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        found = jobs.some(ids)
        if all(job.state in FINISHED for job in found) or time.monotonic() > deadline:
            return sorted(found, key=lambda job: job.id)
        time.sleep(0.3)


def kill_at_random(running: Cluster, jobs: Jobs, ids: Sequence[str], kills: int, workers: int, seed: int) -> int:
    """Kill -9 workers one after the other, each time that one has had a moment to work, and start others in their
    place; gives how many were killed before all jobs had ended."""
    dice = random.Random(seed)
    killed = 0
    while killed < kills:
        time.sleep(dice.uniform(1.5, 6.0))
        if all(job.state in FINISHED for job in jobs.some(ids)):
            break
        if busy := [process for process in running.processes if process.poll() is None]:
            running.kill(dice.choice(busy))
            killed += 1
        while len([one for one in running.processes if one.poll() is None]) < workers:
            running.start_worker()
    return killed


def faults(found: Sequence[Job], documents: Sequence[Document], folder: Path) -> list[str]:
    """What is not as it has to be: a job that did not end well, or not with what the others of its kind got."""
    wrong = [
        f"{job.id} {job.kind} is {job.state}: {(job.problem or {}).get('detail')}"
        for job in found
        if job.state != "done"
    ]
    same: dict[str, set[str]] = {}
    for job, document in zip(found, documents, strict=True):
        if job.state != "done":
            continue
        assert job.result is not None
        if job.kind == "study":
            ended = sum(job.result["states"][state] for state in ("complete", "failed"))
            if ended != document["study"]["trials"]:
                wrong.append(f"{job.id}: {ended} trials instead of {document['study']['trials']}")
            continue
        same.setdefault(job.kind, set()).add(json.dumps(_content(job, folder), sort_keys=True))
        name = document.get("save_as")
        place = {"saliency": "saliencies", "prune": "models"}.get(job.kind)
        if name and place and not (folder / place / f"{name}.safetensors").is_file():
            wrong.append(f"{job.id}: {name} is not in the library")
    wrong += [f"jobs of kind {kind} got {len(results)} results" for kind, results in same.items() if len(results) > 1]
    return wrong


def _content(job: Job, folder: Path) -> Document:
    """What jobs that asked for the same have in common: their results, and the tensors of their files."""
    assert job.result is not None
    tensors = {name: _tensors(folder, digest) for name, digest in job.digests.items() if name.endswith(".safetensors")}
    drop = ("difference",)  # of an export: rounding, by the load of the machine
    return {name: value for name, value in job.result.items() if name not in drop} | {"tensors": tensors}


def _tensors(folder: Path, digest: str) -> str:
    """A file of tensors has its metadata in any order; this is a digest of the tensors alone."""
    found = hashlib.sha256()
    for name, array in sorted(load_file(Blobs.of(Settings(data_dir=folder)).local(digest)).items()):
        found.update(name.encode() + array.tobytes())
    return found.hexdigest()
