"""For those who operate the service: metrics, and who changed what."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from api.dependencies import JobsDependency, LibraryDependency
from api.problems import INVALID_REQUEST, NOT_READY, documented
from api.schemas import with_example

router = APIRouter(tags=["operations"])

EVENT = {
    "serial": 17,
    "at": 1769850000,
    "key": "0123456789ab",
    "client": "10.0.0.7",
    "method": "POST",
    "path": "/v1/jobs",
    "status": 202,
    "request": "b7c1",
}


class AuditEvent(BaseModel):
    """A request that changed something, or was refused for its key."""

    model_config = with_example(EVENT)

    serial: int
    at: int = Field(description="Seconds since 1970.")
    key: str | None = Field(description="Id of the API key; null: none was needed, or it was refused.")
    client: str
    method: str
    path: str
    status: int
    request: str = Field(description="X-Request-ID of the answer.")


class AuditList(BaseModel):
    model_config = with_example({"events": [EVENT], "next": None})

    events: list[AuditEvent] = Field(description="The newest first.")
    next: int | None = Field(None, description="`before` of the next page; null: this is the last.")


@router.get("/v1/audit", responses=documented(INVALID_REQUEST, NOT_READY))
def list_audit_events(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
) -> AuditList:
    """Who changed what, and who was refused; kept for 90 days. With keys, one of scope admin is needed."""
    events = request.app.state.audit.newest(limit, before)
    return AuditList(
        events=[AuditEvent(**event) for event in events], next=events[-1]["serial"] if len(events) == limit else None
    )


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request, library: LibraryDependency, jobs: JobsDependency) -> Response:
    """Prometheus's text format."""
    text = request.app.state.figures.text(library, jobs)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
