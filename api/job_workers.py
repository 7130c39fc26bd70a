"""Which workers live, and whose jobs are free to be taken over.

A worker is one process with a name of its own, never used again. It writes a number into its row that grows every few
seconds. Another worker takes it for dead when it saw that number stand still for `worker_dead_seconds` of its own
time: no clock is compared with another machine's, and one that is set back changes nothing. On one machine it need
not wait: each worker holds a lock on a file in the data folder, which the system gives back whatever it dies of.

One that was only paused, and taken for dead, finds its row gone and ends. What it may have finished meanwhile counts
for nothing: DBOS takes a step's result from the worker that owns the job, and it owns none any more.
"""

import fcntl
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import sqlalchemy as sa

from api.db import Database
from api.db_jobs import workers
from api.job_events import now

BEAT_SECONDS = 2.0

LOCKS = Path("jobs", ".workers")
"""Relative to the data folder; a lock file for each worker of this machine."""


@dataclass(frozen=True, slots=True)
class Worker:
    """
    Attributes:
        executor: unique, and DBOS's name for the process.
        beat: grows while it lives.
        job: that it does now.
    """

    executor: str
    name: str
    host: str
    queue: str
    job: str | None
    beat: int
    beat_at: str
    started_at: str


class Workers:
    """The rows. Methods may be called from many threads.

    Raises:
        DatabaseError: from every method.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Worker]:
        with self._database.reading() as connection:
            return [Worker(**row._mapping) for row in connection.execute(sa.select(workers))]

    def enter(self, executor: str, name: str, queue: str) -> None:
        row = {"executor": executor, "name": name, "host": socket.gethostname(), "queue": queue, "beat": 0}
        with self._database.writing() as connection:
            connection.execute(workers.insert(), row | {"beat_at": now(), "started_at": now()})

    def beat(self, executor: str, job: str | None) -> bool:
        """Whether the row is still there: without it, others took this worker for dead."""
        change = {"beat": workers.c.beat + 1, "beat_at": now(), "job": job}
        with self._database.writing() as connection:
            done = connection.execute(workers.update().where(workers.c.executor == executor).values(change))
            return bool(done.rowcount)

    def leave(self, executors: Collection[str]) -> None:
        with self._database.writing() as connection:
            connection.execute(workers.delete().where(workers.c.executor.in_(executors)))


@dataclass(slots=True)
class _Seen:
    beat: int
    still: float = 0.0


@dataclass(slots=True)
class Watch:
    """One worker's view of the others.

    Attributes:
        dead_after: seconds of standing still.
        folder: data folder, for the lock files of this machine.
    """

    dead_after: float
    folder: Path
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _looked: float | None = None

    def dead(self, found: Collection[Worker]) -> set[str]:
        """Of these, as the database has them now, those that are dead; to be called every `BEAT_SECONDS`."""
        at = self.clock()
        # Time in which nobody looked, for the database was away or this process stood still, counts for nobody.
        passed = 0.0 if self._looked is None else min(at - self._looked, 2 * BEAT_SECONDS)
        self._looked = at
        self._seen = {one.executor: self._seen.get(one.executor, _Seen(one.beat)) for one in found}
        gone = set()
        for one in found:
            seen = self._seen[one.executor]
            seen.still = 0.0 if seen.beat != one.beat else seen.still + passed
            seen.beat = one.beat
            if seen.still >= self.dead_after or let_go(self.folder, one.executor):
                gone.add(one.executor)
        return gone


def new_executor(name: str) -> str:
    """A name that no other process had or will have."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)[:60]}-{secrets.token_hex(8)}"


def hold(folder: Path, executor: str) -> TextIO:
    """Take this worker's lock; it stays taken while the file is open, that is for as long as the process lives."""
    path = folder / LOCKS / executor
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def let_go(folder: Path, executor: str) -> bool:
    """Whether a worker of this machine is gone: its lock is there, and nobody holds it. Of others nothing is known."""
    path = folder / LOCKS / executor
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_lock(folder: Path, executor: str) -> None:
    (folder / LOCKS / executor).unlink(missing_ok=True)


def default_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"
