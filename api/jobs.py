"""Jobs: work that takes longer than a request. The service takes them on, worker processes do them.

    the database      every job: what was asked, its state, progress, and its result or problem
    blobs             the files that it made
    data_dir/jobs/    where they are being made, on the worker's machine

A job is a DBOS workflow. DBOS's tables are in the schema `dbos` of the PostgreSQL that the settings name; without one,
in `jobs.sqlite` of the data folder, a file of their own (docs/decisions/0017). This file is how the service reads and
writes them. DBOS is loaded when somebody asks for a job, for it takes longer than the service itself.
"""

import hashlib
import json
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

from api.catalogue_values import DatabaseError
from api.job_kinds import KINDS, queue_of
from api.problems import INTERNAL, JOB_LOST
from vit.errors import VitfitError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from dbos import DBOSClient, WorkflowStatus

    from api.db import Database
    from api.settings import Settings

APPLICATION, QUEUE = "vitfit", "jobs"
FOLDER, DATABASE = "jobs", "jobs.sqlite"

MOST_STARTS = 10
"""A job that took its process with it this often is given up, or it would do so for ever."""

PRIORITIES = (0, 9)
NORMAL = 5

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


class JobStateError(VitfitError, RuntimeError):
    """What was asked of a job cannot be done in the state that it is in."""


class IdempotencyError(VitfitError, ValueError):
    """An Idempotency-Key that was used for another request."""


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
        digests: of the files of a job that is done, by name in its folder.
        retry_of: the job that this one goes on with.
        executor: that does it, or did last.
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
    digests: Mapping[str, str] = field(default_factory=dict)
    retry_of: str | None = None
    executor: str | None = None


class Jobs:
    """The jobs of one database. All methods may be called from many threads.

    Raises:
        JobsUnavailableError: from every method.
    """

    def __init__(self, root: Path, database_url: str = "") -> None:
        """
        Args:
            root: data folder; need not exist.
            database_url: of PostgreSQL; empty: SQLite in the data folder.
        """
        self.root, self.folder, self.database = root, root / FOLDER, root / DATABASE
        self._shared, self._ours_url = "", ""
        if database_url:
            from api.db import normal_url, sqlite_path

            self._ours_url = normal_url(database_url)
            if (path := sqlite_path(self._ours_url)) is None:
                self._shared = self._ours_url
            else:  # a file somewhere else: DBOS's is beside it
                self.database = path.with_name(DATABASE)
        self._client: DBOSClient | None = None
        self._ours: Database | None = None
        self._opening = Lock()

    @classmethod
    def of(cls, settings: "Settings") -> "Jobs":
        return cls(settings.data_dir, settings.database_url)

    @property
    def url(self) -> str:
        """Of DBOS's tables."""
        return self._shared or f"sqlite:///{self.database}"

    @property
    def may_have_jobs(self) -> bool:
        """Without connecting to anything."""
        return bool(self._shared) or self.database.exists()

    def ours(self) -> "Database":
        """The database of events, workers, files and keys."""
        with self._opening:
            if self._ours is None:
                import api.db_jobs  # noqa: F401
                from api.db import DATABASE as FILE
                from api.db import Database

                try:
                    self._ours = Database(self._ours_url or f"sqlite:///{self.root / FILE}", pool=True)
                except DatabaseError as error:
                    raise JobsUnavailableError(str(error)) from error
            return self._ours

    def submit(
        self,
        kind: str,
        request: Mapping[str, Any],
        *,
        priority: int = NORMAL,
        key: str | None = None,
        remember: float = 24.0,
    ) -> Job:
        """Take on a job; it is durable when this returns.

        Args:
            key: that the caller chose: the same request with the same key is the same job.
            remember: hours for which keys are kept.

        Raises:
            IdempotencyError: another request had this key.
        """
        job_id = new_id()
        if key is not None:
            job_id = self._keyed(key, kind, request, job_id, remember)
        options = {"workflow_name": kind, "queue_name": queue_name(queue_of(request)), "workflow_id": job_id}
        with self._open() as client:
            # With an id that is there already this changes nothing: it may be that of a caller who asks again because
            # we were killed between the key and the job.
            client.enqueue({**options, "priority": _rank(priority)}, dict(request))  # type: ignore[typeddict-item]
        return self.get(job_id)

    def known(self, key: str, kind: str, request: Mapping[str, Any]) -> Job | None:
        """The job that this key was used for.

        Raises:
            IdempotencyError: with another request.
        """
        import sqlalchemy as sa

        from api.db_jobs import keys

        with self._reading() as connection:
            found = connection.execute(sa.select(keys).where(keys.c.key == key)).first()
        if found is None:
            return None
        job_id = _same(found, kind, request)
        # Without a job: we were killed before it was there. It is made with the same id then.
        return next(iter(self.some([job_id])), None)

    def _keyed(self, key: str, kind: str, request: Mapping[str, Any], job_id: str, remember: float) -> str:
        import sqlalchemy as sa
        from sqlalchemy.dialects import postgresql, sqlite

        from api.db_jobs import keys

        now = int(time.time())
        row = {"key": key, "digest": _digest(kind, request), "job": job_id, "created_at": now}
        with self._writing() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            connection.execute(keys.delete().where(keys.c.created_at < now - remember * 3600))
            connection.execute(insert(keys).values(row).on_conflict_do_nothing())
            return _same(connection.execute(sa.select(keys).where(keys.c.key == key)).one(), kind, request)

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with self.ours().reading() as connection:
                yield connection
        except DatabaseError as error:
            raise JobsUnavailableError(str(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        try:
            with self.ours().writing() as connection:
                yield connection
        except DatabaseError as error:
            raise JobsUnavailableError(str(error)) from error

    def get(self, job_id: str) -> Job:
        """
        Raises:
            NoSuchJobError: no job has this id.
        """
        if not _ID.fullmatch(job_id):
            raise NoSuchJobError(f"there is no job {job_id[:80]!r}; ids are 32 hexadecimal digits")
        if not (found := self.some([job_id])):
            raise NoSuchJobError(f"there is no job {job_id}")
        return found[0]

    def some(self, job_ids: Sequence[str], results: bool = True) -> list[Job]:
        """Those of these that there are."""
        if not job_ids:
            return []
        with self._open() as client:
            found = client.list_workflows(workflow_ids=list(job_ids), load_output=results)
        return [_job(status, results) for status in found if status.name in KINDS]

    def newest(
        self,
        limit: int,
        *,
        before: str | None = None,
        states: Sequence[State] = (),
        kinds: Sequence[str] = (),
        since: datetime | None = None,
    ) -> list[Job]:
        """The jobs that were taken on last, the newest first.

        Args:
            before: only older ones than this id.
            states, kinds: only of these; empty: of all.
            since: only those taken on at this time or later.
        """
        import sqlalchemy as sa

        table = self._workflows()
        query = sa.select(table.c.workflow_uuid).where(table.c.name.in_(list(kinds or KINDS)))
        if states:
            query = query.where(table.c.status.in_([one for one, state in STATES.items() if state in states]))
        if before is not None:
            query = query.where(table.c.workflow_uuid < before)
        if since is not None:
            query = query.where(table.c.workflow_uuid >= f"{max(0, int(since.timestamp() * 1000)):012x}")
        query = query.order_by(table.c.workflow_uuid.desc()).limit(limit)
        with self._open() as client, client._sys_db.engine.connect() as connection:
            found = [row[0] for row in connection.execute(query)]
        return sorted(self.some(found), key=lambda job: job.id, reverse=True)

    def counts(self) -> dict[State, int]:
        """How many jobs there are in every state."""
        import sqlalchemy as sa

        table, counts = self._workflows(), dict.fromkeys(get_args(State), 0)
        query = sa.select(table.c.status, sa.func.count()).where(table.c.name.in_(list(KINDS))).group_by(table.c.status)
        with self._open() as client, client._sys_db.engine.connect() as connection:
            for status, count in connection.execute(query):
                counts[STATES[status]] += count
        return counts

    def _workflows(self) -> "sa.TableClause":
        """DBOS's own table, as far as it is read here."""
        import sqlalchemy as sa

        columns: list[Any] = [sa.column(name) for name in ("workflow_uuid", "status", "name")]
        return sa.table("workflow_status", *columns, schema="dbos" if self._shared else None)

    def any_left(self, queue: str | None = None) -> bool:
        """Whether a job waits or runs."""
        names = None if queue is None else queue_name(queue)
        with self._open() as client:
            left = client.list_workflows(
                status=_UNFINISHED, queue_name=names, limit=1, load_input=False, load_output=False
            )
        return bool(left)

    def claims(self) -> dict[str, str]:
        """Running jobs, and the executor that each belongs to."""
        with self._open() as client:
            found = client.list_workflows(status="PENDING", load_input=False, load_output=False)
        return {status.workflow_id: status.executor_id for status in found if status.executor_id}

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that is not finished; it stops within seconds. Others stay as they are.

        Raises:
            NoSuchJobError: no job has this id.
        """
        if self.get(job_id).state not in FINISHED:
            with self._open() as client:
                client.cancel_workflow(job_id)
        return self.get(job_id)

    def retry(self, job_id: str) -> Job:
        """A new job that goes on after the last finished step of one that failed or was cancelled.

        Raises:
            NoSuchJobError: no job has this id.
            JobStateError: it is not finished, or done.
        """
        from dbos import SetWorkflowID

        job = self.get(job_id)
        if job.state not in ("failed", "cancelled"):
            raise JobStateError(f"job {job_id} is {job.state}; one that failed or was cancelled can be tried again")
        again = new_id()
        with self._open() as client:
            steps = client.list_workflow_steps(job_id)
            whole = [step["function_id"] for step in steps if step["error"] is None]
            with SetWorkflowID(again):
                client.fork_workflow(
                    job_id,
                    max(whole, default=0) + 1,
                    queue_name=queue_name(queue_of(job.request)),
                    application_version="1",
                )
            client.update_workflow_attributes(again, None)
        return self.get(again)

    def delete(self, job_id: str) -> list[str]:
        """Forget a finished job: its rows here. Returns the digests of files that no job has any more.

        Raises:
            NoSuchJobError: no job has this id.
            JobStateError: it is not finished.
        """
        import sqlalchemy as sa

        from api.db_jobs import events, files, keys
        from api.db_stored import stored

        job = self.get(job_id)
        if job.state not in FINISHED:
            raise JobStateError(f"job {job_id} is {job.state}; cancel it first")
        with self._open() as client:
            client.delete_workflow(job_id)
        with self._writing() as connection:
            had = set(connection.execute(sa.select(files.c.digest).where(files.c.job == job_id)).scalars())
            connection.execute(files.delete().where(files.c.job == job_id))
            still = set(connection.execute(sa.select(files.c.digest).where(files.c.digest.in_(had))).scalars())
            still |= set(connection.execute(sa.select(stored.c.digest).where(stored.c.digest.in_(had))).scalars())
            connection.execute(events.delete().where(events.c.job == job_id))
            connection.execute(keys.delete().where(keys.c.job == job_id))
        return sorted(had - still)

    def standing(self, job_id: str) -> tuple[str, str | None, str | None]:
        """(DBOS's status, executor, the job that it tries again) of a job; status "" where it was deleted."""
        with self._open() as client:
            found = client.list_workflows(workflow_ids=[job_id], load_input=False, load_output=False)
        return (found[0].status, found[0].executor_id, found[0].forked_from) if found else ("", None, None)

    def is_cancelled(self, job_id: str) -> bool:
        return self.standing(job_id)[0] == "CANCELLED"

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
            if self._ours is not None:
                self._ours.close()
                self._ours = None

    @contextmanager
    def _open(self) -> Iterator["DBOSClient"]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield self._connected()
        except (OSError, SQLAlchemyError, sqlite3.Error) as error:
            reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
            name = "PostgreSQL" if self._shared else DATABASE
            raise JobsUnavailableError(f"the database of the jobs, {name}, cannot be used: {reason}") from error

    def _connected(self) -> "DBOSClient":
        with self._opening:
            if self._client is None:
                from dbos import DBOS, DBOSClient

                if not self._shared:
                    _make_sqlite(self.database)
                DBOS.migrate(self.url)  # a client makes no tables, and there may be no worker yet
                self._client = DBOSClient(
                    system_database_url=self.url,
                    serializer=json_serializer(),
                    application_name=APPLICATION,
                    retry_connection_errors=False,
                )
            return self._client


def _digest(kind: str, request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps({"kind": kind, "request": dict(request)}, sort_keys=True).encode()).hexdigest()


def _same(row: Any, kind: str, request: Mapping[str, Any]) -> str:
    if row.digest != _digest(kind, request):
        raise IdempotencyError(
            f"the Idempotency-Key {row.key!r:.80} was used for another request, which became job {row.job}; send a new "
            "key, or the same body"
        )
    return str(row.job)


def _make_sqlite(path: Path) -> None:
    """Readers and a writer do not wait for each other from then on; the file remembers it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):  # others use it: they, or the next start, will do it
                    raise


def json_serializer() -> Any:
    """What goes into the database is JSON: DBOS's own default is pickle, which runs code when it is read."""
    from dbos import DBOSPortableJSONSerializer

    return DBOSPortableJSONSerializer()


def new_id(clock: Callable[[], int] = time.time_ns) -> str:
    """The clock comes first, so that jobs are listed as they came."""
    return f"{clock() // 1_000_000:012x}{secrets.token_hex(10)}"


def queue_name(queue: str) -> str:
    """DBOS's name of a queue; the CPU's has the one that it had when there was no other."""
    return QUEUE if queue == "cpu" else f"{QUEUE}-{queue}"


def _rank(priority: int) -> int:
    """DBOS's priorities: 1 goes first."""
    return 1 + PRIORITIES[1] - priority


def path_of(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def _job(status: "WorkflowStatus", results: bool = True) -> Job:
    state, noted = STATES[status.status], status.attributes
    assert status.created_at is not None
    assert status.input is not None
    ended = status.completed_at or status.updated_at
    output = dict(status.output) if results and state == "done" and status.output else None
    digests = output.pop("digests", {}) if output is not None else {}
    return Job(
        id=status.workflow_id,
        kind=status.name,
        state=state,
        request=status.input["args"][0],
        progress=Progress(noted["stage"], noted["done"], noted["total"]) if noted else None,
        created_at=_time(status.created_at),
        finished_at=_time(ended) if state in FINISHED and ended is not None else None,
        problem=_problem(status) if results and state == "failed" else None,
        result=output,
        digests=digests,
        retry_of=status.forked_from,
        executor=status.executor_id,
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
