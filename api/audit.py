"""Who changed what, and who was refused: rows that are written behind the requests, a second at most later."""

import logging
import time
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from vit.errors import VitfitError

if TYPE_CHECKING:
    from api.db import Database

logger = logging.getLogger(__name__)

KEPT_DAYS = 90


class Audit:
    """Methods may be called from many threads. Events that the database does not take are logged instead."""

    def __init__(self, database: "Callable[[], Database]") -> None:
        self._database = database
        self._queue: Queue[dict[str, Any]] = Queue(10_000)
        self._stop = Event()
        self._thread: Thread | None = None

    def note(self, key: str | None, client: str, method: str, path: str, status: int, request: str) -> None:
        event = {
            "at": int(time.time()),
            "key": key,
            "client": client[:60],
            "method": method[:10],
            # PostgreSQL's text holds no NUL, and a batch is written as a whole or not at all.
            "path": path.replace("\0", "?")[:300],
            "status": status,
            "request": request[:64],
        }
        try:
            self._queue.put_nowait(event)
        except Full:
            logger.warning("audit: %s", event)
            return
        if self._thread is None:
            self._thread = Thread(target=self._write, name="audit", daemon=True)
            self._thread.start()

    def _write(self) -> None:
        tidied = 0.0
        while not (self._stop.is_set() and self._queue.empty()):
            events = list(self._waiting())
            if not events:
                continue
            try:
                from api.db_keys import audit_events

                with self._database().writing() as connection:
                    connection.execute(audit_events.insert(), events)
                    if time.monotonic() > tidied + 3600:
                        tidied = time.monotonic()
                        old = audit_events.c.at < int(time.time()) - KEPT_DAYS * 86_400
                        connection.execute(audit_events.delete().where(old))
            except VitfitError as error:
                logger.warning("audit: not written (%s): %s", error, events)

    def _waiting(self) -> Iterator[dict[str, Any]]:
        try:
            yield self._queue.get(timeout=0.5)
            while True:
                yield self._queue.get_nowait()
        except Empty:
            return

    def newest(self, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """
        Args:
            before: serial of the last event of the page before.
        """
        import sqlalchemy as sa

        from api.db_keys import audit_events

        query = sa.select(audit_events).order_by(audit_events.c.serial.desc()).limit(limit)
        if before is not None:
            query = query.where(audit_events.c.serial < before)
        with self._database().reading() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
