"""Latency tables: listed, uploaded, checked, handed on, compared, deleted."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from api.conditional import IfMatch, unchanged, wanted_digest, weak_etag
from api.dependencies import JSON_ONLY, LibraryDependency, StoreDependency
from api.errors import NoSuchResourceError, NotStoredError, at
from api.errors_http import no_question
from api.library import Library, TableEntry
from api.problems import (
    ANY_BODY,
    BODY_TOO_LARGE,
    CHANGED,
    INVALID_REQUEST,
    INVALID_TABLE,
    INVALID_UPLOAD,
    MEDIA_TYPE_UNSUPPORTED,
    NAME_TAKEN,
    NOT_FOUND,
    NOT_READY,
    NOT_STORED,
    TARGET_MISMATCH,
    documented,
)
from api.schemas import ProvenanceBody, UnreadableFile
from api.store_bodies import (
    ComparedPreset,
    CompareTablesRequest,
    CompareTablesResponse,
    DeletedBody,
    TableBody,
    TableCheck,
    TableDetail,
    TableList,
    table_fields,
)
from api.store_door import StoreDoor
from api.table_description import outside_of, target_of
from api.uploads import CSV, JSON, PARQUET, Upload, received
from latency.compare import compare
from latency.errors import OutsideGridError, TableError, TargetError
from latency.estimate import estimate
from latency.grid import AXES
from latency.interop import Description, export_table, import_table
from latency.storage import load_table, save_table
from latency.table import LatencyTable
from vit.presets import PRESETS, preset

router = APIRouter(prefix="/v1/tables", tags=["tables"])

Form = Literal["parquet", "csv", "nvit"]
MEDIA_TYPES: Mapping[Form, str] = {"parquet": PARQUET, "csv": CSV, "nvit": JSON}
SUFFIXES: Mapping[Form, str] = {"parquet": ".parquet", "csv": ".csv", "nvit": ".json"}

UPLOADED = (
    NOT_READY,
    BODY_TOO_LARGE,
    MEDIA_TYPE_UNSUPPORTED,
    INVALID_REQUEST,
    INVALID_TABLE,
    INVALID_UPLOAD,
    TARGET_MISMATCH,
)
FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            PARQUET: {
                "schema": {"type": "string", "format": "binary"},
                "examples": {"parquet": {"value": "PAR1..., what vitfit itself writes"}},
            },
            CSV: {
                "schema": {"type": "string"},
                "examples": {"csv": {"value": "part,embed_dim,num_heads,qk_dim,v_dim,mlp_dim,median_ms,iqr_ms\n"}},
            },
            JSON: {
                "schema": {"type": "object"},
                "examples": {"nvit": {"value": {"EMB_256": {"QK_1_16": {"V_16": {"MLP_128": 0.0002}}}}}},
            },
        },
    }
}


@dataclass(frozen=True, slots=True)
class Said:
    """What CSV and NViT's JSON leave open; a file that says it has to say the same."""

    target: Annotated[str | None, Query(description="Slug, `a100-eager-amp-b256-n197`.", max_length=200)] = None
    outside_ms: Annotated[
        float | None, Query(ge=0, allow_inf_nan=False, description="ms a batch outside the blocks; 0 must be said.")
    ] = None
    norm: Annotated[Literal["layer", "rms"] | None, Query(description="Of the blocks that were timed.")] = None
    image_size: Annotated[int | None, Query(ge=1, le=65_536)] = None
    patch_size: Annotated[int | None, Query(ge=1, le=65_536)] = None
    in_chans: Annotated[int, Query(ge=1, le=65_536)] = 3
    num_classes: Annotated[int, Query(ge=0, le=1_000_000)] = 1000
    source: Annotated[str | None, Query(max_length=1000, description="Where the figures come from.")] = None
    license: Annotated[str | None, Query(max_length=1000, description="Terms of the figures.")] = None


SaidDependency = Annotated[Said, Depends()]


@router.get(
    "", response_model=TableList, responses=documented(INVALID_REQUEST) | {304: {"description": "Nothing changed."}}
)
def list_tables(
    request: Request,
    response: Response,
    library: LibraryDependency,
    store: StoreDependency,
    kind: Annotated[
        str | None, Query(max_length=40, description="measured, partly-modelled, imported, modelled.")
    ] = None,
    device: Annotated[str | None, Query(max_length=100, description="Part of the device's name.")] = None,
    origin: Annotated[Literal["shipped", "folder", "uploaded"] | None, Query()] = None,
    after: Annotated[str | None, Query(max_length=300, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Any:
    """Every latency table by target, those that do not answer for theirs included, with the reason.

    Send the answer's ETag as If-None-Match, and 304 says that nothing changed.
    """
    entries = library.targets()
    etag = weak_etag([entry.stamp for entry in entries], kind, device, origin, after, limit)
    if (same := unchanged(request, etag)) is not None:
        return same
    uploaded = uploads_of(library, store)
    found = [_table_body(library, entry, uploaded) for entry in entries if entry.table is not None]
    found = sorted(
        (
            one
            for one in found
            if kind in (None, one.kind) and (device or "") in one.device and origin in (None, one.origin)
        ),
        key=lambda one: (one.target, one.id),
    )
    if after is not None:
        target, _, last = after.rpartition("~")
        found = [
            one for one in found if (one.target, one.id) > (target, last)
        ]  # whether that one is still there or not
    response.headers["etag"] = etag
    return TableList(
        tables=found[:limit],
        unreadable=[UnreadableFile(file=e.file, error=e.error or "") for e in entries if e.table is None],
        next=f"{found[limit - 1].target}~{found[limit - 1].id}" if len(found) > limit else None,
    )


@router.post(
    "",
    status_code=201,
    responses=documented(*UPLOADED, NAME_TAKEN)
    | {200: {"description": "The same upload as before.", "model": TableBody}},
    openapi_extra=FILE_BODY,
)
async def upload_table(
    request: Request, response: Response, library: LibraryDependency, store: StoreDependency, said: SaidDependency
) -> TableBody:
    """Upload a table: vitfit's Parquet, CSV, or NViT's nested JSON (seconds), told apart by Content-Type.

    A table that cannot be trusted is refused with its first offending point, and nothing is kept. Measured tables go
    before modelled ones, and an upload before one that ships.
    """
    async with received(request, library.root, PARQUET, CSV, JSON) as upload:
        body, new = await run_in_threadpool(_keep, upload, said, library, store)
    response.status_code = 201 if new else 200
    response.headers["location"] = f"/v1/tables/{body.id}"
    response.headers["etag"] = f'"{body.digest}"'
    return body


def _keep(upload: Upload, said: Said, library: Library, store: StoreDoor) -> tuple[TableBody, bool]:
    opened = store.open()
    if (known := opened.uploaded("table", upload.digest)) is not None:
        opened.sync()
        return _one(library, store, known.digest[:16])[1], False
    table = _read(upload, said)
    with tempfile.TemporaryDirectory(dir=upload.path.parent, prefix=".") as folder:
        path = Path(folder, "table.parquet")
        if upload.media_type == PARQUET:
            path = upload.path
        else:
            save_table(table, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        kept, new = opened.add(
            "table", f"{table.target.slug}-{digest[:8]}", path, {"source": said.source or ""}, upload.digest
        )
    return _one(library, store, kept.digest[:16])[1], new


def _read(upload: Upload, said: Said) -> LatencyTable:
    """
    Raises:
        LocatedError, TableError: what cannot be trusted.
    """
    with at("target"):
        target = None if said.target is None else target_of(said.target)
    with at("image_size"):
        outside = None
        if target is not None:
            outside = outside_of(said.image_size, said.patch_size, said.in_chans, said.num_classes, target.tokens)
    try:
        if upload.media_type == PARQUET:
            return load_table(upload.path, expect=target)
        return import_table(
            upload.path,
            "csv" if upload.media_type == CSV else "nvit",
            Description(
                imported_at=datetime.now(UTC).isoformat(timespec="seconds"),
                target=target,
                norm=said.norm or ("layer" if target else None),
                outside=outside,
                outside_ms=said.outside_ms,
                source=said.source,
                license=said.license,
            ),
        )
    except (TableError, TargetError) as error:
        raise TableError(str(error).replace(f"{upload.path}: ", "").replace(str(upload.path), "the upload")) from None


@router.post("/validate", responses=documented(*UPLOADED), openapi_extra=FILE_BODY)
async def validate_table(request: Request, library: LibraryDependency, said: SaidDependency) -> TableCheck:
    """Whether an upload would be taken, and what it would become; nothing is kept."""
    async with received(request, library.root, PARQUET, CSV, JSON) as upload:
        return await run_in_threadpool(_checked, upload, said, library)


def _checked(upload: Upload, said: Said, library: Library) -> TableCheck:
    try:
        table = _read(upload, said)
    except TableError as error:
        return TableCheck(valid=False, problem=str(error))
    fields, slug = table_fields(table), table.target.slug
    now = next((entry.file for entry in library.targets() if entry.slug == slug and entry.error is None), None)
    return TableCheck(
        valid=True,
        problem=None,
        target=slug,
        kind=fields["kind"],
        points=fields["points"],
        bounds={axis: list(ends) for axis, ends in fields["bounds"].items()},
        negative_steps={
            axis: float((np.diff(table.block_ms, axis=index) < 0).mean()) if table.block_ms.shape[index] > 1 else 0.0
            for index, axis in enumerate(AXES)
        },
        replaces=now,
    )


@router.post("/compare", dependencies=[JSON_ONLY], responses=documented(*ANY_BODY, NOT_FOUND, INVALID_TABLE))
def compare_tables(
    body: CompareTablesRequest, library: LibraryDependency, store: StoreDependency
) -> CompareTablesResponse:
    """Two tables beside each other, of two devices or of two versions of a runtime: what both answer for."""
    a, b = (_table(library, store, which) for which in (body.a, body.b))
    presets = []
    for name in PRESETS:
        try:
            presets.append(
                ComparedPreset(
                    preset=name,
                    a_ms=estimate(a, preset(name)).latency_ms,
                    b_ms=estimate(b, preset(name)).latency_ms,
                )
            )
        except (OutsideGridError, TargetError):
            continue
    return CompareTablesResponse.of(body.a, body.b, compare(a, b), presets)


@router.get(
    "/{id}", response_model=TableDetail, responses=documented(NOT_FOUND) | {304: {"description": "Nothing changed."}}
)
def get_table(id: str, request: Request, response: Response, library: LibraryDependency, store: StoreDependency) -> Any:
    """One table: grid, extremes, provenance. Its ETag is the file's sha256."""
    entry, body = _one(library, store, id)
    etag = f'"{body.digest}"'
    if (same := unchanged(request, etag)) is not None:
        return same
    from api.cli_tables import describe

    assert entry.table is not None
    document = describe(entry.table)
    response.headers["etag"] = etag
    return TableDetail(
        **body.model_dump(),
        grid=document["grid"],
        fastest=document["fastest"],
        slowest=document["slowest"],
        outside_ms=document["outside_ms"],
        provenance=ProvenanceBody.of(entry.table),
    )


@router.get(
    "/{id}/file",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The table.",
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "examples": {"parquet": {"value": "PAR1..."}},
                }
            },
        },
        304: {"description": "Nothing changed."},
        **documented(NOT_FOUND, INVALID_REQUEST),
    },
)
def download_table(
    id: str,
    request: Request,
    library: LibraryDependency,
    store: StoreDependency,
    format: Annotated[
        Form, Query(description="parquet and csv carry all of it, nvit the blocks' times alone.")
    ] = "parquet",
) -> Response:
    """Download a table. The Parquet file is the one that was stored, byte for byte; its ETag is its sha256."""
    entry, body = _one(library, store, id)
    etag = f'"{body.digest}"' if format == "parquet" else weak_etag(body.digest, format)
    headers = {"etag": etag, "content-disposition": f'attachment; filename="{body.target}{SUFFIXES[format]}"'}
    if (same := unchanged(request, etag)) is not None:
        return same
    path = library.path_of(entry)
    if format == "parquet":
        return FileResponse(path, media_type="application/octet-stream", headers=headers)
    assert entry.table is not None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, f"table{SUFFIXES[format]}")
        export_table(entry.table, made, format)
        return Response(made.read_bytes(), media_type="application/octet-stream", headers=headers)


@router.delete("/{id}", responses=documented(NOT_FOUND, NOT_STORED, CHANGED, NOT_READY))
def delete_table(
    id: str,
    library: LibraryDependency,
    store: StoreDependency,
    if_match: IfMatch = None,
) -> DeletedBody:
    """Delete an upload. Tables that ship, and those that the operator put into the folder, stay."""
    entry, body = _one(library, store, id)
    if body.origin != "uploaded":
        raise NotStoredError(
            f"the table {entry.file} was not uploaded: it "
            + ("comes with vitfit" if body.origin == "shipped" else "is in the data folder, and is removed there")
        )
    name = Path(entry.file).stem
    return DeletedBody(deleted=store.open().delete("table", name, wanted_digest(if_match, body.digest)))


def uploads_of(library: Library, store: StoreDoor) -> set[str]:
    """Names of the uploaded tables' files; none where nothing was ever stored."""
    return set(store.names("table"))


def _table_body(library: Library, entry: TableEntry, uploaded: set[str]) -> TableBody:
    assert entry.table is not None
    digest = library.digest_of(entry)
    stem = Path(entry.file).stem
    origin = "shipped" if entry.shipped else "uploaded" if stem in uploaded else "folder"
    return TableBody(
        id=digest[:16],
        digest=digest,
        bytes=entry.stamp.bytes,
        file=entry.file,
        origin=origin,
        answers=entry.error is None,
        note=entry.error,
        **table_fields(entry.table),
    )


def _one(library: Library, store: StoreDoor, id: str) -> tuple[TableEntry, TableBody]:
    """
    Raises:
        NoSuchResourceError: no table has this id.
    """
    no_question(id, "validate", "compare")
    uploaded = uploads_of(library, store)
    for entry in library.targets():
        if entry.table is not None and library.digest_of(entry)[:16] == id:
            return entry, _table_body(library, entry, uploaded)
    raise NoSuchResourceError(f"there is no table {id[:80]!r}; GET /v1/tables lists them")


def _table(library: Library, store: StoreDoor, id: str) -> LatencyTable:
    table = _one(library, store, id)[0].table
    assert table is not None
    return table
