"""What a latency can be asked for: the tables of the library, modelled devices, and the analytic target `macs`."""

from fastapi import APIRouter

from api.dependencies import LibraryDependency
from api.errors import NoSuchResourceError
from api.problems import NOT_FOUND, documented
from api.schemas import TargetBody, TargetList, UnreadableFile
from latency.analytic import MacsModel
from vit.errors import UnknownNameError
from vit.presets import preset

router = APIRouter(prefix="/v1/targets", tags=["targets"])


TEMPLATE = preset("deit-b")
"""Closed forms are shown as they are for models like this one."""


@router.get("", responses=documented())
def list_targets(library: LibraryDependency) -> TargetList:
    """Targets with their kind, bounds and provenance, and table files that cannot be used, with the reason.

    Modelled devices answer at any batch and tokens, whether there is a table or not. For the analytic target `macs`
    milliseconds stand for millions of MACs.
    """
    entries = library.targets()
    tables = [TargetBody.of(e.table, e.file) for e in entries if e.table is not None and e.error is None]
    unreadable = [UnreadableFile(file=e.file, error=e.error) for e in entries if e.error is not None]
    macs = TargetBody.of(MacsModel(TEMPLATE), file=None)
    return TargetList(targets=[*tables, macs], modelled_devices=list(library.devices), unreadable=unreadable)


@router.get("/{slug}", responses=documented(NOT_FOUND))
def get_target(slug: str, library: LibraryDependency) -> TargetBody:
    """One target."""
    try:
        latency, stamp = library.find(slug, TEMPLATE)
    except UnknownNameError as error:
        raise NoSuchResourceError(str(error)) from None
    return TargetBody.of(latency, stamp.file if stamp else None)
