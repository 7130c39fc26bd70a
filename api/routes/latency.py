"""How long architectures take."""

from collections.abc import Sequence

from fastapi import APIRouter

from api.dependencies import JSON_ONLY, LibraryDependency, SettingsDependency
from api.errors import LocatedError, at, check_count
from api.problems import ANY_BODY, INVALID_ARCHITECTURE, LIMIT, OUTSIDE_GRID, TARGET_MISMATCH, UNKNOWN_NAME, documented
from api.questions import EstimateBody, EstimatedArchitecture, EstimateRequest, EstimateResponse, TargetEvidence
from latency.analytic import MacsModel
from latency.devices import DeviceModel, Traits
from latency.errors import OutsideGridError
from latency.estimate import Estimate, LatencyModel, estimate, estimate_many
from vit.architecture import Architecture
from vit.cost import macs, params
from vit.errors import VitfitError

router = APIRouter(prefix="/v1/latency", tags=["latency"])


@router.post(
    "/estimate",
    dependencies=[JSON_ONLY],
    responses=documented(
        *ANY_BODY,
        UNKNOWN_NAME,
        INVALID_ARCHITECTURE,
        TARGET_MISMATCH,
        OUTSIDE_GRID,
        LIMIT,
    ),
)
def estimate_latency(
    body: EstimateRequest, library: LibraryDependency, settings: SettingsDependency
) -> EstimateResponse:
    """Latency of one or thousands of architectures on one or several targets, with parameters, MACs and evidence.

    For the target `macs` milliseconds stand for millions of MACs for one image. An architecture that a target does
    not cover refuses the whole request, and is named.
    """
    check_count("architectures", len(body.architectures), settings.max_architectures)
    check_count("targets", len(body.targets), settings.max_targets)
    archs = []
    for index, given in enumerate(body.architectures):
        with at(f"architectures[{index}]" + (".preset" if hasattr(given, "preset") else "")):
            archs.append(given.to_domain())
    evidence, columns = [], []
    for index, slug in enumerate(body.targets):
        with at(f"targets[{index}]"):
            latency = library.latency_model(slug, archs[0])
        evidence.append(TargetEvidence.of(latency))
        columns.append(_column(latency, archs, body.components))
    return EstimateResponse(
        targets=evidence,
        architectures=[
            EstimatedArchitecture(
                id=arch.id,
                params=params(arch),
                macs=macs(arch),
                estimates=[EstimateBody.of(slug, c[i]) for slug, c in zip(body.targets, columns, strict=True)],
            )
            for i, arch in enumerate(archs)
        ],
    )


def _column(latency: LatencyModel, archs: Sequence[Architecture], components: bool) -> list[Estimate]:
    """Estimates of all architectures on one target, in few calls: one, or one per geometry for a closed form."""
    if not isinstance(latency, MacsModel | DeviceModel):
        return _estimates(latency, archs, range(len(archs)), components)
    geometries: dict[tuple[object, ...], list[int]] = {}
    for index, arch in enumerate(archs):
        image = (arch.image_size, arch.patch_size, arch.in_chans, arch.num_classes)
        geometry = (image, arch.dist_token, arch.tokens, Traits.of(arch))
        geometries.setdefault(geometry, []).append(index)
    found: dict[int, Estimate] = {}
    for indices in geometries.values():
        members = [archs[index] for index in indices]
        found |= zip(indices, _estimates(latency.like(members[0]), members, indices, components), strict=True)
    return [found[index] for index in range(len(archs))]


def _estimates(
    latency: LatencyModel, archs: Sequence[Architecture], indices: Sequence[int], components: bool
) -> list[Estimate]:
    try:
        return estimate_many(latency, archs, components=components)
    except VitfitError:
        for index, arch in zip(indices, archs, strict=True):
            _blame(latency, arch, f"architectures[{index}]")
        raise


def _blame(latency: LatencyModel, arch: Architecture, field: str) -> None:
    """Raises what is wrong with this architecture, if anything, with the field that is."""
    with at(field):
        try:
            estimate(latency, arch)
        except OutsideGridError as error:
            raise LocatedError(error, f"{field}.{_culprit(latency, arch, error.axis)}") from error


def _culprit(latency: LatencyModel, arch: Architecture, axis: str) -> str:
    low, high = latency.bounds[axis]
    blocks = (i for i, block in enumerate(arch.blocks) if not low <= getattr(block, axis, low) <= high)
    first = next(blocks, None)
    return axis if first is None else f"blocks[{first}].{axis}"
