"""What every request passes through before the application sees it."""

import re
from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.uploads import PATHS as UPLOADS

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """Names every request: the caller's X-Request-ID where it is a plain word, else a new one, in the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, named)


class BodyLimit:
    """413 for a body over the limit, told by its Content-Length or found out while it is read (chunked bodies)."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_upload_bytes: int | None = None) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.max_upload_bytes = max_bytes if max_upload_bytes is None else max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = scope.get("method") == "POST" and scope.get("path") in UPLOADS
        limit = self.max_upload_bytes if upload else self.max_bytes
        declared = Headers(scope=scope).get("content-length", "")
        too_large = declared.isascii() and declared.isdigit() and int(declared[:18]) > limit
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            # An HTTPException out of `receive` reaches the handlers of the application like one out of a route.
            if too_large:
                raise _too_large(limit, declared)
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _too_large(limit, "more")
            return message

        await self.app(scope, counted, send)


def _too_large(limit: int, given: str) -> HTTPException:
    return HTTPException(413, f"the request body may have at most {limit} bytes, got {given}")
