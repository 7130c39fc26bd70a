"""The client's methods for what is stored: tables, models, saliencies, frontiers, architectures by id, the audit."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from api.client_http import Connection, Query, document_of, segment
from api.routes.operations import AuditEvent
from api.schemas import ArchitectureBody, Described, SaliencyBody
from api.store_bodies import (
    CompareTablesRequest,
    CompareTablesResponse,
    FrontierBody,
    FrontierRequest,
    ModelBody,
    ModelList,
    TableBody,
    TableCheck,
    TableDetail,
)
from api.uploads import CSV, JSON, PARQUET, SAFETENSORS
from vit.errors import UnknownNameError

Body = TypeVar("Body", bound=BaseModel)
Document = dict[str, Any]
MEDIA_TYPES = {".parquet": PARQUET, ".csv": CSV, ".json": JSON}


class StoreCalls:
    """Part of `api.client.Client`, which has the ways to ask."""

    connection: Connection

    def _get(self, path: str, kind: type[Body]) -> Body:
        raise NotImplementedError

    def _ask(self, path: str, body: BaseModel | Mapping[str, Any], kind: type[Body]) -> Body:
        raise NotImplementedError

    def _delete(self, path: str, etag: str | None = None) -> None:
        raise NotImplementedError

    def _pages(self, path: str, items: str, query: Query, cursor: str = "cursor") -> Iterator[Document]:
        raise NotImplementedError

    def _download(self, path: str, to: Path) -> Path:
        raise NotImplementedError

    # Tables

    def tables(self, kind: str | None = None, device: str | None = None, page: int = 100) -> Iterator[TableBody]:
        """By target; further pages are fetched as they are needed."""
        query: Query = {"kind": kind, "device": device, "limit": page}
        for document in self._pages("/v1/tables", "tables", query, cursor="after"):
            yield TableBody.model_validate(document)

    def table(self, id: str) -> TableDetail:
        return self._get(f"/v1/tables/{segment(id)}", TableDetail)

    def upload_table(self, path: Path, **said: str | float | None) -> TableBody:
        """
        Args:
            path: .parquet, .csv or NViT's .json.
            said: what the file leaves open: target, outside_ms, norm, ...
        """
        return self._upload("/v1/tables", path, _table_type(path), said, TableBody)

    def validate_table(self, path: Path, **said: str | float | None) -> TableCheck:
        return self._upload("/v1/tables/validate", path, _table_type(path), said, TableCheck)

    def compare_tables(self, body: CompareTablesRequest | Mapping[str, Any]) -> CompareTablesResponse:
        return self._ask("/v1/tables/compare", body, CompareTablesResponse)

    def download_table(self, id: str, to: Path) -> Path:
        """Vitfit's own Parquet."""
        return self._download(f"/v1/tables/{segment(id)}/file", to)

    def delete_table(self, id: str, etag: str | None = None) -> None:
        self._delete(f"/v1/tables/{segment(id)}", etag)

    # Models and saliencies

    def models(self) -> ModelList:
        return self._get("/v1/models", ModelList)

    def model(self, name: str) -> ModelBody:
        return self._get(f"/v1/models/{segment(name)}", ModelBody)

    def upload_model(self, path: Path, name: str) -> ModelBody:
        return self._upload("/v1/models", path, SAFETENSORS, {"name": name}, ModelBody)

    def download_model(self, name: str, to: Path) -> Path:
        return self._download(f"/v1/models/{segment(name)}/file", to)

    def delete_model(self, name: str, etag: str | None = None) -> None:
        self._delete(f"/v1/models/{segment(name)}", etag)

    def saliency(self, name: str) -> SaliencyBody:
        return self._get(f"/v1/saliencies/{segment(name)}", SaliencyBody)

    def upload_saliency(self, path: Path, name: str) -> SaliencyBody:
        return self._upload("/v1/saliencies", path, SAFETENSORS, {"name": name}, SaliencyBody)

    def download_saliency(self, name: str, to: Path) -> Path:
        return self._download(f"/v1/saliencies/{segment(name)}/file", to)

    def delete_saliency(self, name: str, etag: str | None = None) -> None:
        self._delete(f"/v1/saliencies/{segment(name)}", etag)

    # Frontiers and architectures

    def frontier(self, body: FrontierRequest | Mapping[str, Any]) -> FrontierBody:
        return self._ask("/v1/frontiers", body, FrontierBody)

    def staircase(self, body: Mapping[str, Any]) -> bytes:
        """All answers of a frontier, as safetensors."""
        sent = self.connection.send("POST", "/v1/architectures/staircase", json=dict(body), repeatable=True)
        return sent.content

    def code_of(self, body: ArchitectureBody | Mapping[str, Any]) -> str:
        """A `model.py` of any architecture."""
        json = body.model_dump(mode="json", exclude_unset=True) if isinstance(body, BaseModel) else dict(body)
        return self.connection.send("POST", "/v1/architectures/code", json=json, repeatable=True).text

    def architecture(self, id: str) -> Described:
        """By its id in the catalogue, or its name there."""
        return self._get(f"/v1/architectures/{segment(id)}", Described)

    def architecture_json(self, id: str) -> ArchitectureBody:
        return self._get(f"/v1/architectures/{segment(id)}/json", ArchitectureBody)

    def architecture_code(self, id: str) -> str:
        return self.connection.send("GET", f"/v1/architectures/{segment(id)}/code", repeatable=True).text

    def download_onnx(self, id: str, to: Path) -> Path:
        """With random weights."""
        return self._download(f"/v1/architectures/{segment(id)}/onnx", to)

    # Operations

    def audit(self, page: int = 100) -> Iterator[AuditEvent]:
        """Who changed what, the newest first."""
        for document in self._pages("/v1/audit", "events", {"limit": page}, cursor="before"):
            yield AuditEvent.model_validate(document)

    def _upload(
        self, path: str, file: Path, media_type: str, query: Mapping[str, str | float | None], kind: type[Body]
    ) -> Body:
        """May be asked again: the same bytes are stored once."""
        headers = {"content-type": media_type}
        sent = self.connection.send("POST", path, file=file, query=dict(query), headers=headers, repeatable=True)
        return kind.model_validate(document_of(sent))


def _table_type(path: Path) -> str:
    if path.suffix not in MEDIA_TYPES:
        raise UnknownNameError("table format", path.suffix, MEDIA_TYPES)
    return MEDIA_TYPES[path.suffix]
