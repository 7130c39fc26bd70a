"""What routes are given: the library, the catalogue, the jobs, the settings, and the promise that the body is JSON.

All asynchronous, though they wait for nothing: the framework runs others in a thread, each of them, at each request.
"""

from email.message import Message
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from api.catalogue_door import CatalogueDoor
from api.event_hub import EventHub
from api.jobs import Jobs
from api.library import Library
from api.settings import Settings
from api.store_door import StoreDoor
from api.worker_process import WorkerProcesses


async def _library(request: Request) -> Library:
    library: Library = request.app.state.library
    return library


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


async def _catalogue(request: Request) -> CatalogueDoor:
    catalogue: CatalogueDoor = request.app.state.catalogue
    return catalogue


async def _store(request: Request) -> StoreDoor:
    store: StoreDoor = request.app.state.store
    return store


async def _workers(request: Request) -> WorkerProcesses:
    workers: WorkerProcesses = request.app.state.workers
    return workers


async def _hub(request: Request) -> EventHub:
    hub: EventHub = request.app.state.hub
    return hub


async def json_only(request: Request) -> None:
    """Refuses a body that does not say it is JSON."""
    given = request.headers.get("content-type", "")
    header = Message()
    header["content-type"] = given
    if not given or header.get_content_type() != "application/json":
        raise HTTPException(415, f"the request body must be application/json, got {given[:80] or 'no content type'}")


LibraryDependency = Annotated[Library, Depends(_library)]
CatalogueDependency = Annotated[CatalogueDoor, Depends(_catalogue)]
JobsDependency = Annotated[Jobs, Depends(_jobs)]
WorkersDependency = Annotated[WorkerProcesses, Depends(_workers)]
HubDependency = Annotated[EventHub, Depends(_hub)]
StoreDependency = Annotated[StoreDoor, Depends(_store)]
SettingsDependency = Annotated[Settings, Depends(_settings)]
JSON_ONLY = Depends(json_only)
