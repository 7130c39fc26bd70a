"""Jobs: work that takes longer than a request. The service takes them on, a worker process does them one at a time.

    data_dir/jobs.sqlite     every job: what was asked, its state, progress, and its result or problem
    data_dir/jobs/<id>/      the files that it makes

A job is a DBOS workflow and the database is DBOS's: it survives kill -9 of everything. This file is how the service and
the worker read and write it. DBOS is loaded when somebody asks for a job, for it takes longer than the service itself.
"""

import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from api.problems import INTERNAL, JOB_LOST
from vit.errors import VitfitError

if TYPE_CHECKING:
    from dbos import DBOSClient, WorkflowStatus

APPLICATION, QUEUE = "vitfit", "jobs"
FOLDER, DATABASE = "jobs", "jobs.sqlite"

MOST_STARTS = 10
"""A job that took its process with it this often is given up, or it would do so for ever."""

State = Literal["queued", "running", "done", "failed", "cancelled"]

STATES: Mapping[str, State] = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")
_UNFINISHED = [status for status, state in STATES.items() if state not in FINISHED]

_ID = re.compile(r"[0-9a-f]{32}")


class NoSuchJobError(VitfitError, LookupError):
    """An id that no job has."""


class JobsUnavailableError(VitfitError, RuntimeError):
    """The database of the jobs cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a stage is done."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Job:
    """
    Attributes:
        kind: what is done; the name of a workflow.
        request: JSON document of what was asked.
        progress: None before the start; where it ended, the last one.
        created_at, finished_at: UTC, to the second.
        problem: problem document, of a failed job.
        result: JSON document, of a job that is done.
    """

    id: str
    kind: str
    state: State
    request: Mapping[str, Any]
    progress: Progress | None
    created_at: datetime
    finished_at: datetime | None
    problem: Mapping[str, Any] | None
    result: Mapping[str, Any] | None


class Jobs:
    """The jobs of one data folder. All methods may be called from many threads.

    Raises:
        JobsUnavailableError: from every method.
    """

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: data folder; need not exist.
        """
        self.folder, self.database = root / FOLDER, root / DATABASE
        self._client: DBOSClient | None = None
        self._opening = Lock()

    @property
    def url(self) -> str:
        return f"sqlite:///{self.database}"

    def submit(self, kind: str, request: Mapping[str, Any]) -> Job:
        """Take on a job; it is durable when this returns."""
        # The clock comes first, so that jobs of one second, DBOS's resolution on SQLite, sort as they came.
        job_id = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
        with self._open() as client:
            client.enqueue({"workflow_name": kind, "queue_name": QUEUE, "workflow_id": job_id}, dict(request))
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """
        Raises:
            NoSuchJobError: no job has this id.
        """
        if not _ID.fullmatch(job_id):
            raise NoSuchJobError(f"there is no job {job_id[:80]!r}; ids are 32 hexadecimal digits")
        with self._open() as client:
            found = client.list_workflows(workflow_ids=[job_id])
        if not found:
            raise NoSuchJobError(f"there is no job {job_id}")
        return _job(found[0])

    def newest(self, limit: int) -> list[Job]:
        """The jobs that were taken on last, the newest first."""
        with self._open() as client:
            found = client.list_workflows(limit=limit, sort_desc=True)
        return sorted(map(_job, found), key=lambda job: job.id, reverse=True)

    def any_left(self) -> bool:
        """Whether a job waits or runs."""
        with self._open() as client:
            return bool(client.list_workflows(status=_UNFINISHED, limit=1, load_input=False, load_output=False))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that is not finished; it stops at its next look at `is_cancelled`. Others stay as they are.

        Raises:
            NoSuchJobError: no job has this id.
        """
        if self.get(job_id).state not in FINISHED:
            with self._open() as client:
                client.cancel_workflow(job_id)
        return self.get(job_id)

    def is_cancelled(self, job_id: str) -> bool:
        with self._open() as client:
            found = client.list_workflows(workflow_ids=[job_id], load_input=False, load_output=False)
        return bool(found) and found[0].status == "CANCELLED"

    def note(self, job_id: str, progress: Progress) -> None:
        """Write a job's progress down."""
        document = {"stage": progress.stage, "done": progress.done, "total": progress.total}
        with self._open() as client:
            client.update_workflow_attributes(job_id, document)

    def close(self) -> None:
        with self._opening:
            if self._client is not None:
                self._client.destroy()
                self._client = None

    @contextmanager
    def _open(self) -> Iterator["DBOSClient"]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield self._connected()
        except (OSError, SQLAlchemyError) as error:
            reason = getattr(error, "orig", None) or error
            raise JobsUnavailableError(f"the database of the jobs, {DATABASE}, cannot be used: {reason}") from error

    def _connected(self) -> "DBOSClient":
        with self._opening:
            if self._client is None:
                from dbos import DBOS, DBOSClient

                self.database.parent.mkdir(parents=True, exist_ok=True)
                DBOS.migrate(self.url)  # a client makes no tables, and there may be no worker yet
                self._client = DBOSClient(
                    system_database_url=self.url,
                    serializer=json_serializer(),
                    application_name=APPLICATION,
                    retry_connection_errors=False,
                )
            return self._client


def json_serializer() -> Any:
    """What goes into the database is JSON: DBOS's own default is pickle, which runs code when it is read."""
    from dbos import DBOSPortableJSONSerializer

    return DBOSPortableJSONSerializer()


def path_of(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def _job(status: "WorkflowStatus") -> Job:
    state, noted = STATES[status.status], status.attributes
    assert status.created_at is not None
    assert status.input is not None
    ended = status.completed_at or status.updated_at
    return Job(
        id=status.workflow_id,
        kind=status.name,
        state=state,
        request=status.input["args"][0],
        progress=Progress(noted["stage"], noted["done"], noted["total"]) if noted else None,
        created_at=_time(status.created_at),
        finished_at=_time(ended) if state in FINISHED and ended is not None else None,
        problem=_problem(status) if state == "failed" else None,
        result=status.output if state == "done" else None,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC)


def _problem(status: "WorkflowStatus") -> dict[str, Any]:
    """The worker's own; or that nothing came from it."""
    document = getattr(status.error, "data", None)
    if isinstance(document, dict):
        return document
    kind = JOB_LOST if status.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED" else INTERNAL
    return kind.document(kind.example, path_of(status.workflow_id))
