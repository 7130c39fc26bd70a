"""Who may ask what, and how often: in front of the application, before a body is read.

Without keys the service answers its own machine alone, and only by a name that no other site can have in a browser
(DNS rebinding). Bound elsewhere it wants a key from everybody.
"""

import ipaddress
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.audit import Audit
from api.catalogue_values import DatabaseError
from api.keys import Key, KeyRefusedError, Keys
from api.keys import Scope as KeyScope
from api.problems import FORBIDDEN, MEDIA_TYPE, NOT_READY, TOO_MANY_REQUESTS, UNAUTHORIZED, WRONG_HOST, Kind
from api.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")

ASKING = (
    "/v1/latency/estimate",
    "/v1/architectures/search",
    "/v1/architectures/redistribute",
    "/v1/architectures/staircase",
    "/v1/architectures/code",
    "/v1/frontiers",
    "/v1/tables/validate",
    "/v1/tables/compare",
    "/v1/catalogue/find",
    "/v1/catalogue/pareto",
    "/v1/catalogue/compare",
    "/v1/catalogue/search",
)
"""Where a POST changes nothing, so that a key to read is enough."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of every answer that does not say something else itself."""

MOST_CALLERS = 10_000


def keys_required(settings: Settings) -> bool:
    """
    Raises:
        SettingsError: a service that everybody could reach, without keys.
    """
    loopback = settings.host in LOOPBACK
    if settings.auth == "off" and not loopback and not settings.insecure:
        raise SettingsError(
            f"VITFIT_AUTH=off would answer everybody who reaches {settings.host}; leave VITFIT_AUTH out and make keys "
            "with `vitfit keys create`, or bind 127.0.0.1, or set VITFIT_INSECURE=1 if something else guards it"
        )
    return settings.auth == "on" or (settings.auth == "auto" and not loopback)


@dataclass(slots=True)
class _Caller:
    """A bucket of tokens, and requests under way."""

    tokens: float
    at: float
    running: int = 0


class Limits:
    """Requests a second and at a time, for each caller; in this process alone."""

    def __init__(self, rate: float, burst: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            rate: requests a second; 0: any.
            burst: how many may come at once before the rate counts.
            most: at a time; 0: any.
        """
        self._rate, self._burst, self._most, self._clock = rate, burst, most, clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    def enter(self, caller: str) -> float:
        """0, or after how many seconds to come again."""
        now = self._clock()
        one = self._callers.setdefault(caller, _Caller(self._burst, now))
        self._callers.move_to_end(caller)
        while len(self._callers) > MOST_CALLERS:
            self._callers.popitem(last=False)
        if self._rate:
            one.tokens = min(self._burst, one.tokens + max(now - one.at, 0.0) * self._rate)
            one.at = now
            if one.tokens < 1:
                return (1 - one.tokens) / self._rate
        if self._most and one.running >= self._most:
            return 1.0
        one.tokens -= 1
        one.running += 1
        return 0.0

    def leave(self, caller: str) -> None:
        if (one := self._callers.get(caller)) is not None:
            one.running -= 1


class Guard:
    """Refuses what it must, puts security headers on what it lets through, and notes what changed something."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, audit: Audit) -> None:
        self.app, self._keys, self._audit = app, keys, audit
        self._required = keys_required(settings)
        self._open_host = settings.host not in LOOPBACK or self._required
        self._limits = Limits(settings.max_rate, settings.max_burst, settings.max_at_once)
        self._auto = settings.auth == "auto"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), _route_path(scope)
        # uvicorn has a --host of its own, of which the settings know nothing.
        required = self._required or (self._auto and _is_outside(scope))
        open_host = self._open_host or required
        key: Key | None = None
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    if name not in found and not (name == "cache-control" and "etag" in found):
                        found[name] = value
            await send(message)

        client = (scope.get("client") or ("?", 0))[0]
        caller = client
        try:
            if not open_host and not _local(headers.get("host", "")):
                await _refuse(
                    scope,
                    noted,
                    WRONG_HOST,
                    f"this service answers to localhost, not to {headers.get('host', '')[:80]!r}",
                )
                return
            if not open_host and _of_another_site(scope["method"], headers):
                await _refuse(scope, noted, WRONG_HOST, "the request comes from a page of another site")
                return
            if required and (path.startswith("/v1/") or path == "/metrics" or path == "/openapi.json"):
                try:
                    key = await self._checked(headers, _scope_of(scope["method"], path))
                except KeyRefusedError as error:
                    # Whoever guesses is held to a rate too, and fills neither the database nor the audit with it.
                    if seconds := self._limits.enter(client):
                        wait = {"retry-after": str(max(1, round(seconds + 0.5)))}
                        await _refuse(scope, noted, TOO_MANY_REQUESTS, "too many refused requests", wait)
                        return
                    self._limits.leave(client)
                    kind = UNAUTHORIZED if error.status == 401 else FORBIDDEN
                    challenge = {"www-authenticate": "Bearer"} if error.status == 401 else {}
                    await _refuse(scope, noted, kind, str(error), challenge)
                    return
                except DatabaseError as error:
                    await _refuse(scope, noted, NOT_READY, str(error))
                    return
                caller = key.id
                scope.setdefault("state", {})["key"] = key.id
            if required and (seconds := self._limits.enter(caller)):
                wait = {"retry-after": str(max(1, round(seconds + 0.5)))}
                await _refuse(
                    scope, noted, TOO_MANY_REQUESTS, f"too many requests at once; come again in {seconds:.1f} s", wait
                )
                return
            try:
                await self.app(scope, receive, noted)
            finally:
                if required:
                    self._limits.leave(caller)
        finally:
            changes = scope["method"] not in ("GET", "HEAD", "OPTIONS") and path not in ASKING
            if (changes and path.startswith("/v1/")) or status in (401, 403):
                request = scope.get("state", {}).get("request_id", "")
                self._audit.note(key.id if key else None, client, scope["method"], path, status, request)

    async def _checked(self, headers: Headers, scope: KeyScope) -> Key:
        word, _, text = headers.get("authorization", "").partition(" ")
        if word.lower() != "bearer" or not text:
            raise KeyRefusedError(
                "this service wants an API key: Authorization: Bearer vf_...; its operator makes one with "
                "`vitfit keys create`",
                401,
            )
        key = await run_in_threadpool(self._keys.check, text.strip())
        if not key.may(scope):
            raise KeyRefusedError(f"the API key {key.prefix}... may {key.scope}; this needs {scope}", 403)
        return key


def _scope_of(method: str, path: str) -> KeyScope:
    if path.startswith("/v1/audit"):
        return "admin"
    return "read" if method in ("GET", "HEAD", "OPTIONS") or path in ASKING else "write"


def _route_path(scope: Scope) -> str:
    """As the router sees it: without the prefix of a proxy (`--root-path`)."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _is_outside(scope: Scope) -> bool:
    """Whether the socket's own address is one that others reach; a Unix socket's path, or a test's name, is none."""
    try:
        return not ipaddress.ip_address(str((scope.get("server") or ("",))[0]).split("%")[0]).is_loopback
    except ValueError:
        return False


def _of_another_site(method: str, headers: Headers) -> bool:
    """A form or script elsewhere that uses a browser on this machine: a POST without a body asks no leave."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return False
    try:
        foreign = "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host", "")
    except ValueError:
        return True
    return foreign or headers.get("sec-fetch-site") == "cross-site"


def _local(host: str) -> bool:
    """Whether a Host header can be this machine's own: a browser on another site sends that site's name, with a dot."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower().rstrip(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return "." not in name


async def _refuse(scope: Scope, send: Send, kind: Kind, detail: str, headers: dict[str, str] | None = None) -> None:
    document: dict[str, Any] = kind.document(detail, quote(scope["path"], errors="replace"))
    body = json.dumps(document, separators=(",", ":")).encode("ascii")
    sent = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": kind.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
