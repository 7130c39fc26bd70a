"""create_app(settings): the REST service. Wiring only; `uvicorn --factory api.app:create_app` serves it."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import errors, problems
from api.audit import Audit
from api.catalogue_door import CatalogueDoor
from api.event_hub import EventHub
from api.guard import Guard
from api.jobs import Jobs
from api.keys import Keys
from api.library import Library
from api.metrics import Figures, Metrics
from api.middleware import BodyLimit, RequestId
from api.routes import (
    architectures,
    catalogue,
    code,
    dashboard,
    frontiers,
    health,
    jobs,
    latency,
    models,
    operations,
    presets,
    saliencies,
    staircase,
    studies,
    tables,
    targets,
)
from api.settings import Settings
from api.store_door import StoreDoor
from api.uploads import sweep
from api.worker_process import WorkerProcesses

logger = logging.getLogger(__name__)

VERSION = "0.1.0"

DESCRIPTION = """Fits a Vision Transformer to a latency budget on the hardware you name, and shows the proof.

Sizes are timm's: `embed_dim`, and per block `num_heads`, `qk_dim`, `v_dim` (channels per head) and `mlp_dim`.
A latency belongs to one target, by its slug; numbers that are modelled say so in `kind`. For the analytic target
`macs` every `_ms` field counts millions of MACs (one multiply-add is one MAC).

Every error is `application/problem+json` (RFC 9457). Every response carries `X-Request-ID`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """
    Args:
        settings: from the environment where not given.
    """
    settings = settings or Settings()
    app = FastAPI(
        title="vitfit",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.settings = settings
    app.state.library = Library.of(settings)
    app.state.catalogue = CatalogueDoor(settings)
    app.state.store = StoreDoor(settings)
    app.state.keys = Keys(app.state.store.database)
    app.state.audit = Audit(app.state.store.database)
    app.state.figures = Figures()
    app.state.jobs = Jobs.of(settings)
    app.state.workers = WorkerProcesses(settings)
    app.state.hub = EventHub(app.state.jobs, settings.max_event_streams)
    for routes in (
        health,
        targets,
        presets,
        saliencies,
        latency,
        architectures,
        staircase,
        code,
        catalogue,
        jobs,
        studies,
        tables,
        models,
        frontiers,
        operations,
    ):
        app.include_router(routes.router)
    dashboard.install(app)
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_upload_bytes=settings.max_upload_bytes)
    app.add_middleware(Guard, settings=settings, keys=app.state.keys, audit=app.state.audit)
    app.add_middleware(Metrics, figures=app.state.figures)
    app.add_middleware(RequestId)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    folder = app.state.settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("the data folder %s cannot be made: %s", folder, error)
    if app.state.jobs.may_have_jobs:
        app.state.workers.ensure_all()
    sweep(folder)
    app.state.store.start()
    yield
    app.state.audit.close()
    app.state.store.close()
    await app.state.hub.close()
    app.state.workers.stop()
    app.state.jobs.close()
    app.state.catalogue.close()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The framework's description with our problems in place of its own errors."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS
        )
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        schemas["Problem"] = problems.Problem.model_json_schema()
        refusals = problems.documented(problems.UNAUTHORIZED, problems.FORBIDDEN, problems.TOO_MANY_REQUESTS)
        for name, path in document["paths"].items():
            for operation in path.values():
                if name.startswith("/v1/"):
                    for status, refusal in refusals.items():
                        operation["responses"].setdefault(str(status), refusal)
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]  # of a name in the path, which can be any text
        app.openapi_schema = document
    return app.openapi_schema


_TAGS = [
    {"name": "health", "description": "Is the process alive, and can it answer?"},
    {"name": "targets", "description": "What a latency belongs to, and what is known about it."},
    {"name": "presets", "description": "Architectures by name, and published results."},
    {"name": "tables", "description": "Latency tables: uploaded, checked, handed on, compared."},
    {"name": "models", "description": "Checkpoints that jobs start from."},
    {"name": "frontiers", "description": "Every budget of a saliency on a target."},
    {"name": "saliencies", "description": "What a search starts from."},
    {"name": "latency", "description": "How long architectures take."},
    {"name": "architectures", "description": "Architectures for a budget."},
    {
        "name": "catalogue",
        "description": "What was found, told or published, and what is known of it.",
    },
    {"name": "operations", "description": "For those who operate the service."},
    {"name": "jobs", "description": "Work that takes longer than a request."},
    {"name": "studies", "description": "Searches for what has no closed form."},
]
