"""Every budget of a saliency on a target at once, as points to draw."""

import numpy as np
from fastapi import APIRouter

from api.dependencies import JSON_ONLY, LibraryDependency
from api.errors import at
from api.problems import (
    ANY_FRONTIER,
    documented,
)
from api.questions import constraints_of
from api.routes.architectures import search_fields
from api.schemas import ArchitectureBody, unit_of
from api.store_bodies import FrontierBody, FrontierPoint, FrontierRequest
from search.frontier import Frontier

router = APIRouter(prefix="/v1/frontiers", tags=["frontiers"])


@router.post(
    "",
    dependencies=[JSON_ONLY],
    responses=documented(*ANY_FRONTIER),
)
def get_frontier(body: FrontierRequest, library: LibraryDependency) -> FrontierBody:
    """The frontier, thinned to `most` points: built on the first question, which takes up to some seconds, then kept.

    `POST /v1/architectures/staircase` has all points in binary, and `POST /v1/architectures/search` answers one budget.
    For the target `macs` milliseconds stand for millions of MACs for one image.
    """
    with at(""):
        constraints = constraints_of(body)
    with search_fields("target"):
        frontier = library.frontier(body.saliency, body.target, constraints)
    return _body(body, frontier)


def _body(body: FrontierRequest, frontier: Frontier) -> FrontierBody:
    stairs, latency, total = frontier.staircase, frontier.latency, frontier.saliency.total or 1.0
    depth = frontier.saliency.arch.depth
    picked = np.unique(np.linspace(0, len(stairs.ms) - 1, min(body.most, len(stairs.ms))).round().astype(int))
    points = [
        FrontierPoint(
            latency_ms=float(stairs.ms[index]),
            kept=min(float(stairs.kept[index]) / total, 1.0),
            bound=min(float(stairs.bound[index]) / total, 1.0),
            embed_dim=int(stairs.sizes[index, 0]),
            blocks=[tuple(block) for block in stairs.sizes[index, 1:].reshape(depth, -1).tolist()],
        )
        for index in picked
    ]
    return FrontierBody(
        saliency=body.saliency,
        target=latency.target.slug,
        unit=unit_of(latency),
        kind=latency.kind,
        interval=latency.provenance.interval,
        full_ms=frontier.full_ms,
        smallest_ms=frontier.smallest_ms,
        answers=len(stairs.ms),
        architecture=ArchitectureBody.of(frontier.saliency.arch),
        points=points,
    )
