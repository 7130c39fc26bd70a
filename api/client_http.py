"""Requests to a service: who asks, how long to wait, what to ask again, and what an error is.

Only what cannot happen twice is asked again: a request that never arrived, a question, or one that the service knows
by its Idempotency-Key or its content. The wait doubles, with a random part so that many clients do not come back at
once; where the service says `Retry-After`, that is how long.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from api.client_errors import ClientError, ServiceError, ServiceUnreachableError, UnexpectedAnswerError, problem_of
from api.settings import SettingsError

AGAIN = frozenset({429, 502, 503, 504})
"""Statuses that may be gone a moment later."""

Query = Mapping[str, "str | int | float | bool | list[str] | None"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for an answer, and how often to ask.

    Attributes:
        timeout: seconds for a connection, and between two bytes of an answer.
        retries: how often to ask again.
        first_wait, longest_wait: seconds; a `Retry-After` beyond the longest is not waited for.
    """

    timeout: float = 60.0
    retries: int = 4
    first_wait: float = 0.25
    longest_wait: float = 30.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC), repr=False)

    def wait(self, attempt: int) -> float:
        """Seconds before the next try: at most `first_wait` doubled `attempt` times, at least half of that."""
        most = min(self.first_wait * 2.0**attempt, self.longest_wait)
        return most * (0.5 + 0.5 * self.chance())

    def told(self, response: httpx.Response) -> float | None:
        """What `Retry-After` says, in seconds or as a date."""
        text = response.headers.get("retry-after", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            return None
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return max(0.0, (at - self.now()).total_seconds())


def segment(name: str) -> str:
    """A name as one part of a path; with its slashes quoted it stays one.

    Raises:
        ClientError: a name that would lead elsewhere.
    """
    if name in ("", ".", ".."):
        raise ClientError(f"{name!r} is no name that a service can know anything by")
    return quote(name, safe="")


class Connection:
    """One service, asked by one caller. Threads may share it."""

    def __init__(
        self,
        server: str,
        api_key: str | None = None,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            server: `http://host:port`, with a path where the service is behind one.
            api_key: as `vitfit keys create` printed it.
            transport: of a test.

        Raises:
            SettingsError: an address or a key that cannot be one.
        """
        self.server = _address(server)
        self.patience = patience or Patience()
        headers = {"user-agent": "vitfit-client"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
                raise SettingsError("VITFIT_API_KEY is no key: it has blanks or other signs that a key never has")
            headers["authorization"] = f"Bearer {api_key}"
        # No redirects: they would carry the key and the body to wherever somebody points.
        self._http = httpx.Client(
            base_url=self.server, headers=headers, timeout=self.patience.timeout, transport=transport
        )

    def __repr__(self) -> str:
        return f"Connection({self.server!r})"  # the key stays out of logs

    def close(self) -> None:
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool,
        json: object = None,
        file: Path | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """An answer that is none of the errors.

        Args:
            repeatable: asking twice does no more than asking once.
            file: the body, read from disk as it is sent.

        Raises:
            ServiceError: the service's problem.
            ServiceUnreachableError: nothing answered.
            ClientError: the file cannot be read.
        """

        def once() -> httpx.Response:
            if file is None:
                return self._http.request(method, path, json=json, params=_given(query), headers=headers)
            try:
                with file.open("rb") as body:
                    return self._http.request(method, path, content=body, params=_given(query), headers=headers)
            except OSError as error:
                raise ClientError(f"{file} cannot be read: {error.strerror or error}") from None

        return self._patiently(once, repeatable)

    def download(self, path: str, to: Path, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Write an answer's body to a file, from its start again where the connection breaks."""

        def once() -> httpx.Response:
            with self._http.stream("GET", path, headers=headers) as response:
                if response.is_success:
                    with to.open("wb") as file:
                        for part in response.iter_bytes(2**16):
                            file.write(part)
                else:
                    response.read()
            return response

        try:
            return self._patiently(once, repeatable=True)
        except OSError as error:
            raise ClientError(f"{to} cannot be written: {error.strerror or error}") from None

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], timeout: float) -> Iterator[httpx.Response]:
        """One try; errors of the way are httpx's own."""
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise self.error(response)
            yield response

    def _patiently(self, once: Callable[[], httpx.Response], repeatable: bool) -> httpx.Response:
        attempt = 0
        while True:
            last = attempt >= self.patience.retries
            wait = self.patience.wait(attempt)
            try:
                response = once()
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # it never arrived
                if last:
                    raise self.unreachable(error) from None
            except httpx.TransportError as error:
                if last or not repeatable:
                    raise self.unreachable(error) from None
            else:
                if response.is_success or response.status_code == 304:
                    return response
                # A 429 is given before anything is done, and may be asked again whatever it is.
                again = response.status_code in AGAIN and (repeatable or response.status_code == 429)
                told = self.patience.told(response)
                if last or not again or (told is not None and told > self.patience.longest_wait):
                    raise self.error(response)
                wait = wait if told is None else told
            self.patience.sleep(wait)
            attempt += 1

    def error(self, response: httpx.Response) -> ServiceError:
        status, path = response.status_code, response.request.url.path
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "an unknown status"
        problem = problem_of(_json_or_none(response), status if status >= 400 else 502, phrase, path)
        return ServiceError(problem, response.headers.get("x-request-id", ""), self.patience.told(response))

    def unreachable(self, error: httpx.TransportError) -> ServiceUnreachableError:
        what = str(error) or type(error).__name__
        return ServiceUnreachableError(
            f"the service at {self.server} does not answer: {what}; is it running (`vitfit serve`), "
            "and is VITFIT_SERVER its address?"
        )


def document_of(response: httpx.Response) -> Any:
    """
    Raises:
        UnexpectedAnswerError: the body is not JSON.
    """
    try:
        return response.json()
    except ValueError:
        kind = response.headers.get("content-type", "something without a type")
        raise UnexpectedAnswerError(f"{response.request.url.path} was answered with {kind}, not with JSON") from None


def _json_or_none(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None


def _given(query: Query | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _address(server: str) -> str:
    try:
        url = httpx.URL(server.strip())
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise SettingsError(f"VITFIT_SERVER must be an address like http://127.0.0.1:8000, got {server!r:.100}")
    if url.userinfo:
        raise SettingsError("VITFIT_SERVER must be without a user and password; the key goes into VITFIT_API_KEY")
    return str(url).rstrip("/")
