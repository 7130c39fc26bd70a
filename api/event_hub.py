"""Events of jobs for many listeners at once: one question to the database for all of them, twice a second at most.

No thread waits: a stream is a coroutine that is woken when there may be news.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from api.catalogue_values import DatabaseError
from api.errors import TooManyStreamsError
from api.jobs import Job, Jobs, JobsUnavailableError

if TYPE_CHECKING:
    from api.job_events import Event

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@dataclass(slots=True)
class News:
    """What a poll found of one job; job None: it is not there any more."""

    job: Job | None
    events: "Sequence[Event]"


@dataclass(eq=False, slots=True)
class _Listener:
    job_id: str
    after: int
    news: "asyncio.Queue[News | None]" = field(default_factory=lambda: asyncio.Queue(1))


class EventHub:
    """For the event loop of one service."""

    def __init__(self, jobs: Jobs, most: int) -> None:
        """
        Args:
            most: listeners at a time.
        """
        self._jobs, self._most = jobs, most
        self._listeners: set[_Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._last: dict[str, News] = {}
        self._ended = False

    def check_room(self) -> None:
        """
        Raises:
            TooManyStreamsError: as many listen as may.
        """
        if len(self._listeners) >= self._most:
            raise TooManyStreamsError(f"{len(self._listeners)} streams of events are open, as many as are allowed")

    async def follow(self, job_id: str, after: int) -> AsyncGenerator[News, None]:
        """What comes after an event's number, as it comes, for as long as somebody asks for more."""
        listener = _Listener(job_id, after)
        self._listeners.add(listener)
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._poll())
            while True:
                news = await listener.news.get()
                if news is None:
                    return
                if news.events:
                    listener.after = news.events[-1].seq
                yield news
        finally:
            self._listeners.discard(listener)

    def end(self) -> None:
        """End all streams within a second, for the service ends: who listens comes back with what it saw last. May be
        called from a signal's handler."""
        self._ended = True

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _poll(self) -> None:
        """While somebody listens. One that has not taken the last news yet is not asked for."""
        while self._listeners:
            waiting = [one for one in self._listeners if one.news.empty()]
            if self._ended:
                for one in waiting:
                    one.news.put_nowait(None)
                await asyncio.sleep(POLL_SECONDS)
                continue
            least: dict[str, int] = {}
            for one in waiting:
                least[one.job_id] = min(one.after, least.get(one.job_id, one.after))
            try:
                found = await run_in_threadpool(self._look, least)
            except (JobsUnavailableError, DatabaseError) as error:
                logger.warning("streams of events wait: %s", error)
                found = self._last
            self._last = found
            for one in waiting:
                if one.job_id in found and one.news.empty():
                    news = found[one.job_id]
                    one.news.put_nowait(News(news.job, [event for event in news.events if event.seq > one.after]))
            await asyncio.sleep(POLL_SECONDS)

    def _look(self, least: dict[str, int]) -> dict[str, News]:
        from api.job_events import Events

        # The state first: what happened before a job's end is there when the end is seen.
        jobs = {job.id: job for job in self._jobs.some(list(least))}
        events = Events(self._jobs.ours()).after(least)
        return {job_id: News(jobs.get(job_id), events[job_id]) for job_id in least}
