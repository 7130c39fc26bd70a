"""A job as DBOS's workflow: its steps in turn, each done in another process and watched from here.

A step's result is DBOS's from the moment that it has it, and DBOS takes it only from the worker that owns the job. So
whatever dies when, every step is done to its end once; one that was interrupted is begun again, and where its work has
a journal (profile, prune, sparsify, finetune, study), goes on in its middle.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dbos import DBOS, PortableWorkflowError
from dbos import error as dbos_errors

from api.catalogue_values import DatabaseError
from api.db_jobs import files as file_rows
from api.job_events import Events
from api.job_kinds import KINDS
from api.jobs import Jobs, JobsUnavailableError, Progress, path_of
from api.problems import JOB_LOST, JOB_TIMEOUT
from api.runner_process import ENDED, Message

if TYPE_CHECKING:
    from api.worker import Worker

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at whether a running job is still this worker's."""

MOST_CRASHES = 3
"""A step that took the process that did it along this often is not tried again."""

Document = dict[str, Any]
UNAVAILABLE = (JobsUnavailableError, DatabaseError)


def workflow_of(kind: str, worker: "Worker", events: Events) -> Callable[[Document], Document]:
    """What DBOS calls, with what was posted; gives the result with the digests of its files."""

    def workflow(document: Document) -> Document:
        job_id = DBOS.workflow_id
        assert job_id is not None
        job = _Running(job_id, kind, document, worker, events)
        worker.current = job_id
        try:
            job.tell("state", state="running", worker=worker.name)
            return job.done()
        finally:
            worker.current = None

    workflow.__qualname__ = f"workflow_of_{kind}"
    return workflow


@dataclass(slots=True)
class _Running:
    """
    Attributes:
        deadline: by the monotonic clock.
    """

    id: str
    kind: str
    document: Document
    worker: "Worker"
    events: Events
    deadline: float = 0.0

    @property
    def jobs(self) -> Jobs:
        return self.worker.jobs

    @property
    def seconds(self) -> float:
        """That it may work, from when a worker takes it."""
        return self.worker.settings.job_timeouts.get(self.kind, KINDS[self.kind].timeout)

    def done(self) -> Document:
        made: Document = {}
        files: dict[str, str] = {}
        self.deadline = time.monotonic() + self.seconds
        for step in KINDS[self.kind].steps:
            found = DBOS.run_step({"name": step}, partial(self.step, step, made, dict(files)))
            if "made" not in found:  # by an earlier vitfit, whose files are in the folder alone
                made = found
                continue
            made = found["made"]
            files |= found["files"]
        return made | {"digests": files}

    def step(self, step: str, made: Document, files: Mapping[str, str]) -> Document:
        """
        Raises:
            DBOSWorkflowCancelledError, DBOSWorkflowConflictIDError: it is not this worker's to do any more.
            PortableWorkflowError: it failed, with the problem.
        """
        self.tell("step", step=step, state="started")
        began = time.monotonic()
        request = {"job": self.id, "kind": self.kind, "step": step, "document": self.document, "made": made}
        for _ in range(MOST_CRASHES):
            retry_of = self._surely_mine()
            self.worker.runner.ask({**request, "files": dict(files), "retry_of": retry_of})
            if (message := self._follow()) is not ENDED:
                self._remember(message["files"])
                self.tell("step", step=step, state="done", seconds=round(time.monotonic() - began, 1))
                return {"made": message["done"], "files": {name: one[0] for name, one in message["files"].items()}}
            self.tell("log", text=f"the process that did {step} died; it is started again")
        detail = f"the process that did the job died {MOST_CRASHES} times while it did {step}"
        raise self._failed(JOB_LOST.document(detail, path_of(self.id)))

    def _follow(self) -> Message:
        """What the step ended with."""
        runner, look = self.worker.runner, 0.0
        while True:
            message = runner.next(LOOK_SECONDS)
            if self.worker.stopping.is_set():
                self._wait_for_end()
            now = time.monotonic()
            if now > self.deadline:
                runner.kill()
                detail = (
                    f"the job was stopped after {self.seconds:g} seconds of work, the most that {self.kind} may take"
                )
                raise self._failed(JOB_TIMEOUT.document(detail, path_of(self.id)))
            if now >= look:
                look = now + LOOK_SECONDS
                with self._patiently():
                    self._mine()
            if message is None:
                continue
            if "progress" in message:
                with self._patiently():
                    self.jobs.note(self.id, Progress(*message["progress"]))
            elif "log" in message:
                self.tell("log", text=message["log"])
            elif "problem" in message:
                raise self._failed(message["problem"])
            else:
                return message

    def _surely_mine(self) -> str | None:
        """As `_mine`; waits for a database that is away."""
        while True:
            try:
                return self._mine()
            except UNAVAILABLE as error:
                logger.warning("job %s waits: %s", self.id, error)
                if self.worker.stopping.wait(LOOK_SECONDS):
                    self._wait_for_end()

    def _mine(self) -> str | None:
        """Check that it still is this worker's; gives the job that it tries again, if it does.

        Raises:
            DBOSWorkflowCancelledError, DBOSWorkflowConflictIDError: it is not.
        """
        status, executor, retry_of = self.jobs.standing(self.id)
        if status == "PENDING" and executor == self.worker.executor:
            return retry_of
        self.worker.runner.kill()
        if status in ("CANCELLED", ""):
            self.tell("state", state="cancelled")
            raise dbos_errors.DBOSWorkflowCancelledError(f"job {self.id} was cancelled")
        raise dbos_errors.DBOSWorkflowConflictIDError(self.id)

    def _failed(self, document: Document) -> PortableWorkflowError:
        """As DBOS keeps it: in JSON, with the problem document that the service shows."""
        self.tell("state", state="failed", detail=document["detail"])
        name = str(document["type"]).rpartition("/")[2]
        return PortableWorkflowError(document["detail"], name, document["status"], document)

    def _remember(self, files: Mapping[str, Any]) -> None:
        """Which blobs belong to this job. Waits for a database that is away: nothing is lost meanwhile."""
        rows = [{"job": self.id, "name": name, "digest": one[0], "bytes": one[1]} for name, one in files.items()]
        while rows:
            try:
                with self.jobs.ours().writing() as connection:
                    known = {(row.name, row.digest) for row in connection.execute(_rows_of(self.id))}
                    if new := [row for row in rows if (row["name"], row["digest"]) not in known]:
                        connection.execute(file_rows.insert(), new)
                return
            except UNAVAILABLE as error:
                logger.warning("%s", error)
                if self.worker.stopping.wait(LOOK_SECONDS):
                    self._wait_for_end()

    def _wait_for_end(self) -> NoReturn:
        """Until this process has handed the job back, and is gone."""
        threading.Event().wait()
        raise AssertionError

    def tell(self, kind: str, **data: Any) -> None:
        """An event; that one is lost where the database is away hurts nobody."""
        with self._patiently():
            self.events.add(self.id, kind, data)

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        try:
            yield
        except UNAVAILABLE as error:
            logger.warning("job %s goes on without: %s", self.id, error)


def _rows_of(job_id: str) -> Any:
    import sqlalchemy as sa

    return sa.select(file_rows.c.name, file_rows.c.digest).where(file_rows.c.job == job_id)
