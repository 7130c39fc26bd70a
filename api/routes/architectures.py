"""Architectures for a budget: from a saliency's frontier, or by ReViT's rule."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from api.catalogue_door import CatalogueDoor
from api.catalogue_values import CatalogueError
from api.dependencies import JSON_ONLY, CatalogueDependency, LibraryDependency, SettingsDependency
from api.errors import LocatedError, NoSuchResourceError, at, check_count
from api.errors_http import no_question
from api.library import Library, SearchTooLargeError
from api.onnx_worker import onnx_of
from api.problems import (
    ANY_BODY,
    ANY_FRONTIER,
    BUDGET_OUT_OF_RANGE,
    EXPORT_REFUSED,
    INVALID_ARCHITECTURE,
    LIMIT,
    NOT_FOUND,
    NOT_READY,
    OUTSIDE_GRID,
    TARGET_MISMATCH,
    UNKNOWN_NAME,
    documented,
)
from api.profile_files import own_profiles
from api.queries import REVIT_TEMPLATE, budget_of, template_of
from api.questions import (
    RedistributedLatency,
    RedistributeRequest,
    RedistributeResponse,
    SearchedTarget,
    SearchRequest,
    SearchResponse,
    constraints_of,
)
from api.schemas import ArchitectureBody, Described, ProvenanceBody, described, unit_of
from api.settings import Settings
from api.store_bodies import KnownArchitecture
from latency.estimate import LatencyModel, estimate
from search.errors import ConstraintError, SaliencyError
from search.frontier import Frontier
from search.profiles import Profile, profile_named
from search.redistribute import redistribute_like, redistribute_within, revit
from vit.architecture import Architecture
from vit.errors import ArchitectureError, UnknownNameError
from vit.presets import preset

router = APIRouter(prefix="/v1/architectures", tags=["architectures"])


def _file(media_type: str, description: str, example: str) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "string"} if media_type.startswith("text/") else {"type": "string", "format": "binary"}
    content = {media_type: {"schema": schema, "examples": {"file": {"value": example}}}}
    return {200: {"description": description, "content": content}}


@router.post(
    "/search",
    dependencies=[JSON_ONLY],
    responses=documented(*ANY_FRONTIER),
    response_model=SearchResponse,
)
async def search_architecture(
    body: SearchRequest, library: LibraryDependency, settings: SettingsDependency
) -> Response:
    """The architecture that keeps the most saliency within a budget, with a bound on what any other could keep.

    The first question about a saliency on a target takes up to some seconds, every further budget is a look-up; several
    targets at once take some seconds each time. For the target `macs` milliseconds stand for millions of MACs for one
    image: `budget_ms: 2000` is 2 G MACs.
    """
    # A budget of a frontier that is in memory takes less time than handing it to a thread; anything else goes there.
    found = _look_up(body, library)
    if found is None:
        found = await run_in_threadpool(_search, body, library, settings)
    return Response(found.model_dump_json(), media_type="application/json")


def _look_up(body: SearchRequest, library: Library) -> SearchResponse | None:
    if body.target is None:
        return None
    with at(""):
        constraints = constraints_of(body)
    with search_fields("target"):
        frontier = library.frontier_at_hand(body.saliency, body.target, constraints)
    return None if frontier is None else _of_frontier(body, frontier)


def _search(body: SearchRequest, library: Library, settings: Settings) -> SearchResponse:
    with at(""):
        constraints = constraints_of(body)
    if body.target is not None:
        with search_fields("target"):
            frontier = library.frontier(body.saliency, body.target, constraints)
        return _of_frontier(body, frontier)
    assert body.targets is not None
    check_count("targets", len(body.targets), settings.max_targets)
    with at("saliency"):
        whole = library.saliency(body.saliency).arch
    budgets = []
    for index, asked in enumerate(body.targets):
        with at(f"targets[{index}].target"):
            budgets.append((library.latency_model(asked.target, whole), asked.budget_ms))
    with search_fields("targets"):
        joint = library.joint_choice(body.saliency, [(a.target, a.budget_ms) for a in body.targets], constraints)
    targets = [
        _searched(latency, budget_ms, joint.arch, estimate(latency, whole).latency_ms) for latency, budget_ms in budgets
    ]
    return _response(body, joint.arch, joint.kept, joint.bound, targets)


def _of_frontier(body: SearchRequest, frontier: Frontier) -> SearchResponse:
    with at("speedup" if body.budget_ms is None else "budget_ms"):
        choice = frontier.best(budget_of(frontier.full_ms, body.budget_ms, body.speedup))
    targets = [_searched(frontier.latency, choice.budget_ms, choice.arch, frontier.full_ms)]
    return _response(body, choice.arch, choice.kept, choice.bound, targets)


def _response(
    body: SearchRequest, arch: Architecture, kept: float, bound: float | None, targets: list[SearchedTarget]
) -> SearchResponse:
    return SearchResponse(
        **described(arch), **dict(targets[0]), saliency=body.saliency, kept=kept, bound=bound, targets=targets
    )


def _searched(latency: LatencyModel, budget_ms: float, arch: Architecture, full_ms: float) -> SearchedTarget:
    found = estimate(latency, arch)
    return SearchedTarget(
        target=latency.target.slug,
        unit=unit_of(latency),
        latency_ms=found.latency_ms,
        interval_ms=found.interval_ms,
        budget_ms=budget_ms,
        full_ms=full_ms,
        kind=latency.kind,
        provenance=ProvenanceBody.of(latency),
        notes=list(found.notes),
    )


@contextmanager
def search_fields(target: str) -> Iterator[None]:
    """Errors carry the request's field that keeps a search from being made: `target`, if no other one."""
    try:
        with at(target):
            yield
    except LocatedError as error:
        raise LocatedError(error.cause, _culprit(error, target)) from error


def _culprit(error: LocatedError, target: str) -> str:
    match error.cause:
        case UnknownNameError():
            return error.cause.kind
        case SaliencyError():
            return "saliency"
        case SearchTooLargeError():
            return "multiples"
        case ConstraintError():
            return error.cause.field or target
    return target


@router.post(
    "/redistribute",
    dependencies=[JSON_ONLY],
    responses=documented(
        *ANY_BODY,
        UNKNOWN_NAME,
        INVALID_ARCHITECTURE,
        BUDGET_OUT_OF_RANGE,
        TARGET_MISMATCH,
        OUTSIDE_GRID,
    ),
)
def redistribute_architecture(
    body: RedistributeRequest, library: LibraryDependency, settings: SettingsDependency
) -> RedistributeResponse:
    """ReViT, or another profile, of a width, or the widest within a budget on each target (in steps of 8 channels).

    Image, classes and prefix tokens are the target's; without a target, and for `macs`, DeiT's with a distillation
    token; of an `architecture` its own. For the target `macs` milliseconds stand for millions of MACs for one image.
    """
    with at("profile"):
        profile = profile_named(body.profile, own_profiles(library.root))
    if body.architecture is not None:
        return _redistributed_like(body, profile, library)
    asked: list[tuple[str, str, float | None]] = []
    if body.targets is not None:
        check_count("targets", len(body.targets), settings.max_targets)
        asked = [(f"targets[{i}].target", one.target, one.budget_ms) for i, one in enumerate(body.targets)]
    elif body.target is not None:
        asked = [("target", body.target, body.budget_ms)]
    template, depth = preset(REVIT_TEMPLATE), body.depth or 12
    for field, slug, _ in asked:  # a table says of what image and tokens it is; closed forms are made for these
        with at(field):
            latency = library.latency_model(slug, template)
        if not latency.target.is_analytic:
            template = template_of(latency)
            break
    latencies = []
    for field, slug, budget_ms in asked:
        with at(field):
            latencies.append((library.latency_model(slug, template), budget_ms))
    if body.embed_dim is not None:
        arch = _revit(body.embed_dim, template, depth, profile)
    else:
        within = [(latency, ms) for latency, ms in latencies if ms is not None]
        with at("budget_ms" if body.targets is None else "targets"):
            arch = redistribute_within(within, template, depth, profile)
    found = [_latency(latency, arch, ms) for latency, ms in latencies]
    return RedistributeResponse(
        **described(arch),
        profile=profile.name,
        note=profile.note(arch.embed_dim),
        latency=found[0] if found else None,
        targets=found,
    )


def _redistributed_like(
    body: RedistributeRequest, profile: Profile, library: LibraryDependency
) -> RedistributeResponse:
    assert body.architecture is not None
    assert body.target is not None
    with at("architecture"):
        before = body.architecture.to_domain()
    with at("target"):
        latency = library.latency_model(body.target, before)
    with at("architecture"):
        found = redistribute_like(before, [latency], profile, body.depth)
    after = _latency(latency, found.after, found.ms_before[0])
    return RedistributeResponse(
        **described(found.after),
        profile=profile.name,
        note=profile.note(found.after.embed_dim),
        latency=after,
        targets=[after],
        before=Described(**described(before)),
        before_ms=found.ms_before[0],
    )


def _revit(embed_dim: int, template: Architecture, depth: int, profile: Profile) -> Architecture:
    try:
        return revit(embed_dim, template, depth, profile)
    except ArchitectureError as error:
        # The rule's own sizes are no fields of the request: the width is what has to change.
        raise LocatedError(ArchitectureError(f"no ReViT has embed_dim {embed_dim}: {error}"), "embed_dim") from error


def _latency(latency: LatencyModel, arch: Architecture, budget_ms: float | None) -> RedistributedLatency:
    with at("embed_dim"):
        found = estimate(latency, arch)
    return RedistributedLatency(
        target=latency.target.slug,
        unit=unit_of(latency),
        latency_ms=found.latency_ms,
        interval_ms=found.interval_ms,
        budget_ms=budget_ms,
        kind=latency.kind,
        provenance=ProvenanceBody.of(latency),
        notes=list(found.notes),
    )


@router.get("/{id}", responses=documented(NOT_FOUND, NOT_READY))
def get_architecture(id: str, catalogue: CatalogueDependency) -> KnownArchitecture:
    """An architecture that the catalogue knows, by its id or its name there: a preset, or what was found or told."""
    return KnownArchitecture(**described(_known(id, catalogue)))


@router.get(
    "/{id}/json",
    response_model=ArchitectureBody,
    responses=documented(NOT_FOUND, NOT_READY),
)
def download_json(id: str, catalogue: CatalogueDependency) -> Response:
    """The architecture as a file that the command line takes."""
    arch = _known(id, catalogue)
    headers = {"content-disposition": f'attachment; filename="{arch.id}.json"'}
    return Response(arch.to_json(), media_type="application/json", headers=headers)


@router.get(
    "/{id}/code",
    responses=_file("text/x-python", "model.py", "import torch\n") | documented(NOT_FOUND, NOT_READY),
    response_class=Response,
)
def download_code(id: str, catalogue: CatalogueDependency) -> Response:
    """A `model.py` of this one architecture, which needs torch and nothing else; it has no weights of its own."""
    from vit.standalone_source import standalone_source

    arch = _known(id, catalogue)
    headers = {"content-disposition": f'attachment; filename="{arch.id}.py"'}
    return Response(standalone_source(arch), media_type="text/x-python", headers=headers)


@router.get(
    "/{id}/onnx",
    responses=_file("application/octet-stream", "The model in ONNX.", "the bytes of an .onnx file")
    | documented(NOT_FOUND, NOT_READY, LIMIT, EXPORT_REFUSED),
    response_class=FileResponse,
)
def download_onnx(id: str, catalogue: CatalogueDependency, settings: SettingsDependency) -> FileResponse:
    """The architecture in ONNX with random weights, to time it elsewhere; the first time takes up to a minute.

    A trained model's ONNX is among the files of the job that made it.
    """
    arch = _known(id, catalogue)
    path = onnx_of(arch, settings.data_dir)
    return FileResponse(path, media_type="application/octet-stream", filename=f"{arch.id}.onnx")


def _known(id: str, catalogue: CatalogueDoor) -> Architecture:
    no_question(id, "search", "redistribute", "staircase", "code")
    try:
        return catalogue.open().architecture(id)
    except (UnknownNameError, CatalogueError) as error:
        raise NoSuchResourceError(f"the catalogue has no architecture {id[:80]!r}: {error}") from None
