"""A frontier whole: what charts draw, and what answers every budget without asking again."""

import json

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response

from api.dependencies import JSON_ONLY, LibraryDependency
from api.errors import at
from api.problems import (
    ANY_FRONTIER,
    documented,
)
from api.questions import constraints_of
from api.routes.architectures import search_fields
from api.schemas import ProvenanceBody, described, unit_of
from api.store_bodies import StaircaseRequest
from search.frontier import Frontier

router = APIRouter(prefix="/v1/architectures", tags=["architectures"])


class _Safetensors(Response):
    media_type = "application/octet-stream"


@router.post(
    "/staircase",
    dependencies=[JSON_ONLY],
    response_class=_Safetensors,
    responses={
        200: {
            "description": "safetensors: `ms`, `kept` and `bound`, one entry an answer, fastest first, and `sizes`, a "
            "row an answer: embed_dim, then num_heads, qk_dim, v_dim and mlp_dim of every block. The metadata's "
            "`document` is JSON: what they are for, `full_ms`, `smallest_ms`, provenance, and the uncut model.",
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "examples": {"header": {"value": '{"ms": {"dtype": "F64", "shape": [24031], ...}, ...}'}},
                }
            },
        },
        **documented(*ANY_FRONTIER),
    },
)
def get_staircase(body: StaircaseRequest, library: LibraryDependency) -> Response:
    """Every answer of a frontier at once: the best architecture for a budget is the slowest one within it.

    `kept` and `bound` are shares of the model's saliency; nothing within an answer's latency keeps more than its bound.
    The first question about a saliency on a target takes up to some seconds.
    """
    with at(""):
        constraints = constraints_of(body)
    with search_fields("target"):
        frontier = library.frontier(body.saliency, body.target, constraints)
    return _Safetensors(_bytes(body.saliency, frontier))


def _bytes(saliency: str, frontier: Frontier) -> bytes:
    from safetensors.numpy import save

    latency, stairs, whole = frontier.latency, frontier.staircase, described(frontier.saliency.arch)
    document = {
        "saliency": saliency,
        "criterion": frontier.saliency.criterion,
        "target": latency.target.slug,
        "kind": latency.kind,
        "unit": unit_of(latency),
        "provenance": ProvenanceBody.of(latency).model_dump(mode="json"),
        "full_ms": frontier.full_ms,
        "smallest_ms": frontier.smallest_ms,
        "constraints": frontier.constraints.to_dict(),
        "whole": whole | {"architecture": whole["architecture"].model_dump(mode="json")},
    }
    total = frontier.saliency.total or 1.0
    sizes = stairs.sizes.astype(np.uint16) if stairs.sizes.max() < 2**16 else stairs.sizes
    arrays = {
        "ms": stairs.ms,
        "kept": np.minimum(stairs.kept / total, 1.0),
        "bound": np.minimum(stairs.bound / total, 1.0),
        "sizes": np.ascontiguousarray(sizes),
    }
    return save(arrays, metadata={"document": json.dumps(document)})
