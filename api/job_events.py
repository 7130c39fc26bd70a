"""What happened to jobs, in rows: their beginning, steps, log and end. Kept with the job, so a stream that was cut off,
by whatever, goes on where it was.

    step     {"step": "refit", "state": "started" | "done", ...}
    log      {"text": "..."}
    state    {"state": "running" | "done" | "failed" | "cancelled"}

How far a stage is changes twice a second and is not kept here: it is a value of the job, and the last one is enough.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from api.catalogue_values import DatabaseError
from api.db import Database
from api.db_jobs import events

MOST = 5_000
"""Events of one job; what comes after is dropped, and the last one says so."""

MOST_TEXT = 4_000
"""Characters of a line of a log."""


@dataclass(frozen=True, slots=True)
class Event:
    seq: int
    kind: str
    data: Mapping[str, Any]
    created_at: str


class Events:
    """Methods may be called from many threads, and by several processes on one job: each event has a number of its own.

    Raises:
        DatabaseError: from every method.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        # Of two that choose the same number at once one fails, and tries again.
        for _ in range(20):
            try:
                with self._database.writing() as connection:
                    of_job = sa.select(sa.func.max(events.c.seq)).where(events.c.job == job_id)
                    last = connection.execute(of_job).scalar() or 0
                    if last >= MOST:
                        return
                    if last == MOST - 1:
                        kind, data = "log", {"text": f"more than {MOST} events: what comes after is left out"}
                    row = {"job": job_id, "seq": last + 1, "kind": kind, "data": json.dumps(dict(data))}
                    connection.execute(events.insert(), row | {"created_at": now()})
                return
            except DatabaseError as error:
                if not isinstance(error.__cause__, sa.exc.IntegrityError):
                    raise

    def after(self, seqs: Mapping[str, int], limit: int = 1_000) -> dict[str, list[Event]]:
        """Of several jobs, what came after a number each."""
        found: dict[str, list[Event]] = {job_id: [] for job_id in seqs}
        if not seqs:
            return found
        newer = sa.or_(*(sa.and_(events.c.job == job_id, events.c.seq > seq) for job_id, seq in seqs.items()))
        query = sa.select(events).where(newer).order_by(events.c.job, events.c.seq).limit(limit)
        with self._database.reading() as connection:
            for row in connection.execute(query):
                found[row.job].append(Event(row.seq, row.kind, json.loads(row.data), row.created_at))
        return found

    def of(self, job_id: str) -> list[Event]:
        return self.after({job_id: 0}, MOST)[job_id]

    def forget(self, job_ids: Sequence[str]) -> None:
        with self._database.writing() as connection:
            connection.execute(events.delete().where(events.c.job.in_(job_ids)))


def log_text(found: Iterable[Event]) -> str:
    """As a page of text, a line an event."""
    return "".join(f"{event.created_at} {_line(event)}\n" for event in found)


def _line(event: Event) -> str:
    if event.kind == "log":
        return str(event.data.get("text", ""))
    return " ".join(str(value) for value in (event.kind, *event.data.values()))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
