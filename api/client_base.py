"""What every method of the client does: send, read the answer's body, turn pages, write a file whole or not at all."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from api.client_errors import UnexpectedAnswerError
from api.client_http import Connection, Patience, Query, document_of
from vit.files import write_atomically

Document = dict[str, Any]
Body = TypeVar("Body", bound=BaseModel)


class Asking:
    """One service, asked by one caller; threads may share it. Close it, or use it in a `with`."""

    def __init__(
        self,
        server: str,
        api_key: str | None = None,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            server: `http://host:port`.
            api_key: where the service wants one.

        Raises:
            SettingsError: an address or a key that cannot be one.
        """
        self.connection = Connection(server, api_key, patience, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection.server!r})"

    def close(self) -> None:
        self.connection.close()

    def _get(self, path: str, kind: type[Body]) -> Body:
        return read(kind, self._document("GET", path))

    def _ask(self, path: str, body: BaseModel | Mapping[str, Any], kind: type[Body]) -> Body:
        """A POST that changes nothing, and may be asked again."""
        return read(kind, self._document("POST", path, body))

    def _document(
        self,
        method: str,
        path: str,
        body: BaseModel | Mapping[str, Any] | None = None,
        query: Query | None = None,
        repeatable: bool = True,
    ) -> Document:
        json = None if body is None else json_of(body)
        found = document_of(self.connection.send(method, path, json=json, query=query, repeatable=repeatable))
        if not isinstance(found, dict):
            raise UnexpectedAnswerError(f"{path} was answered with {type(found).__name__}, not with an object")
        return found

    def _delete(self, path: str, etag: str | None = None) -> None:
        """Not asked again: the second answer to one that got lost would be that nothing is there."""
        headers = {} if etag is None else {"if-match": etag}
        self.connection.send("DELETE", path, repeatable=False, headers=headers)

    def _pages(self, path: str, items: str, query: Query, cursor: str = "cursor") -> Iterator[Document]:
        at: str | int | None = None
        while True:
            page = self._document("GET", path, query={**query, cursor: at})
            yield from self._listed(path, page, items)
            if page.get("next") in (None, at):  # the same page again would have no end
                return
            at = page["next"]

    def _list(self, path: str, items: str) -> list[Document]:
        return self._listed(path, self._document("GET", path), items)

    def _listed(self, path: str, page: Document, items: str) -> list[Document]:
        found = page.get(items)
        if not isinstance(found, list):
            raise UnexpectedAnswerError(f"{path} was answered without a list of {items}")
        return found

    def _download(self, path: str, to: Path) -> Path:
        """Whole or not at all; what carries its sha256 as its ETag is held to that."""

        def fetch(temporary: Path) -> None:
            response = self.connection.download(path, temporary)
            expected = response.headers.get("etag", "").strip('"')
            if len(expected) == 64 and response.headers.get("content-encoding") is None:
                with temporary.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != expected:
                    raise UnexpectedAnswerError(f"{path} arrived damaged: its sha256 is {found}, not {expected}")

        write_atomically(to, fetch)
        return to


def json_of(body: BaseModel | Mapping[str, Any]) -> Any:
    """What was set, and nothing else: a default is the service's to choose."""
    return body.model_dump(mode="json", exclude_unset=True) if isinstance(body, BaseModel) else dict(body)


def read(kind: type[Body], document: object) -> Body:
    """
    Raises:
        UnexpectedAnswerError: names the first thing that is not as this client knows it.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnexpectedAnswerError(
            f"the answer's {where or 'body'} is not as this client knows it: {first['msg']}; is the service of "
            "another version of vitfit?"
        ) from None
