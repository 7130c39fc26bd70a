"""The process that does the jobs, one at a time: `python -m api.worker`, which the service starts (api.worker_process).

A process of its own, so that torch neither slows the service's start nor competes with its requests for the
interpreter, and what a job breaks does not take the service down. On stdin comes one line, the settings in JSON; then
nothing, but stdin stays open for as long as the service lives.
"""

import fcntl
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbos import DBOS, PortableWorkflowError
from dbos import error as dbos_errors

from api.errors import kind_of
from api.jobs import APPLICATION, FOLDER, MOST_STARTS, QUEUE, Jobs, Progress, json_serializer, path_of
from api.library import Library
from api.problems import INTERNAL
from api.settings import Settings
from vit.errors import VitfitError

logger = logging.getLogger(__name__)

NICENESS = 10
"""Requests go before jobs where both want a core."""

NOTE_SECONDS = 0.5
"""Between two notes of a stage's progress, which are also when a job finds out that it was cancelled."""

Document = dict[str, Any]
Report = Callable[[str, int, int], None]


def main() -> None:
    settings = Settings(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_service, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: worker: %(message)s")
    os.nice(NICENESS)
    # Names of files are relative to the data folder: what a job reports says nothing about the machine.
    os.chdir(settings.data_dir)
    with _alone(Path(FOLDER)):
        jobs = Jobs(settings.data_dir)
        launch(jobs, Library.of(settings))
        _wait_until_idle(jobs, settings.worker_idle_seconds)
    os._exit(0)  # without waiting for DBOS's threads; nothing is under way


def _end_with_service() -> None:
    """Also kill -9 closes the pipe. Whatever is going on now, the next worker goes on with it."""
    # Not through sys.stdin: who waits there holds its lock, and a process that is forked to load images closes it.
    os.read(0, 1)
    os._exit(0)


def _wait_until_idle(jobs: Jobs, seconds: float) -> None:
    last = time.monotonic()
    while time.monotonic() < last + seconds:
        time.sleep(min(seconds, 5.0))
        if jobs.any_left():
            last = time.monotonic()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other worker does the jobs of this data folder: that of a service killed a moment ago, or another
    service's. The system gives the lock back whatever a process dies of."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def launch(jobs: Jobs, library: Library) -> None:
    """Go on with the job that was interrupted, then with those that wait; returns at once."""

    @DBOS.workflow(name="compress", max_recovery_attempts=MOST_STARTS - 1)
    def compress(document: Document) -> Document:
        job_id = DBOS.workflow_id
        assert job_id is not None
        with _problems_of(job_id):
            from api.compress_steps import STEPS, CompressJob  # loads torch
        made: Document = {}
        for name, step in STEPS.items():
            watch = _Watch(jobs, job_id)

            def run(step: Any = step, watch: Report = watch, made: Document = made) -> Document:
                folder = Path(FOLDER, job_id)
                _sweep(folder)
                with _problems_of(job_id):
                    return dict(step(CompressJob.of(document, library, folder), made, watch))

            made = DBOS.run_step({"name": name}, run)
        return made

    DBOS(
        config={
            "name": APPLICATION,
            "system_database_url": jobs.url,
            "serializer": json_serializer(),
            # Jobs of an earlier vitfit go on, too. DBOS itself refuses one whose steps have other names by now.
            "application_version": "1",
            "log_level": "WARNING",
        }
    )
    DBOS.launch()
    # Counted in this process, and not in the database: a job that was cancelled runs until it finds out.
    DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=0.25)


def _sweep(folder: Path) -> None:
    """Remove what an attempt that was killed left half-written: hidden files and folders."""
    for path in folder.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Watch:
    """Progress of one step, written down now and then; ends the step when its job was cancelled."""

    def __init__(self, jobs: Jobs, job_id: str) -> None:
        self._jobs, self._id = jobs, job_id
        self._stage, self._due = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now < self._due:
            return
        self._stage, self._due = stage, now + NOTE_SECONDS
        if self._jobs.is_cancelled(self._id):
            raise dbos_errors.DBOSWorkflowCancelledError(f"job {self._id} was cancelled")
        self._jobs.note(self._id, Progress(stage, done, total))


@contextmanager
def _problems_of(job_id: str) -> Iterator[None]:
    """Errors leave as what DBOS keeps as JSON, with the problem document that the service shows."""
    try:
        yield
    except Exception as error:
        ours, kind = isinstance(error, VitfitError), kind_of(error)
        if not ours:
            logger.exception("job %s failed", job_id)
        detail = str(error) if ours else INTERNAL.example
        document = kind.document(detail.replace(f"{Path.cwd()}/", ""), path_of(job_id))
        raise PortableWorkflowError(detail, kind.name, kind.status, document) from error  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
