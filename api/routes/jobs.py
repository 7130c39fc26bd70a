"""Work that takes longer than a request: start it, look how far it is, take home what it made."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from api.dependencies import JSON_ONLY, JobsDependency, LibraryDependency, WorkerDependency
from api.errors import NoSuchResourceError
from api.job_bodies import JobBody, JobList, JobRequest, ListedJob, download_paths
from api.job_inputs import check_compress
from api.jobs import path_of
from api.problems import (
    ANY_BODY,
    BUDGET_OUT_OF_RANGE,
    INVALID_CHECKPOINT,
    INVALID_CONSTRAINTS,
    INVALID_REQUEST,
    INVALID_SALIENCY,
    LIMIT,
    NOT_FOUND,
    NOT_READY,
    OUTSIDE_GRID,
    TARGET_MISMATCH,
    UNKNOWN_NAME,
    UNSUPPORTED_MODEL,
    documented,
)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The job waits for its turn.",
        "headers": {
            "Location": {"description": "Where to ask for it.", "required": True, "schema": {"type": "string"}}
        },
    }
}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "examples": {"report": {"value": '{"model": "models/deit-s-flowers.safetensors"}'}},
            }
        },
    }
}


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
        LIMIT,
        NOT_READY,
    ),
)
def start_job(
    body: JobRequest, response: Response, library: LibraryDependency, jobs: JobsDependency, worker: WorkerDependency
) -> JobBody:
    """Take on a job. Jobs are done one at a time, in the order in which they came; they survive the service.

    What can be found wrong without reading images is refused at once, the rest is the job's `error`. For the target
    `macs` milliseconds stand for millions of MACs for one image.
    """
    check_compress(body, library)
    job = jobs.submit(body.kind, body.model_dump(mode="json", exclude_unset=True))
    if worker is not None:
        worker.ensure()
    response.headers["Location"] = path_of(job.id)
    return JobBody.of(job)


@router.get("", responses=documented(INVALID_REQUEST, NOT_READY))
def list_jobs(jobs: JobsDependency, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> JobList:
    """The newest jobs, without their results."""
    return JobList(jobs=[ListedJob.of(job) for job in jobs.newest(limit)])


@router.get("/{id}", responses=documented(NOT_FOUND, NOT_READY))
def get_job(id: str, jobs: JobsDependency) -> JobBody:
    """One job: how far it is, and in the end its result or its error."""
    return JobBody.of(jobs.get(id))


@router.post("/{id}/cancel", responses=documented(NOT_FOUND, NOT_READY))
def cancel_job(id: str, jobs: JobsDependency) -> JobBody:
    """Cancel a job that waits or runs; one that is finished stays as it is, which its `state` tells.

    A job that runs stops at its next note of progress, seconds later.
    """
    return JobBody.of(jobs.cancel(id))


@router.get("/{id}/files/{name}", responses=BYTES | documented(NOT_FOUND, NOT_READY), response_class=FileResponse)
def download_file(id: str, name: str, jobs: JobsDependency) -> FileResponse:
    """A file that a job made; the job's `files` lists them."""
    job = jobs.get(id)
    known = download_paths(job)
    if name not in known:
        there = f"its files are {', '.join(known)}" if known else f"it is {job.state}"
        raise NoSuchResourceError(f"job {id} has no file {name[:80]!r}; {there}")
    path = jobs.folder / job.id / known[name]
    if not path.is_file():
        raise NoSuchResourceError(f"the file {name} of job {id} was removed")
    return FileResponse(path, media_type="application/octet-stream", filename=name)
