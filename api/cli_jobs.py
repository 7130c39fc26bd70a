"""Commands about jobs: list, show, follow, cancel, retry; and the worker that does them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.console import JsonOption, Server, err, escaped, out, print_json, print_table

if TYPE_CHECKING:
    from api.jobs import Job
    from api.jobs_door import LocalJobs
    from api.jobs_remote import RemoteJobs

app = typer.Typer(name="jobs", help="Jobs: what waits, runs and was done.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, or how it begins.")]


@contextmanager
def _opened(server: str | None) -> "Iterator[LocalJobs | RemoteJobs]":
    from api.jobs_door import LocalJobs
    from api.jobs_remote import RemoteJobs
    from api.settings import Settings

    door = LocalJobs(Settings()) if server is None else RemoteJobs(server)
    try:
        yield door
    finally:
        door.close()


@app.command(name="list")
def list_jobs(
    state: Annotated[
        list[str] | None, typer.Option(help="queued, running, done, failed or cancelled; may be repeated.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="compress, prune, ...; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """The newest jobs."""
    from api.job_kinds import KINDS
    from api.jobs import STATES
    from api.jobs_door import job_document
    from vit.errors import UnknownNameError

    known = dict.fromkeys(STATES.values())
    for one in state or ():
        if one not in known:
            raise UnknownNameError("state", one, known)
    for one in kind or ():
        if one not in KINDS:
            raise UnknownNameError("kind of job", one, KINDS)
    with _opened(server) as door:
        found = door.newest(limit, state or (), kind or ())  # type: ignore[arg-type]
    if as_json:
        print_json([job_document(job) for job in found])
        return
    rows = [(job.id, job.kind, job.state, f"{job.created_at:%m-%d %H:%M}", _how_far(job)) for job in found]
    print_table("Jobs", ("id", "kind", "state", "since (UTC)", "progress"), rows)


@app.command()
def show(job: JobId, server: Server = None, as_json: JsonOption = False) -> None:
    """One job: what was asked, how far it is, and what came of it."""
    from api.jobs_door import job_document

    with _opened(server) as door:
        found = door.get(_whole(door, job))
    if as_json:
        print_json(job_document(found))
        return
    out.print(f"{found.id}: {found.kind}, {found.state} {_how_far(found)}", highlight=False)
    for name, value in found.request.items():
        if name != "kind":
            out.print(f"  {name}: {escaped(str(value))}", highlight=False)
    if found.problem is not None:
        out.print(f"error: {escaped(str(found.problem['detail']))}", highlight=False)
    for name, digest in found.digests.items():
        out.print(f"made {name} ({digest[:12]})", highlight=False)


@app.command()
def follow(job: JobId, server: Server = None, as_json: JsonOption = False) -> None:
    """Print what happens to a job, to its end. Exit status 1: it failed or was cancelled."""
    from api.job_events import log_text
    from api.jobs_door import job_document

    last = ""
    with _opened(server) as door:
        for found, events in door.follow(_whole(door, job)):
            if events:
                err.print(log_text(events).rstrip("\n"), highlight=False, markup=False)
            if (now := _how_far(found)) != last and found.state == "running":
                err.print(now, highlight=False)
                last = now
    if as_json:
        print_json(job_document(found))
    else:
        detail = "" if found.problem is None else f": {found.problem['detail']}"
        out.print(f"{found.state}{escaped(detail)}", highlight=False)
    if found.state != "done":
        raise typer.Exit(1)


@app.command()
def cancel(job: JobId, server: Server = None, as_json: JsonOption = False) -> None:
    """Cancel a job that waits or runs; it stops within seconds."""
    with _opened(server) as door:
        _tell(door.cancel(_whole(door, job)), as_json)


@app.command()
def retry(job: JobId, server: Server = None, as_json: JsonOption = False) -> None:
    """Try a failed or cancelled job again, as a new one that goes on after its last finished step."""
    with _opened(server) as door:
        _tell(door.retry(_whole(door, job)), as_json)


def _tell(job: "Job", as_json: bool) -> None:
    from api.jobs_door import job_document

    if as_json:
        print_json(job_document(job))
    else:
        out.print(f"{job.id}: {job.state}", highlight=False)


def _whole(door: "LocalJobs | RemoteJobs", beginning: str) -> str:
    """The id that begins so, where one of the newest does; else what was given."""
    if len(beginning) == 32:
        return beginning
    found = [job.id for job in door.newest(1000, (), ()) if job.id.startswith(beginning)]
    return found[0] if len(found) == 1 else beginning


def _how_far(job: "Job") -> str:
    noted = job.progress
    return "" if noted is None else f"{noted.stage} {noted.done} of {noted.total}"


def worker(
    queue: Annotated[
        str, typer.Option("--queue", "-q", help="Whose jobs it does: cpu, cuda, or one of VITFIT_QUEUES.")
    ] = "cpu",
    name: Annotated[str | None, typer.Option(help="How it is called in logs (default: host and process).")] = None,
    gpu: Annotated[int | None, typer.Option(min=0, help="Number of the GPU that its jobs see (default: all).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Default: VITFIT_DATA_DIR or the user data folder.")] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when there was no job for VITFIT_WORKER_IDLE_SECONDS.")
    ] = False,
) -> None:
    """Do jobs of one queue, one at a time, until stopped; it then hands its job to another worker.

    Start as many as you like, on one machine or, with VITFIT_DATABASE_URL and VITFIT_BLOB_URL, on many.
    """
    from api.settings import Settings
    from vit.errors import UnknownNameError

    given: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    settings = Settings(**given)
    if queue not in settings.queues:
        raise UnknownNameError("queue", queue, settings.queues)
    from api.job_workers import default_name
    from api.worker import Worker

    found = Worker(settings, queue, name or default_name(), gpu)
    err.print(f"worker {found.name} does jobs of {queue}; stop it with Ctrl-C", highlight=False)
    found.run(idle=settings.worker_idle_seconds if until_idle else None)
