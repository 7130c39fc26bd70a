"""Bodies that are files: streamed to a temporary file, bounded, and gone afterwards whatever happens."""

import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from fastapi import HTTPException, Request

from api.blobs import FOLDER as BLOBS
from api.errors import UploadError

FOLDER = "uploads"

STALE_SECONDS = 3600
"""Since the last byte: who writes is dead."""

PATHS = ("/v1/tables", "/v1/tables/validate", "/v1/models", "/v1/saliencies")
"""Where a POST brings a file: `VITFIT_MAX_UPLOAD_BYTES` is their limit."""

PARQUET, CSV, JSON, SAFETENSORS = (
    "application/vnd.apache.parquet",
    "text/csv",
    "application/json",
    "application/octet-stream",
)


@dataclass(frozen=True, slots=True)
class Upload:
    """
    Attributes:
        path: of the temporary file.
        digest: sha256 of what came.
        media_type: as the request says, without parameters.
    """

    path: Path
    digest: str
    media_type: str


@asynccontextmanager
async def received(request: Request, root: Path, *media_types: str) -> AsyncIterator[Upload]:
    """The body in a file of the data folder, which is removed at the end. The limit on its size is the middleware's.

    Raises:
        HTTPException: 415, of another media type.
        UploadError: empty.
    """
    media_type = media_type_of(request, media_types)
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", dir=folder)
    path, sha, size = Path(name), hashlib.sha256(), 0
    try:
        with os.fdopen(handle, "wb") as file:
            async for piece in request.stream():
                sha.update(piece)
                file.write(piece)
                size += len(piece)
        if not size:
            raise UploadError("the file is empty; send it as the body of the request (curl --data-binary @FILE)")
        yield Upload(path, sha.hexdigest(), media_type)
    finally:
        path.unlink(missing_ok=True)


def media_type_of(request: Request, allowed: tuple[str, ...]) -> str:
    header = Message()
    given = request.headers.get("content-type", "")
    header["content-type"] = given
    found = header.get_content_type() if given else ""
    if found not in allowed:
        raise HTTPException(415, f"the body must be {' or '.join(allowed)}, got {given[:80] or 'no content type'}")
    return found


def sweep(root: Path) -> None:
    """Remove what somebody who was killed had received or copied in part; not what another service is receiving."""
    for folder in (root / FOLDER, root / BLOBS):
        for path in folder.glob(".*"):
            with suppress(OSError):  # gone meanwhile
                if path.stat().st_mtime < time.time() - STALE_SECONDS:
                    path.unlink()
