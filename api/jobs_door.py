"""The jobs as the command line sees them: those of the settings' database. One small place, for another way to reach
them, over HTTP, to stand in."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from api.job_events import Event, Events
from api.jobs import FINISHED, Job, Jobs, State
from api.settings import Settings

POLL_SECONDS = 0.5


class LocalJobs:
    """Raises JobsUnavailableError from every method, and NoSuchJobError of an id that no job has."""

    def __init__(self, settings: Settings) -> None:
        self._jobs = Jobs.of(settings)

    def newest(self, limit: int, states: Sequence[State], kinds: Sequence[str]) -> list[Job]:
        return self._jobs.newest(limit, states=states, kinds=kinds)

    def get(self, job_id: str) -> Job:
        return self._jobs.get(job_id)

    def cancel(self, job_id: str) -> Job:
        return self._jobs.cancel(job_id)

    def retry(self, job_id: str) -> Job:
        return self._jobs.retry(job_id)

    def follow(self, job_id: str) -> Iterator[tuple[Job, list[Event]]]:
        """A job and what happened since the last look, until it ends."""
        events, after = Events(self._jobs.ours()), 0
        while True:
            job = self._jobs.get(job_id)
            found = events.after({job_id: after})[job_id]
            after = found[-1].seq if found else after
            yield job, found
            if job.state in FINISHED and not found:
                return
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        self._jobs.close()


def job_document(job: Job) -> dict[str, Any]:
    """In JSON; the fields are those of the REST interface."""
    from api.job_bodies import JobBody

    return JobBody.of(job).model_dump(mode="json")
