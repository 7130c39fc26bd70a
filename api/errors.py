"""Every error as problem+json (RFC 9457): one table from exception class to the kind of problem that it is."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api.backup import BackupError
from api.blobs import BlobError
from api.catalogue_values import CatalogueError, DatabaseError
from api.client_errors import ClientError
from api.guard import HEADERS
from api.jobs import IdempotencyError, JobStateError, JobsUnavailableError, NoSuchJobError
from api.keys import KeyRefusedError
from api.library import SearchTooLargeError
from api.problems import (
    BODY_TOO_LARGE,
    BUDGET_OUT_OF_RANGE,
    CHANGED,
    EXPORT_REFUSED,
    INTERNAL,
    INVALID_ARCHITECTURE,
    INVALID_CHECKPOINT,
    INVALID_CONSTRAINTS,
    INVALID_FRONTIER,
    INVALID_IMAGES,
    INVALID_JSON,
    INVALID_REQUEST,
    INVALID_SALIENCY,
    INVALID_SETTING,
    INVALID_TABLE,
    INVALID_UPLOAD,
    JOB_STATE,
    KEY_REUSED,
    LIMIT,
    MEDIA_TYPE,
    MEDIA_TYPE_UNSUPPORTED,
    METHOD_NOT_ALLOWED,
    NAME_TAKEN,
    NOT_FOUND,
    NOT_READY,
    NOT_STORED,
    OUTSIDE_GRID,
    REFUSED,
    SEE_TARGETS,
    TARGET_MISMATCH,
    TOO_MANY_STREAMS,
    UNAUTHORIZED,
    UNKNOWN_NAME,
    UNSUPPORTED_MODEL,
    Kind,
)
from api.sentences import fields_at, location, sentence
from api.settings import SettingsError
from latency.errors import OutsideGridError, TableError, TargetError
from search.errors import (
    BudgetError,
    ConstraintError,
    FrontierError,
    ProfileError,
    SaliencyError,
    StorageVersionError,
    StudyError,
    StudyFileError,
    TrendError,
)
from vit.errors import (
    ArchitectureError,
    CalibrationError,
    CheckpointError,
    ExportError,
    JournalError,
    MaskError,
    UnknownNameError,
    UnsupportedModelError,
    VitfitError,
)

logger = logging.getLogger(__name__)


class NoSuchResourceError(VitfitError, LookupError):
    """A name in the path of the URL that is not in the library."""


class LimitError(VitfitError, ValueError):
    """A request that asks for more than this service is set to do at a time."""


class NameTakenError(VitfitError, ValueError):
    """A name in the library that something else has."""


class TooManyStreamsError(VitfitError, RuntimeError):
    """More streams of events than this service is set to serve at a time."""


class NotStoredError(VitfitError, ValueError):
    """A file that nobody uploaded: the operator put it into the data folder, or it came with vitfit."""


class ChangedError(VitfitError, ValueError):
    """Another one than the caller's If-Match names."""


class UploadError(VitfitError, ValueError):
    """What was uploaded is not what it says, or too much."""


class NotReadyError(VitfitError, RuntimeError):
    """The service cannot read its data folder."""


class LocatedError(VitfitError):
    """An error of ours together with the field of the request that caused it."""

    def __init__(self, cause: VitfitError, field: str) -> None:
        super().__init__(str(cause))
        self.cause, self.field = cause, field


@contextmanager
def at(field: str) -> Iterator[None]:
    """Errors of ours that leave the block carry `field`, and within it the field that they name themselves."""
    try:
        yield
    except LocatedError:
        raise
    except VitfitError as error:
        inner = getattr(error, "field", None)
        raise LocatedError(error, ".".join(part for part in (field, inner) if part)) from error


def check_count(field: str, count: int, most: int) -> None:
    """
    Raises:
        LocatedError: `field` has more entries than this service takes at a time.
    """
    if count > most:
        with at(field):
            raise LimitError(f"{field} may have at most {most} entries in one request, got {count}; send several")


KINDS: Mapping[type[Exception], Kind] = {
    ArchitectureError: INVALID_ARCHITECTURE,
    BackupError: REFUSED,
    BlobError: NOT_READY,
    BudgetError: BUDGET_OUT_OF_RANGE,
    CalibrationError: INVALID_IMAGES,
    CatalogueError: INVALID_REQUEST,
    ChangedError: CHANGED,
    CheckpointError: INVALID_CHECKPOINT,
    ClientError: REFUSED,
    ConstraintError: INVALID_CONSTRAINTS,
    DatabaseError: NOT_READY,
    ExportError: EXPORT_REFUSED,
    FrontierError: INVALID_FRONTIER,
    IdempotencyError: KEY_REUSED,
    JobStateError: JOB_STATE,
    JobsUnavailableError: NOT_READY,
    KeyRefusedError: UNAUTHORIZED,
    NameTakenError: NAME_TAKEN,
    TooManyStreamsError: TOO_MANY_STREAMS,
    JournalError: REFUSED,
    MaskError: REFUSED,
    LimitError: LIMIT,
    NoSuchJobError: NOT_FOUND,
    NoSuchResourceError: NOT_FOUND,
    NotReadyError: NOT_READY,
    NotStoredError: NOT_STORED,
    OutsideGridError: OUTSIDE_GRID,
    ProfileError: REFUSED,
    RequestValidationError: INVALID_REQUEST,
    SaliencyError: INVALID_SALIENCY,
    SearchTooLargeError: LIMIT,
    SettingsError: INVALID_SETTING,
    StorageVersionError: REFUSED,
    StudyError: REFUSED,
    StudyFileError: REFUSED,
    TableError: INVALID_TABLE,
    TargetError: TARGET_MISMATCH,
    TrendError: REFUSED,
    UnknownNameError: UNKNOWN_NAME,
    UploadError: INVALID_UPLOAD,
    UnsupportedModelError: UNSUPPORTED_MODEL,
    VitfitError: REFUSED,
    Exception: INTERNAL,
}
"""The table. An exception is what its nearest base class in here is."""

HTTP_KINDS = {
    kind.status: kind for kind in (INVALID_JSON, NOT_FOUND, METHOD_NOT_ALLOWED, BODY_TOO_LARGE, MEDIA_TYPE_UNSUPPORTED)
}
"""Errors that the framework raises by status."""

_LISTS = {
    "target": SEE_TARGETS,
    "preset": "GET /v1/presets lists the presets",
    "saliency": "GET /v1/saliencies lists the saliencies",
}


def kind_of(error: Exception) -> Kind:
    return next(KINDS[base] for base in type(error).__mro__ if base in KINDS)


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        # Escaped: a detail may quote text that UTF-8 cannot encode.
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def _respond(
    request: Request,
    kind: Kind,
    detail: str,
    *,
    field: str | None = None,
    hint: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    document = kind.document(detail, quote(request.scope["path"], errors="replace"), field, hint)
    return ProblemResponse(document, kind.status, headers)


async def _on_ours(request: Request, error: Exception) -> ProblemResponse:
    field = getattr(error, "field", None)
    cause = error.cause if isinstance(error, LocatedError) else error
    hint = _LISTS.get(cause.kind) if isinstance(cause, UnknownNameError) else None
    return _respond(request, kind_of(cause), str(cause), field=field, hint=hint)


async def _on_invalid(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    body = _body_type(request)
    if first["type"] == "json_invalid":
        return _respond(request, INVALID_JSON, f"the request body is not JSON: {first['ctx']['error']}")
    loc = first["loc"][1:]
    if isinstance(body, Mapping):
        if first["loc"][:1] == ("body",) and loc and loc[0] in body:
            body, loc = body[str(loc[0])], loc[1:]  # told apart by a field, whose value pydantic puts in front
        if first["type"].startswith("union_tag_"):
            loc = (*loc, "kind")
    field = location(loc)
    detail = sentence(first, field, fields_at(body, loc))
    if others:
        detail += f" (and {len(others)} more)"
    return _respond(request, INVALID_REQUEST, detail, field=field)


def _body_type(request: Request) -> Any:
    """Type of the body; of one that is told apart by a field, the types by its values."""
    for hint in get_type_hints(request.scope["endpoint"], include_extras=True).values():
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            return plain
        models = [one for one in get_args(plain) if isinstance(one, type) and issubclass(one, BaseModel)]
        if len(models) > 1:
            return {get_args(model.model_fields["kind"].annotation)[0]: model for model in models}
    return None


async def _on_http(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    path = quote(request.scope["path"], errors="replace")
    detail, headers = str(error.detail), error.headers
    match error.status_code:
        case 400:
            detail = "the request body is not JSON that can be read: too deep, a number too long, or not UTF-8"
        case 404:
            detail = f"there is nothing at {path}"
        case 405:
            detail = f"{request.method} is not allowed on {path}; allowed: {(headers or {}).get('Allow', 'nothing')}"
    status = error.status_code
    kind = HTTP_KINDS.get(status) or Kind(status, "http", HTTPStatus(status).phrase, detail)
    return _respond(request, kind, detail, headers=headers)


async def _on_bug(request: Request, error: Exception) -> ProblemResponse:
    request_id = request.scope.get("state", {}).get("request_id", "")
    logger.error("request %s failed", request_id, exc_info=error)
    # This answer is made outside of all middleware.
    named = {"x-request-id": request_id} if request_id else {}
    return _respond(request, INTERNAL, INTERNAL.example, headers=HEADERS | named)


def install(app: FastAPI) -> None:
    """Every error that leaves the application is a problem."""
    app.add_exception_handler(VitfitError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
