"""A typed client of the service: a method for every route.

    with Client("http://127.0.0.1:8000") as client:
        body = SearchRequest(saliency="deit-s", target="v100-eager-amp-b256-n197", budget_ms=12.0)
        found = client.search(body)
        job = client.start_job(CompressJobRequest(kind="compress", model="deit-s", data="flowers", ...))
        for event in client.follow_job(job.id):
            print(event.kind, event.data)

Questions and answers are the service's own bodies; a mapping is as good as a question, and is looked at by the service
alone. Every error is a `ClientError`; a `ServiceError` carries the
service's problem document. What may be asked twice is asked again where the way to the service breaks (client_http).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from api.catalogue_bodies import (
    BudgetSearchRequest,
    BudgetSearchResponse,
    CompareRequest,
    CompareResponse,
    EntryList,
    FindRequest,
    ParetoRequest,
)
from api.client_errors import ServiceError, UnexpectedAnswerError
from api.client_events import JobEvent, events_of
from api.client_http import AGAIN, Connection, Patience, Query, document_of, segment
from api.client_store import StoreCalls
from api.job_bodies import JobBody, ListedJob
from api.questions import (
    EstimateRequest,
    EstimateResponse,
    RedistributeRequest,
    RedistributeResponse,
    SearchRequest,
    SearchResponse,
)
from api.schemas import Health, PresetList, SaliencyList, TargetBody, TargetList
from vit.files import write_atomically

Document = dict[str, Any]
Body = TypeVar("Body", bound=BaseModel)

STREAM_TIMEOUT = 60.0
"""Seconds without a sign of life; a stream says something every ten."""


class Client(StoreCalls):
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
        return f"Client({self.connection.server!r})"

    def close(self) -> None:
        self.connection.close()

    # Is it there?

    def live(self) -> Health:
        return self._get("/health/live", Health)

    def ready(self) -> Health:
        """
        Raises:
            ServiceError: it is not; `problem` says why.
        """
        return self._get("/health/ready", Health)

    def metrics(self) -> str:
        """Prometheus' text format."""
        return self.connection.send("GET", "/metrics", repeatable=True).text

    def openapi(self) -> Document:
        return self._document("GET", "/openapi.json")

    # What can be asked about

    def targets(self) -> TargetList:
        return self._get("/v1/targets", TargetList)

    def target(self, slug: str) -> TargetBody:
        return self._get(f"/v1/targets/{segment(slug)}", TargetBody)

    def presets(self) -> PresetList:
        return self._get("/v1/presets", PresetList)

    def saliencies(self) -> SaliencyList:
        return self._get("/v1/saliencies", SaliencyList)

    # Questions

    def estimate(self, body: EstimateRequest | Mapping[str, Any]) -> EstimateResponse:
        return self._ask("/v1/latency/estimate", body, EstimateResponse)

    def search(self, body: SearchRequest | Mapping[str, Any]) -> SearchResponse:
        return self._ask("/v1/architectures/search", body, SearchResponse)

    def redistribute(self, body: RedistributeRequest | Mapping[str, Any]) -> RedistributeResponse:
        return self._ask("/v1/architectures/redistribute", body, RedistributeResponse)

    def find_entries(self, body: FindRequest | Mapping[str, Any]) -> EntryList:
        return self._ask("/v1/catalogue/find", body, EntryList)

    def pareto_front(self, body: ParetoRequest | Mapping[str, Any]) -> EntryList:
        return self._ask("/v1/catalogue/pareto", body, EntryList)

    def compare(self, body: CompareRequest | Mapping[str, Any]) -> CompareResponse:
        return self._ask("/v1/catalogue/compare", body, CompareResponse)

    def search_by_budget(self, body: BudgetSearchRequest | Mapping[str, Any]) -> BudgetSearchResponse:
        return self._ask("/v1/catalogue/search", body, BudgetSearchResponse)

    # Jobs

    def start_job(self, body: BaseModel | Mapping[str, Any], idempotency_key: str | None = None) -> JobBody:
        """
        Args:
            body: of any kind of job.
            idempotency_key: by which the service knows this job if it is asked for twice; by default a new one, so
                that a broken connection never makes two jobs.
        """
        headers = {"idempotency-key": idempotency_key or uuid4().hex}
        response = self.connection.send("POST", "/v1/jobs", json=_json(body), repeatable=True, headers=headers)
        return _read(JobBody, document_of(response))

    def jobs(
        self,
        *,
        state: Sequence[str] = (),
        kind: Sequence[str] = (),
        since: str | None = None,
        page: int = 100,
    ) -> Iterator[ListedJob]:
        """The newest first; further pages are fetched as they are needed."""
        query: Query = {"state": list(state), "kind": list(kind), "since": since, "limit": page}
        for document in self._pages("/v1/jobs", "jobs", query):
            yield _read(ListedJob, document)

    def job(self, job_id: str) -> JobBody:
        return self._get(_job(job_id), JobBody)

    def cancel_job(self, job_id: str) -> JobBody:
        """Asked twice, a job is as cancelled as asked once."""
        return _read(JobBody, self._document("POST", f"{_job(job_id)}/cancel"))

    def retry_job(self, job_id: str) -> JobBody:
        """A new job that goes on where a failed or cancelled one stopped."""
        return _read(JobBody, self._document("POST", f"{_job(job_id)}/retry", repeatable=False))

    def delete_job(self, job_id: str) -> None:
        self._delete(_job(job_id))

    def job_log(self, job_id: str) -> str:
        return self.connection.send("GET", f"{_job(job_id)}/log", repeatable=True).text

    def follow_job(self, job_id: str, after: str | None = None) -> Iterator[JobEvent]:
        """What happens to a job, to its end; a stream that breaks goes on where it was.

        Args:
            after: id of the last event that is known already.

        Raises:
            ServiceUnreachableError: nothing answers any more.
        """
        patience, path, failed = self.connection.patience, f"{_job(job_id)}/events", 0
        while True:
            headers = {"accept": "text/event-stream"} | ({} if after is None else {"last-event-id": after})
            wait: float | None = None
            cause = httpx.TransportError("the stream ended before the job did")
            try:
                with self.connection.stream(path, headers, STREAM_TIMEOUT) as response:
                    if response.status_code == 204:
                        return
                    for event in events_of(response.iter_text()):
                        if event.id not in (None, after):  # it gets on; the same again and again does not count
                            failed, after = 0, event.id
                        yield event
                        if event.kind == "end":
                            return
            except httpx.TransportError as error:
                cause = error
            except ServiceError as error:
                if error.status not in AGAIN or failed >= patience.retries:
                    raise
                wait = error.retry_after
                if wait is not None and wait > patience.longest_wait:
                    raise
            if failed >= patience.retries:
                raise self.connection.unreachable(cause) from None
            patience.sleep(patience.wait(failed) if wait is None else wait)
            failed += 1

    def download_job_file(self, job_id: str, name: str, to: Path) -> Path:
        """A file that a job made; `files` of the job lists them."""
        return self._download(f"{_job(job_id)}/files/{segment(name)}", to)

    # Studies

    def studies(self) -> list[Document]:
        found: list[Document] = self._document("GET", "/v1/studies")["studies"]
        return found

    def study(self, name: str) -> Document:
        return self._document("GET", f"/v1/studies/{segment(name)}")

    def study_trials(self, name: str, page: int = 1000) -> Iterator[Document]:
        """Those that ended well, by number."""
        return self._pages(f"/v1/studies/{segment(name)}/trials", "trials", {"limit": page}, cursor="after")

    # How

    def _get(self, path: str, kind: type[Body]) -> Body:
        return _read(kind, self._document("GET", path))

    def _ask(self, path: str, body: BaseModel | Mapping[str, Any], kind: type[Body]) -> Body:
        """A POST that changes nothing, and may be asked again."""
        return _read(kind, self._document("POST", path, body))

    def _document(
        self,
        method: str,
        path: str,
        body: BaseModel | Mapping[str, Any] | None = None,
        query: Query | None = None,
        repeatable: bool = True,
    ) -> Document:
        json = None if body is None else _json(body)
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
            yield from page[items]
            if page.get("next") in (None, at):  # the same page again would have no end
                return
            at = page["next"]

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


def _job(job_id: str) -> str:
    return f"/v1/jobs/{segment(job_id)}"


def _json(body: BaseModel | Mapping[str, Any]) -> Any:
    """What was set, and nothing else: a default is the service's to choose."""
    return body.model_dump(mode="json", exclude_unset=True) if isinstance(body, BaseModel) else dict(body)


def _read(kind: type[Body], document: object) -> Body:
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
