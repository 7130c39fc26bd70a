"""A process that takes jobs of one queue, one at a time: `vitfit worker`, and the one that a service starts for itself.

It talks to the database and to a process of its own that does the steps (`api.runner`). This one has no torch: whatever
a step does, it gives signs of life, and within a second or so finds out that a job was cancelled, takes too long, or
belongs to somebody else by now; then it kills the other.

    python -m api.worker    the settings on stdin, which then stays open for as long as the service lives
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from dbos import DBOS
from dbos._dbos import _get_dbos_instance

from api import logs
from api.job_events import Events
from api.job_kinds import KINDS
from api.job_workers import BEAT_SECONDS, Watch, Workers, default_name, hold, new_executor, remove_lock
from api.job_workflow import UNAVAILABLE, workflow_of
from api.jobs import APPLICATION, FOLDER, MOST_STARTS, Jobs, json_serializer, queue_name
from api.runner_process import RunnerProcess
from api.settings import Settings

logger = logging.getLogger(__name__)

LOST_LOOKS = 3
"""A claimed job that was not begun at as many looks, one every BEAT_SECONDS, never will be."""

STOP_SECONDS = 5.0
"""For handing a job back."""


def main() -> None:
    """As the service starts it."""
    given = json.loads(sys.stdin.readline())
    queue = given.pop("queue", "cpu")
    worker = Worker(Settings(**given), queue)
    threading.Thread(target=_end_with_service, args=(worker,), daemon=True).start()
    worker.run(idle=worker.settings.worker_idle_seconds)


def _end_with_service(worker: "Worker") -> None:
    """Also kill -9 closes the pipe."""
    # Not through sys.stdin: who waits there holds its lock, and a process that is forked closes it.
    os.read(0, 1)
    worker.stopping.set()


@dataclass(slots=True)
class Worker:
    """
    Attributes:
        queue: whose jobs it does.
        gpu: number of the GPU that its jobs see; None: all.
        stopping: set to end it: what it does goes on elsewhere.
    """

    settings: Settings
    queue: str = "cpu"
    name: str = field(default_factory=default_name)
    gpu: int | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    jobs: Jobs = field(init=False)
    executor: str = field(init=False)
    runner: RunnerProcess = field(init=False)
    current: str | None = field(init=False, default=None)
    _lost: Counter[str] = field(init=False, default_factory=Counter)

    def __post_init__(self) -> None:
        self.jobs = Jobs.of(self.settings)
        self.executor = new_executor(self.name)
        threads = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": str(self.gpu)}
        self.runner = RunnerProcess(self.settings, threads)

    def run(self, idle: float | None = None) -> NoReturn:
        """Do jobs until told to stop.

        Args:
            idle: seconds without any job after which it ends by itself; None: never.
        """
        logs.configure(self.settings, "worker")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        folder = self.settings.data_dir
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        _lock = hold(folder, self.executor)
        workers = self._entered()
        status = 70
        try:
            self._launch()
            self._until_stopped(workers, Watch(self.settings.worker_dead_seconds, folder), idle)
            status = 0
        except Exception:
            logger.exception("the worker ends")
        self._leave(workers)
        os._exit(status)  # without waiting for DBOS's threads; nothing is under way

    def _entered(self) -> Workers:
        """Its row; waits for a database that is not there yet."""
        while True:
            try:
                workers = Workers(self.jobs.ours())
                workers.enter(self.executor, self.name, self.queue)
                return workers
            except UNAVAILABLE as error:
                logger.warning("waiting for the database: %s", error)
                if self.stopping.wait(BEAT_SECONDS):
                    os._exit(0)

    def _launch(self) -> None:
        """Register what is done for each kind, and begin to take jobs."""
        events = Events(self.jobs.ours())
        for kind in KINDS:
            DBOS.workflow(name=kind, max_recovery_attempts=MOST_STARTS - 1)(workflow_of(kind, self, events))
        DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": self.jobs.url,
                "serializer": json_serializer(),
                "executor_id": self.executor,
                # Jobs of an earlier vitfit go on, too. DBOS itself refuses one whose steps have other names by now.
                "application_version": "1",
                "log_level": "CRITICAL",  # failures are the jobs' own, which carry them
            }
        )
        queue = queue_name(self.queue)
        DBOS.listen_queues([queue])
        DBOS.launch()
        DBOS.register_queue(queue, worker_concurrency=1, polling_interval_sec=0.5)

    def _until_stopped(self, workers: Workers, watch: Watch, idle: float | None) -> None:
        last = time.monotonic()
        look = BEAT_SECONDS if idle is None else min(BEAT_SECONDS, idle)
        while not self.stopping.wait(look):
            try:
                if not workers.beat(self.executor, self.current):
                    logger.error("others took this worker for dead; it ends, and what it did counts no more")
                    self.runner.close()
                    os._exit(75)
                claims = self.jobs.claims()
                self._take_over(claims, workers, watch)
                self._give_back_lost(claims)
                if idle is not None and self.jobs.any_left(self.queue):
                    last = time.monotonic()
            except UNAVAILABLE as error:
                logger.warning("%s", error)
                last = time.monotonic()
            if idle is not None and time.monotonic() > last + idle and self.current is None:
                return

    def _take_over(self, claims: Mapping[str, str], workers: Workers, watch: Watch) -> None:
        """Give the jobs of dead workers back to their queues, for whoever is free."""
        found = workers.all()
        dead = watch.dead(found)
        alive = {one.executor for one in found} - dead
        # A worker has a row before it has a job, and jobs were looked at first: an executor without a row is no more.
        if orphans := set(claims.values()) - alive - {self.executor}:
            logger.warning("taking over from %s", ", ".join(sorted(orphans)))
            DBOS._recover_pending_workflows(sorted(orphans))
        if dead:
            workers.leave(dead)
            for one in dead:
                remove_lock(self.settings.data_dir, one)

    def _give_back_lost(self, claims: Mapping[str, str]) -> None:
        """Jobs that DBOS claimed for this worker and could not begin, for the database went away in between: it forgets
        them (3.4), and since this worker lives nobody would take them over."""
        ours = _get_dbos_instance()
        begun = {self.current, *ours._active_workflows_set.activeList()}
        waiting = {job for job, executor in claims.items() if executor == self.executor} - begun
        self._lost = Counter({job: self._lost[job] + 1 for job in waiting})
        for job in [job for job, looks in self._lost.items() if looks >= LOST_LOOKS]:
            logger.warning("job %s was claimed and never begun; it goes back to its queue", job)
            ours._sys_db.reenqueue_for_recovery(job, [self.executor], queue_name(self.queue))

    def _leave(self, workers: Workers) -> None:
        """Hand the job back: another worker goes on with it after its last whole step, at once."""
        self.stopping.set()
        self.runner.close()
        thread = threading.Thread(target=self._hand_back, args=(workers,), daemon=True)
        thread.start()  # a database that is away must not keep us
        thread.join(STOP_SECONDS)
        remove_lock(self.settings.data_dir, self.executor)

    def _hand_back(self, workers: Workers) -> None:
        try:
            DBOS._recover_pending_workflows([self.executor])
            # Should a job have been taken meanwhile: its executor has no row any more, so others take it over.
            workers.leave([self.executor])
        except Exception as error:
            logger.warning("the job was not handed back, and will be taken over: %s", error)


if __name__ == "__main__":
    main()
