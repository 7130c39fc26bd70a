"""The jobs of a service, in the place of those of this machine's database: the same methods over HTTP."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from api.cli_remote import connect
from api.client_events import JobEvent
from api.job_bodies import JobBody, ListedJob
from api.job_events import Event
from api.jobs import Job, Progress, State


class RemoteJobs:
    """Raises ClientError from every method."""

    def __init__(self, server: str) -> None:
        self._client = connect(server)

    def newest(self, limit: int, states: Sequence[State], kinds: Sequence[str]) -> list[Job]:
        found = self._client.jobs(state=states, kind=kinds, page=min(limit, 100))
        return [_job(body) for body in islice(found, limit)]

    def get(self, job_id: str) -> Job:
        return _job(self._client.job(job_id))

    def cancel(self, job_id: str) -> Job:
        return _job(self._client.cancel_job(job_id))

    def retry(self, job_id: str) -> Job:
        return _job(self._client.retry_job(job_id))

    def follow(self, job_id: str) -> Iterator[tuple[Job, list[Event]]]:
        """A job and what happened, as it happens, until it ends."""
        job = self.get(job_id)
        yield job, []
        for event in self._client.follow_job(job.id):
            if event.kind == "progress":
                noted = Progress(event.data["stage"], event.data["done"], event.data["total"])
                job = replace(job, state="running", progress=noted)
                yield job, []
            elif event.kind != "end":
                yield job, [_event(event)]
        yield self.get(job_id), []

    def close(self) -> None:
        self._client.close()


def _event(event: JobEvent) -> Event:
    data = {name: value for name, value in event.data.items() if name != "at"}
    return Event(int(event.id or 0), event.kind, data, str(event.data.get("at", "")))


def _job(body: ListedJob) -> Job:
    document = body.model_dump(mode="json", exclude_unset=True)
    progress = body.progress
    result = document.get("result")
    if isinstance(body, JobBody) and result is not None:
        # Names by kind, as the job itself has them; the service gives links.
        result.setdefault("files", {kind: link.rpartition("/")[2] for kind, link in body.files.items()})
    return Job(
        id=body.id,
        kind=body.kind,
        state=body.state,
        request=document["request"],
        progress=None if progress is None else Progress(progress.stage, progress.done, progress.total),
        created_at=body.created_at,
        finished_at=body.finished_at,
        problem=document.get("error"),
        result=result,
        retry_of=body.retry_of,
    )
