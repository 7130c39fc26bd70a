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

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from pydantic import BaseModel

from api.catalogue_bodies import (
    BudgetSearchRequest,
    BudgetSearchResponse,
    CompareRequest,
    CompareResponse,
    EntryList,
    FindRequest,
    ParetoRequest,
)
from api.client_base import Document, json_of, read
from api.client_errors import ServiceError
from api.client_events import JobEvent, events_of
from api.client_http import AGAIN, Query, document_of, segment
from api.client_library import LibraryCalls
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

STREAM_TIMEOUT = 60.0
"""Seconds without a sign of life; a stream says something every ten."""


class Client(LibraryCalls):
    """One service, asked by one caller; threads may share it. Close it, or use it in a `with`."""

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
        response = self.connection.send("POST", "/v1/jobs", json=json_of(body), repeatable=True, headers=headers)
        return read(JobBody, document_of(response))

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
            yield read(ListedJob, document)

    def job(self, job_id: str) -> JobBody:
        return self._get(_job(job_id), JobBody)

    def cancel_job(self, job_id: str) -> JobBody:
        """Asked twice, a job is as cancelled as asked once."""
        return read(JobBody, self._document("POST", f"{_job(job_id)}/cancel"))

    def retry_job(self, job_id: str) -> JobBody:
        """A new job that goes on where a failed or cancelled one stopped."""
        return read(JobBody, self._document("POST", f"{_job(job_id)}/retry", repeatable=False))

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
        return self._list("/v1/studies", "studies")

    def study(self, name: str) -> Document:
        return self._document("GET", f"/v1/studies/{segment(name)}")

    def study_trials(self, name: str, page: int = 1000) -> Iterator[Document]:
        """Those that ended well, by number."""
        return self._pages(f"/v1/studies/{segment(name)}/trials", "trials", {"limit": page}, cursor="after")


def _job(job_id: str) -> str:
    return f"/v1/jobs/{segment(job_id)}"
