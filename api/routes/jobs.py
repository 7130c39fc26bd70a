"""Work that takes longer than a request: start it, look how far it is, take home what it made."""

import re
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from pydantic import BeforeValidator
from starlette.concurrency import run_in_threadpool

from api.blobs import Blobs
from api.dependencies import (
    JSON_ONLY,
    HubDependency,
    JobsDependency,
    LibraryDependency,
    SettingsDependency,
    WorkersDependency,
)
from api.device_locks import OWNERS
from api.errors import NoSuchResourceError
from api.job_bodies import JobBody, JobKind, JobList, ListedJob, download_paths
from api.job_checks import check_job
from api.job_kinds import queue_of
from api.job_requests import REQUESTS, JobRequest, example_of
from api.job_stream import END, stream
from api.jobs import FINISHED, State, path_of
from api.problems import (
    ANY_BODY,
    BUDGET_OUT_OF_RANGE,
    INVALID_CHECKPOINT,
    INVALID_CONSTRAINTS,
    INVALID_REQUEST,
    INVALID_SALIENCY,
    JOB_STATE,
    KEY_REUSED,
    LIMIT,
    NAME_TAKEN,
    NOT_FOUND,
    NOT_READY,
    OUTSIDE_GRID,
    REFUSED,
    TARGET_MISMATCH,
    TOO_MANY_STREAMS,
    UNKNOWN_NAME,
    UNSUPPORTED_MODEL,
    documented,
)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


def _no_number(text: str) -> str:
    """Pydantic takes seconds since 1970 for a time, which the document does not offer."""
    if re.fullmatch(r"\s*[-+]?[\d._]*(e[-+]?\d+)?\s*", text, re.IGNORECASE):
        raise ValueError(f"must be a time like 2026-01-31T12:00:00Z, got {text!r:.40}")
    return text


LOCATION = {"Location": {"description": "Where to ask for it.", "required": True, "schema": {"type": "string"}}}
ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"description": "The job waits for its turn.", "headers": LOCATION}}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file; 206 with a `Range`, 304 with the `If-None-Match` of one that is there.",
        "content": {
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "examples": {"report": {"value": '{"model": "models/deit-s-flowers.safetensors"}'}},
            }
        },
    }
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "examples": {
                    "step": {"value": 'id: 12\nevent: step\ndata: {"step": "refit", "state": "started"}\n\n'},
                },
            }
        },
    },
    204: {"description": "The stream that ended with the given `Last-Event-ID` has ended."},
}
TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line an event.",
        "content": {
            "text/plain": {
                "schema": {"type": "string"},
                "examples": {"log": {"value": "2026-01-31T09:00:00+00:00 step refit started\n"}},
            }
        },
    }
}

REQUEST_EXAMPLES: dict[str, Any] = {
    kind: {"summary": (model.__doc__ or kind).split("\n")[0], "value": example_of(model)}
    for kind, model in REQUESTS.items()
}

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of yours that is new for each job: asked again with it, for an answer got lost, the same "
        "body is the same job. Remembered for a day.",
    ),
]


@router.post(
    "",
    status_code=202,
    dependencies=[JSON_ONLY],
    responses=ACCEPTED
    | documented(
        *ANY_BODY,
        UNKNOWN_NAME,
        INVALID_CHECKPOINT,
        UNSUPPORTED_MODEL,
        BUDGET_OUT_OF_RANGE,
        INVALID_CONSTRAINTS,
        TARGET_MISMATCH,
        OUTSIDE_GRID,
        INVALID_SALIENCY,
        REFUSED,
        KEY_REUSED,
        NAME_TAKEN,
        LIMIT,
        NOT_READY,
    ),
)
def start_job(
    body: Annotated[JobRequest, Body(openapi_examples=REQUEST_EXAMPLES)],
    response: Response,
    library: LibraryDependency,
    jobs: JobsDependency,
    workers: WorkersDependency,
    settings: SettingsDependency,
    idempotency_key: IdempotencyKey = None,
) -> JobBody:
    """Take on a job. It is durable with this answer, and survives whatever dies.

    A worker does one job at a time; of those that wait in a queue the one with the highest `priority` is next, of
    equals the oldest. What can be found wrong without reading images is refused at once, the rest is the job's `error`.
    For the target `macs` milliseconds stand for millions of MACs for one image.
    """
    document = body.model_dump(mode="json", exclude_unset=True)
    known = None if idempotency_key is None else jobs.known(idempotency_key, body.kind, document)
    if known is None:
        check_job(body, library, settings)
    job = known or jobs.submit(
        body.kind, document, priority=body.priority, key=idempotency_key, remember=settings.idempotency_hours
    )
    workers.ensure(queue_of(document))
    response.headers["Location"] = path_of(job.id)
    return JobBody.of(job)


@router.get("", responses=documented(INVALID_REQUEST, NOT_READY))
def list_jobs(
    jobs: JobsDependency,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    state: Annotated[list[State], Query(max_length=5, description="Only these; may be given several times.")] = [],  # noqa: B006
    kind: Annotated[list[JobKind], Query(max_length=8, description="Only these.")] = [],  # noqa: B006
    since: Annotated[
        datetime | None, BeforeValidator(_no_number), Query(description="Only those taken on at this time or later.")
    ] = None,
    cursor: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$", description="`next` of the page before.")] = None,
) -> JobList:
    """The newest jobs, without their results, in pages."""
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    found = jobs.newest(limit + 1, before=cursor, states=state, kinds=kind, since=since)
    page = found[:limit]
    return JobList(jobs=[ListedJob.of(job) for job in page], next=page[-1].id if len(found) > limit else None)


@router.get("/{id}", responses=documented(NOT_FOUND, NOT_READY))
def get_job(id: str, jobs: JobsDependency) -> JobBody:
    """One job: how far it is, and in the end its result or its error."""
    return JobBody.of(jobs.get(id))


@router.delete("/{id}", status_code=204, response_class=Response, responses=documented(NOT_FOUND, JOB_STATE, NOT_READY))
def delete_job(id: str, jobs: JobsDependency, settings: SettingsDependency) -> Response:
    """Forget a finished job, with its log and the files that no other job has. What it saved in the library stays."""
    blobs = Blobs.of(settings)
    for digest in jobs.delete(id):
        blobs.delete(digest)
    shutil.rmtree(jobs.folder / id, ignore_errors=True)
    with suppress(OSError):
        (jobs.folder / OWNERS / id).unlink()
    return Response(status_code=204)


@router.post("/{id}/cancel", responses=documented(NOT_FOUND, NOT_READY))
def cancel_job(id: str, jobs: JobsDependency) -> JobBody:
    """Cancel a job that waits or runs; one that is finished stays as it is, which its `state` tells.

    What does it is stopped within seconds, wherever it is, and its device is free for the next job.
    """
    return JobBody.of(jobs.cancel(id))


@router.post("/{id}/retry", status_code=202, responses=ACCEPTED | documented(NOT_FOUND, JOB_STATE, NOT_READY))
def retry_job(id: str, response: Response, jobs: JobsDependency, workers: WorkersDependency) -> JobBody:
    """A new job that goes on after the last finished step of one that failed or was cancelled."""
    job = jobs.retry(id)
    workers.ensure(queue_of(job.request))
    response.headers["Location"] = path_of(job.id)
    return JobBody.of(job)


@router.get("/{id}/log", responses=TEXT | documented(NOT_FOUND, NOT_READY), response_class=PlainTextResponse)
def get_log(id: str, jobs: JobsDependency) -> PlainTextResponse:
    """What happened to a job so far, as text."""
    from api.job_events import Events, log_text

    job = jobs.get(id)
    return PlainTextResponse(log_text(Events(jobs.ours()).of(job.id)))


@router.get(
    "/{id}/events",
    responses=STREAM | documented(INVALID_REQUEST, NOT_FOUND, NOT_READY, TOO_MANY_STREAMS),
    response_class=StreamingResponse,
)
async def follow_job(
    id: str,
    jobs: JobsDependency,
    hub: HubDependency,
    last_event_id: Annotated[
        str | None, Header(pattern=r"^([0-9]{1,9}|end)$", description="Of the last event that arrived.")
    ] = None,
) -> Response:
    """A job's steps, log and progress as server-sent events, to its end.

    `step`, `log` and `state` have ids: a stream that was cut off, by a restart of the service, too, goes on after
    `Last-Event-ID`. `progress` comes when it changes. `end` is the last one, with the job's state.
    """
    job = await run_in_threadpool(jobs.get, id)
    if last_event_id == END and job.state in FINISHED:
        return Response(status_code=204)
    hub.check_room()
    after = int(last_event_id) if last_event_id and last_event_id != END else 0
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(hub, job.id, after), media_type="text/event-stream", headers=headers)


@router.get("/{id}/files/{name}", responses=BYTES | documented(NOT_FOUND, NOT_READY), response_class=FileResponse)
def download_file(id: str, name: str, request: Request, jobs: JobsDependency, settings: SettingsDependency) -> Response:
    """A file that a job made; the job's `files` lists them. Its ETag is its sha256; `Range` gives a part of it."""
    job = jobs.get(id)
    known = download_paths(job)
    if name not in known:
        there = f"its files are {', '.join(known)}" if known else f"it is {job.state}"
        raise NoSuchResourceError(f"job {id} has no file {name[:80]!r}; {there}")
    digest = job.digests.get(known[name])
    etag = None if digest is None else f'"{digest}"'
    if etag is not None and etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    path = jobs.folder / job.id / known[name]  # of jobs of an earlier vitfit
    if digest is not None:
        blobs = Blobs.of(settings)
        if not blobs.exists(digest):
            raise NoSuchResourceError(f"the file {name} of job {id} was removed")
        path = blobs.local(digest)
    if not path.is_file():
        raise NoSuchResourceError(f"the file {name} of job {id} was removed")
    headers = {} if etag is None else {"ETag": etag}
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)
