"""Checkpoints of the library: listed, uploaded, handed on, deleted."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from api.conditional import IfMatch, unchanged, wanted_digest, weak_etag
from api.dependencies import LibraryDependency, StoreDependency
from api.errors import NoSuchResourceError, NotStoredError
from api.job_inputs import MODELS, SUFFIX
from api.problems import (
    BODY_TOO_LARGE,
    CHANGED,
    INVALID_CHECKPOINT,
    INVALID_REQUEST,
    INVALID_UPLOAD,
    MEDIA_TYPE_UNSUPPORTED,
    NAME_TAKEN,
    NOT_FOUND,
    NOT_READY,
    NOT_STORED,
    documented,
)
from api.schemas import UnreadableFile, described
from api.store_bodies import DeletedBody, ModelBody, ModelList
from api.store_door import StoreDoor
from api.uploads import SAFETENSORS, Upload, received
from vit.checkpoint_header import is_rebased, read_header
from vit.errors import CheckpointError

router = APIRouter(prefix="/v1/models", tags=["models"])

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
UploadName = Annotated[
    str, Query(pattern=NAME, description="What requests will call it: letters, digits, `.`, `-`, `_`.")
]
FILE = {
    "requestBody": {
        "required": True,
        "content": {
            SAFETENSORS: {
                "schema": {"type": "string", "format": "binary"},
                "examples": {"safetensors": {"value": "the bytes of a .safetensors file"}},
            }
        },
    }
}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {
            SAFETENSORS: {
                "schema": {"type": "string", "format": "binary"},
                "examples": {"safetensors": {"value": "the bytes of a .safetensors file"}},
            }
        },
    },
    304: {"description": "Nothing changed."},
}
UPLOADED = (NOT_READY, BODY_TOO_LARGE, MEDIA_TYPE_UNSUPPORTED, INVALID_REQUEST, INVALID_UPLOAD, NAME_TAKEN)


@router.get("", response_model=ModelList, responses=documented() | {304: {"description": "Nothing changed."}})
def list_models(request: Request, response: Response, library: LibraryDependency, store: StoreDependency) -> Any:
    """Checkpoints by name, and files that cannot be used, with the reason."""
    paths = _paths(library.root)
    etag = weak_etag([(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths])
    if (same := unchanged(request, etag)) is not None:
        return same
    digests, models, unreadable = _digests(store), [], []
    for path in paths:
        try:
            models.append(_body(path, digests))
        except CheckpointError as error:
            unreadable.append(UnreadableFile(file=path.name, error=str(error).replace(str(path), path.name)))
    response.headers["etag"] = etag
    return ModelList(models=models, unreadable=unreadable)


@router.post(
    "",
    status_code=201,
    responses=documented(*UPLOADED, INVALID_CHECKPOINT)
    | {200: {"description": "The same upload as before.", "model": ModelBody}},
    openapi_extra=FILE,
)
async def upload_model(
    request: Request, response: Response, library: LibraryDependency, store: StoreDependency, name: UploadName
) -> ModelBody:
    """Upload a checkpoint of vitfit's (`vitfit import` makes one of a timm model's weights).

    Safetensors alone: nothing is unpickled. The same file under the same name again is the same model.
    """
    async with received(request, library.root, SAFETENSORS) as upload:
        body, new = await run_in_threadpool(_keep, upload, name, library.root, store)
    response.status_code = 201 if new else 200
    response.headers["location"] = f"/v1/models/{body.model}"
    response.headers["etag"] = f'"{body.digest}"'
    return body


def _keep(upload: Upload, name: str, root: Path, store: StoreDoor) -> tuple[ModelBody, bool]:
    try:
        header = read_header(upload.path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(upload.path), "the upload")) from None
    kept, new = store.open().add("model", name, upload.path, {"architecture": header.arch.id}, upload.digest)
    return _body(root / MODELS / f"{name}{SUFFIX}", {name: (kept.digest, kept.created_at)}), new


@router.get(
    "/{name}",
    response_model=ModelBody,
    responses=documented(NOT_FOUND, INVALID_CHECKPOINT) | {304: {"description": "Nothing changed."}},
)
def get_model(
    name: str, request: Request, response: Response, library: LibraryDependency, store: StoreDependency
) -> Any:
    """One checkpoint: architecture, lineage, sparsity; not its weights."""
    path = _path(library.root, name)
    body = _body(path, _digests(store))
    etag = _etag(path, body)
    if (same := unchanged(request, etag)) is not None:
        return same
    response.headers["etag"] = etag
    return body


@router.get("/{name}/file", response_class=FileResponse, responses=BYTES | documented(NOT_FOUND, INVALID_CHECKPOINT))
def download_model(name: str, request: Request, library: LibraryDependency, store: StoreDependency) -> Response:
    """The checkpoint itself; ranges can be asked for."""
    path = _path(library.root, name)
    etag = _etag(path, _body(path, _digests(store)))
    if (same := unchanged(request, etag)) is not None:
        return same
    return FileResponse(path, media_type=SAFETENSORS, filename=path.name, headers={"etag": etag})


@router.delete("/{name}", responses=documented(NOT_FOUND, NOT_STORED, CHANGED, NOT_READY))
def delete_model(
    name: str, library: LibraryDependency, store: StoreDependency, if_match: IfMatch = None
) -> DeletedBody:
    """Delete an upload, or what a job saved. Files that the operator put into the folder stay."""
    _path(library.root, name)
    digests = _digests(store)
    if name not in digests:
        raise NotStoredError(f"the model {name!r} was put into the data folder by hand; it is removed there")
    return DeletedBody(deleted=store.open().delete("model", name, wanted_digest(if_match, digests[name][0])))


def _paths(root: Path) -> list[Path]:
    try:
        found = sorted((root / MODELS).iterdir())
    except OSError:
        return []
    return [path for path in found if path.suffix == SUFFIX and not path.name.startswith(".") and path.is_file()]


def _path(root: Path, name: str) -> Path:
    """
    Raises:
        NoSuchResourceError: no checkpoint has this name.
    """
    for path in _paths(root):
        if path.stem == name:
            return path
    raise NoSuchResourceError(f"there is no model {name[:80]!r}; GET /v1/models lists them")


def _digests(store: StoreDoor) -> dict[str, tuple[str, str]]:
    return store.digests("model")


def _etag(path: Path, body: ModelBody) -> str:
    status = path.stat()
    return f'"{body.digest}"' if body.digest else weak_etag(path.name, status.st_mtime_ns, status.st_size)


def _body(path: Path, digests: dict[str, tuple[str, str]]) -> ModelBody:
    header = read_header(path)
    digest, created_at = digests.get(path.stem, (None, None))
    return ModelBody(
        model=path.stem,
        digest=digest,
        bytes=path.stat().st_size,
        origin="folder" if digest is None else "uploaded",
        created_at=created_at,
        lineage=[dict(step) for step in header.lineage],
        sparsity=None if header.masked is None else header.masked.sparsity,
        rebased=is_rebased(header.lineage),
        **described(header.arch),
    )
