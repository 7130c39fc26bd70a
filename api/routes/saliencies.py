"""The saliencies that a search can start from: listed, uploaded, handed on, deleted."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from api.conditional import IfMatch, unchanged, wanted_digest, weak_etag
from api.dependencies import LibraryDependency, StoreDependency
from api.errors import NoSuchResourceError, NotStoredError
from api.library import Library, SaliencyEntry
from api.problems import CHANGED, INVALID_SALIENCY, NOT_FOUND, NOT_READY, NOT_STORED, documented
from api.routes.models import BYTES, FILE, UPLOADED, UploadName
from api.schemas import SaliencyBody, SaliencyList, UnreadableFile
from api.store_bodies import DeletedBody
from api.store_door import StoreDoor
from api.uploads import SAFETENSORS, Upload, received
from search.errors import SaliencyError
from search.saliency import load_saliency

router = APIRouter(prefix="/v1/saliencies", tags=["saliencies"])


@router.get("", response_model=SaliencyList, responses=documented() | {304: {"description": "Nothing changed."}})
def list_saliencies(request: Request, response: Response, library: LibraryDependency) -> Any:
    """Saliencies with the model that they are of, and files that cannot be used, with the reason."""
    entries = library.saliencies()
    etag = weak_etag([entry.stamp for entry in entries])
    if (same := unchanged(request, etag)) is not None:
        return same
    response.headers["etag"] = etag
    return SaliencyList(
        saliencies=[SaliencyBody.of(entry) for entry in entries if entry.saliency is not None],
        unreadable=[UnreadableFile(file=e.file, error=e.error) for e in entries if e.error is not None],
    )


@router.post(
    "",
    status_code=201,
    responses=documented(*UPLOADED, INVALID_SALIENCY)
    | {200: {"description": "The same upload as before.", "model": SaliencyBody}},
    openapi_extra=FILE,
)
async def upload_saliency(
    request: Request, response: Response, library: LibraryDependency, store: StoreDependency, name: UploadName
) -> SaliencyBody:
    """Upload what `vitfit saliency` wrote. The same file under the same name again is the same saliency."""
    async with received(request, library.root, SAFETENSORS) as upload:
        new = await run_in_threadpool(_keep, upload, name, store)
    entry = _entry(library, name)
    response.status_code = 201 if new else 200
    response.headers["location"] = f"/v1/saliencies/{name}"
    response.headers["etag"] = f'"{library.digest_of(entry)}"'
    return SaliencyBody.of(entry)


def _keep(upload: Upload, name: str, store: StoreDoor) -> bool:
    try:
        saliency = load_saliency(upload.path)
    except SaliencyError as error:
        raise SaliencyError(str(error).replace(str(upload.path), "the upload")) from None
    document = {"architecture": saliency.arch.id, "criterion": saliency.criterion}
    return store.open().add("saliency", name, upload.path, document, upload.digest)[1]


@router.get(
    "/{name}", response_model=SaliencyBody, responses=documented(NOT_FOUND) | {304: {"description": "Nothing changed."}}
)
def get_saliency(name: str, request: Request, response: Response, library: LibraryDependency) -> Any:
    """One saliency, without its numbers."""
    entry = _entry(library, name)
    etag = f'"{library.digest_of(entry)}"'
    if (same := unchanged(request, etag)) is not None:
        return same
    response.headers["etag"] = etag
    return SaliencyBody.of(entry)


@router.get("/{name}/file", response_class=FileResponse, responses=BYTES | documented(NOT_FOUND))
def download_saliency(name: str, request: Request, library: LibraryDependency) -> Response:
    """The file, with its numbers: safetensors."""
    entry = _entry(library, name)
    etag = f'"{library.digest_of(entry)}"'
    if (same := unchanged(request, etag)) is not None:
        return same
    return FileResponse(library.path_of(entry), media_type=SAFETENSORS, filename=entry.file, headers={"etag": etag})


@router.delete("/{name}", responses=documented(NOT_FOUND, NOT_STORED, CHANGED, NOT_READY))
def delete_saliency(
    name: str, library: LibraryDependency, store: StoreDependency, if_match: IfMatch = None
) -> DeletedBody:
    """Delete an upload, or what a job saved. Files that the operator put into the folder stay."""
    _entry(library, name)
    digests = store.digests("saliency")
    if name not in digests:
        raise NotStoredError(f"the saliency {name!r} was put into the data folder by hand; it is removed there")
    return DeletedBody(deleted=store.open().delete("saliency", name, wanted_digest(if_match, digests[name][0])))


def _entry(library: Library, name: str) -> SaliencyEntry:
    """
    Raises:
        NoSuchResourceError: no saliency that can be used has this name.
    """
    for entry in library.saliencies():
        if entry.name == name and entry.saliency is not None:
            return entry
    raise NoSuchResourceError(f"there is no saliency {name[:80]!r}; GET /v1/saliencies lists them")
