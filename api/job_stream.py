"""A job's events as a stream of server-sent events.

    id: 12
    event: step
    data: {"step": "refit", "state": "started", "at": "2026-01-31T09:00:00+00:00"}

`step`, `log` and `state` have ids and are kept with the job: who comes back with `Last-Event-ID` gets what it missed.
`progress` has none, only the newest counts. `end` is the last one; its data is the job's state. In between comes a
comment every few seconds, so that nobody on the way takes the connection for dead.
"""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from api.event_hub import EventHub
from api.jobs import FINISHED, Job

if TYPE_CHECKING:
    from api.job_events import Event

KEEP_SECONDS = 10.0

END = "end"


async def stream(
    hub: EventHub, job_id: str, after: int, keep: float = KEEP_SECONDS, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[str]:
    """The text of a stream, from an event's number on, to the end of the job."""
    yield "retry: 2000\n\n"
    shown: dict[str, Any] | None = None
    said = clock()
    async with aclosing(hub.follow(job_id, after)) as following:
        async for news in following:
            texts = [_kept(event) for event in news.events]
            if news.job is not None and (now := _progress(news.job)) != shown:
                shown = now
                texts += [] if now is None else [_text("progress", now)]
            over = news.job is None or (news.job.state in FINISHED and not news.events)
            if over:
                texts.append(_text("end", _end(news.job), END))
            if not texts and clock() > said + keep:
                texts.append(": still here\n\n")
            if texts:
                said = clock()
                yield "".join(texts)
            if over:
                return


def _kept(event: "Event") -> str:
    return _text(event.kind, {**event.data, "at": event.created_at}, str(event.seq))


def _progress(job: Job) -> dict[str, Any] | None:
    noted = job.progress
    return None if noted is None else {"stage": noted.stage, "done": noted.done, "total": noted.total}


def _end(job: Job | None) -> dict[str, Any]:
    if job is None:
        return {"state": "deleted"}
    return {"state": job.state} | ({"error": dict(job.problem)} if job.problem is not None else {})


def _text(kind: str, data: dict[str, Any], number: str | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {kind}\ndata: {json.dumps(data)}\n\n"
