"""ETags, and what requests say about them (RFC 9110, section 13)."""

import hashlib
from typing import Annotated

from fastapi import Header, Request, Response

from api.errors import ChangedError

IfMatch = Annotated[str | None, Header(description="Only if its ETag is still this one; 412 where it is another.")]


def weak_etag(*of: object) -> str:
    """Of an answer that depends on these values alone."""
    return f'W/"{hashlib.sha256(repr(of).encode()).hexdigest()[:32]}"'


def unchanged(request: Request, etag: str) -> Response | None:
    """304 where the caller has this one already."""
    given = request.headers.get("if-none-match", "")
    if given.strip() == "*" or _plain(etag) in {_plain(one) for one in given.split(",")}:
        return Response(status_code=304, headers={"etag": etag})
    return None


def wanted_digest(if_match: str | None, digest: str) -> str | None:
    """The digest that a change is for; None: any.

    Raises:
        ChangedError: If-Match names none of `digest`.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    if digest not in {one.strip().strip('"') for one in if_match.split(",")}:
        raise ChangedError(f'it is another one by now: its ETag is "{digest}", If-Match says {if_match[:80]}')
    return digest


def _plain(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')
