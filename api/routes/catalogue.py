"""The catalogue, to be read: what is there, what is best, two side by side, and what fits a budget."""

from fastapi import APIRouter

from api.catalogue_bodies import (
    AnswerBody,
    BudgetSearchRequest,
    BudgetSearchResponse,
    CompareRequest,
    CompareResponse,
    DifferenceBody,
    EntryBody,
    EntryList,
    FindRequest,
    ParetoRequest,
)
from api.catalogue_values import dominates
from api.dependencies import JSON_ONLY, CatalogueDependency, LibraryDependency
from api.errors import at
from api.problems import (
    ANY_BODY,
    BUDGET_OUT_OF_RANGE,
    INVALID_ARCHITECTURE,
    INVALID_SALIENCY,
    LIMIT,
    NOT_READY,
    OUTSIDE_GRID,
    TARGET_MISMATCH,
    UNKNOWN_NAME,
    documented,
)
from api.profile_files import own_profiles
from api.queries import REVIT_TEMPLATE
from api.schemas import ArchitectureBody, unit_of
from latency.estimate import LatencyModel, estimate
from search.profiles import profile_named
from vit.compare import compare
from vit.cost import macs, params
from vit.presets import preset

router = APIRouter(prefix="/v1/catalogue", tags=["catalogue"])


def _latency(library: LibraryDependency, target: str) -> LatencyModel:
    with at("target"):
        return library.latency_model(target, preset(REVIT_TEMPLATE))


@router.post("/find", dependencies=[JSON_ONLY], responses=documented(*ANY_BODY, UNKNOWN_NAME, NOT_READY))
def find_entries(body: FindRequest, library: LibraryDependency, catalogue: CatalogueDependency) -> EntryList:
    """Entries by budget, target, kind, lineage and data set.

    With `data` the most accurate on it come first and what is not known last; else, with a target, the slowest within
    the budget. The first question about a target prices all entries, which takes a while where there are many.
    """
    known, latency, ancestor = catalogue.open(), None, None
    if body.target is not None:
        latency = _latency(library, body.target)
    if body.made_from is not None:
        with at("made_from"):
            ancestor = known.id_of(body.made_from)
    question = body.to_domain(None if latency is None else latency.target.slug, ancestor)
    if latency is not None:
        known.price(latency)
    return EntryList(
        unit=None if latency is None else unit_of(latency),
        entries=[EntryBody.of(one) for one in known.find(question)],
    )


@router.post("/pareto", dependencies=[JSON_ONLY], responses=documented(*ANY_BODY, UNKNOWN_NAME, NOT_READY))
def pareto_front(body: ParetoRequest, library: LibraryDependency, catalogue: CatalogueDependency) -> EntryList:
    """Entries that none other is both as fast as on the target and more accurate than on the data; fast to slow."""
    known, latency = catalogue.open(), _latency(library, body.target)
    known.price(latency)
    found = known.pareto(latency.target.slug, body.data, body.kind, body.limit)
    return EntryList(unit=unit_of(latency), entries=[EntryBody.of(one) for one in found])


@router.post(
    "/compare",
    dependencies=[JSON_ONLY],
    responses=documented(*ANY_BODY, UNKNOWN_NAME, INVALID_ARCHITECTURE, TARGET_MISMATCH, OUTSIDE_GRID),
)
def compare_architectures(body: CompareRequest, library: LibraryDependency) -> CompareResponse:
    """Two architectures dimension by dimension, and which of them costs less."""
    archs = []
    for field, given in (("a", body.a), ("b", body.b)):
        with at(field):
            archs.append(given.to_domain())
    costs: list[list[float]] = [[params(arch), macs(arch)] for arch in archs]
    timed = None
    if body.target is not None:
        times = []
        for field, arch in zip(("a", "b"), archs, strict=True):
            with at("target"):
                latency = library.latency_model(body.target, arch)
            with at(field):
                times.append(estimate(latency, arch).latency_ms)
        timed = (times[0], times[1])
        costs = [[*cost, ms] for cost, ms in zip(costs, times, strict=True)]
    return CompareResponse(
        a=archs[0].id,
        b=archs[1].id,
        latency_ms=timed,
        cheaper="a"
        if dominates(costs[0], costs[1])
        else "b"
        if dominates(costs[1], costs[0])
        else "same"
        if costs[0] == costs[1]
        else "neither",
        dimensions=[DifferenceBody(dimension=r.dimension, a=r.a, b=r.b, same=r.same) for r in compare(*archs)],
    )


@router.post(
    "/search",
    dependencies=[JSON_ONLY],
    responses=documented(
        *ANY_BODY,
        UNKNOWN_NAME,
        INVALID_ARCHITECTURE,
        BUDGET_OUT_OF_RANGE,
        TARGET_MISMATCH,
        OUTSIDE_GRID,
        INVALID_SALIENCY,
        LIMIT,
        NOT_READY,
    ),
)
def search_by_budget(
    body: BudgetSearchRequest, library: LibraryDependency, catalogue: CatalogueDependency
) -> BudgetSearchResponse:
    """What fits a budget: a frontier's answer where there is a saliency, else ReViT's and the catalogue's.

    Each says where it is from. For the target `macs` milliseconds stand for millions of MACs for one image.
    """
    from api.budget_search import answer_budget

    with at("profile"):
        profile = profile_named(body.profile, own_profiles(library.root))
    model = None
    if body.model is not None:
        with at("model"):
            model = body.model.to_domain()
    latency = _latency(library, body.target)
    with at("saliency" if body.saliency is not None else "budget_ms"):
        answers = answer_budget(
            library,
            catalogue.open(),
            body.target,
            body.budget_ms,
            saliency=body.saliency,
            model=model,
            data=body.data,
            profile=profile,
            limit=body.limit,
        )
    return BudgetSearchResponse(
        target=latency.target.slug,
        unit=unit_of(latency),
        kind=latency.kind,
        answers=[
            AnswerBody(
                answered_by=one.answered_by,
                detail=one.detail,
                latency_ms=one.latency_ms,
                id=one.arch.id if one.arch is not None else (one.found.architecture or "") if one.found else "",
                architecture=None if one.arch is None else ArchitectureBody.of(one.arch),
                kept=None if one.choice is None else one.choice.kept,
                bound=None if one.choice is None else one.choice.bound,
                entry=None if one.found is None else EntryBody.of(one.found),
            )
            for one in answers
        ],
    )
