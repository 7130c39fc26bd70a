"""What the service counts, for Prometheus: requests as they go by, the rest when somebody asks."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import logs
from vit.errors import VitfitError

if TYPE_CHECKING:
    from api.jobs import Jobs
    from api.library import Library

KINDS = {
    "/v1/latency/estimate": "estimate",
    "/v1/architectures/search": "search",
    "/v1/architectures/redistribute": "redistribute",
    "/v1/architectures/staircase": "frontier",
    "/v1/frontiers": "frontier",
    "/v1/catalogue/find": "catalogue",
    "/v1/catalogue/pareto": "catalogue",
    "/v1/catalogue/compare": "catalogue",
    "/v1/catalogue/search": "catalogue",
}
"""Paths of questions -> what is asked."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds."""


class Figures:
    """Counters of one process."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vitfit_requests",
            "Answers by route, method and status",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "vitfit_request_seconds",
            "From a request's first byte to its answer's, by route",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._queries = Counter("vitfit_queries", "Questions answered, by kind", ["kind"], registry=self.registry)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if status == 200 and method == "POST" and route in KINDS:
            self._queries.labels(KINDS[route]).inc()

    def text(self, library: "Library", jobs: "Jobs") -> bytes:
        """In Prometheus's text format, with what is looked up now."""
        from prometheus_client import CollectorRegistry, Gauge, generate_latest

        now, found = time.time(), CollectorRegistry()
        ages = Gauge(
            "vitfit_table_age_seconds", "Since the table of a target was made", ["target", "kind"], registry=found
        )
        for entry in library.targets():
            if entry.table is not None and entry.error is None and (made := _seconds(entry.created_at)) is not None:
                ages.labels(entry.slug, entry.kind).set(now - made)
        up = Gauge("vitfit_database_up", "Whether the jobs' database answers", registry=found)
        by_state = Gauge("vitfit_jobs", "Jobs by state", ["state"], registry=found)
        beats = Gauge(
            "vitfit_worker_heartbeat_age_seconds", "Since a worker's last sign of life", ["worker"], registry=found
        )
        try:
            if jobs.may_have_jobs:
                for state, count in jobs.counts().items():
                    by_state.labels(state).set(count)
                for name, beat_at in _beats(jobs):
                    beats.labels(name).set(now - beat_at)
            up.set(1)
        except VitfitError:
            up.set(0)
        return bytes(generate_latest(self.registry) + generate_latest(found))


class Metrics:
    """Counts every request under its route's path, so that ids in paths make no new series, and logs it."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self.app, self._figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answered, status = time.perf_counter(), 0.0, 500

        async def noted(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.perf_counter()
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            seconds = (answered or time.perf_counter()) - started
            self._figures.count(route, scope["method"], status, seconds)
            logs.request(scope, status, seconds)


def _beats(jobs: "Jobs") -> Iterator[tuple[str, float]]:
    from api.job_workers import Workers

    for worker in Workers(jobs.ours()).all():
        if (at := _seconds(worker.beat_at)) is not None:
            yield worker.name, at


def _seconds(text: Any) -> float | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
