"""The client's methods for what is stored: tables, models, saliencies, frontiers, architectures; and the audit.

Answers are documents as the service gives them. A file is sent as it is read from disk, and known by its content: the
same one sent twice is one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from api.client_base import Asking, Document, json_of
from api.client_http import document_of, segment

MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv",
    ".json": "application/json",
    ".safetensors": "application/octet-stream",
}
"""By which the service tells what it is sent, by the file's ending."""


class LibraryCalls(Asking):
    # Tables

    def tables(self, page: int = 100) -> Iterator[Document]:
        return self._pages("/v1/tables", "tables", {"limit": page}, cursor="after")

    def upload_table(self, file: Path, **says: str | None) -> Document:
        """
        Args:
            file: Parquet, CSV, or NViT's JSON.
            says: what the file does not, such as its `target`.
        """
        return self._upload("/v1/tables", file, says)

    def validate_table(self, file: Path, **says: str | None) -> Document:
        """What is wrong with a table, without storing it."""
        return self._upload("/v1/tables/validate", file, says)

    def compare_tables(self, body: Mapping[str, Any]) -> Document:
        return self._document("POST", "/v1/tables/compare", body)

    def table(self, table_id: str) -> Document:
        return self._document("GET", f"/v1/tables/{segment(table_id)}")

    def download_table(self, table_id: str, to: Path) -> Path:
        return self._download(f"/v1/tables/{segment(table_id)}/file", to)

    def delete_table(self, table_id: str, etag: str | None = None) -> None:
        """
        Args:
            etag: delete it only if it is still this one.
        """
        self._delete(f"/v1/tables/{segment(table_id)}", etag)

    # Models

    def models(self) -> list[Document]:
        return self._list("/v1/models", "models")

    def upload_model(self, file: Path, name: str) -> Document:
        return self._upload("/v1/models", file, {"name": name})

    def model(self, name: str) -> Document:
        return self._document("GET", f"/v1/models/{segment(name)}")

    def download_model(self, name: str, to: Path) -> Path:
        return self._download(f"/v1/models/{segment(name)}/file", to)

    def delete_model(self, name: str, etag: str | None = None) -> None:
        self._delete(f"/v1/models/{segment(name)}", etag)

    # Saliencies (their list is the client's `saliencies`)

    def upload_saliency(self, file: Path, name: str) -> Document:
        return self._upload("/v1/saliencies", file, {"name": name})

    def saliency(self, name: str) -> Document:
        return self._document("GET", f"/v1/saliencies/{segment(name)}")

    def download_saliency(self, name: str, to: Path) -> Path:
        return self._download(f"/v1/saliencies/{segment(name)}/file", to)

    def delete_saliency(self, name: str, etag: str | None = None) -> None:
        self._delete(f"/v1/saliencies/{segment(name)}", etag)

    # Frontiers

    def frontier(self, body: BaseModel | Mapping[str, Any]) -> Document:
        """Of a saliency on a target within constraints: all its points, and what they rest on."""
        return self._document("POST", "/v1/frontiers", body)

    def staircase(self, body: BaseModel | Mapping[str, Any]) -> bytes:
        """A whole frontier in few bytes (safetensors), to be looked up without asking again."""
        send = self.connection.send
        return send("POST", "/v1/architectures/staircase", json=json_of(body), repeatable=True).content

    # Architectures

    def architecture(self, architecture_id: str) -> Document:
        return self._document("GET", f"/v1/architectures/{segment(architecture_id)}")

    def download_code(self, architecture_id: str, to: Path) -> Path:
        """A model.py that stands alone."""
        return self._download(f"/v1/architectures/{segment(architecture_id)}/code", to)

    def download_json(self, architecture_id: str, to: Path) -> Path:
        return self._download(f"/v1/architectures/{segment(architecture_id)}/json", to)

    def download_onnx(self, architecture_id: str, to: Path) -> Path:
        """With random weights."""
        return self._download(f"/v1/architectures/{segment(architecture_id)}/onnx", to)

    def code_of(self, body: BaseModel | Mapping[str, Any]) -> str:
        """A model.py of any architecture, whether the catalogue has it or not."""
        send = self.connection.send
        return send("POST", "/v1/architectures/code", json=json_of(body), repeatable=True).text

    # Operations

    def audit(self, page: int = 100) -> Iterator[Document]:
        """Audit events, the newest first."""
        return self._pages("/v1/audit", "events", {"limit": page}, cursor="before")

    def _upload(self, path: str, file: Path, query: Mapping[str, str | None]) -> Document:
        headers = {"content-type": MEDIA_TYPES.get(file.suffix, "application/octet-stream")}
        found: Document = document_of(
            self.connection.send("POST", path, file=file, query=dict(query), headers=headers, repeatable=True)
        )
        return found
