"""What a latency can be asked for: the tables of the library, and the analytic target `macs`."""

from fastapi import APIRouter

from api.dependencies import LibraryDependency
from api.errors import NoSuchResourceError
from api.problems import NOT_FOUND, documented
from api.schemas import TargetBody, TargetList, UnreadableFile
from latency.analytic import MacsModel
from latency.target import MACS
from vit.errors import UnknownNameError
from vit.presets import preset

router = APIRouter(prefix="/v1/targets", tags=["targets"])


def _macs() -> TargetBody:
    return TargetBody.of(MacsModel(preset("deit-b")), file=None)


@router.get("", responses=documented())
def list_targets(library: LibraryDependency) -> TargetList:
    """Targets with their kind, bounds and provenance, and table files that cannot be used, with the reason.

    For the analytic target `macs` milliseconds stand for millions of MACs.
    """
    entries = library.targets()
    tables = [TargetBody.of(e.table, e.file) for e in entries if e.table is not None and e.error is None]
    unreadable = [UnreadableFile(file=e.file, error=e.error) for e in entries if e.error is not None]
    return TargetList(targets=[*tables, _macs()], unreadable=unreadable)


@router.get("/{slug}", responses=documented(NOT_FOUND))
def get_target(slug: str, library: LibraryDependency) -> TargetBody:
    """One target."""
    if slug == MACS:
        return _macs()
    try:
        table, file = library.find_table(slug)
    except UnknownNameError as error:
        raise NoSuchResourceError(str(error)) from None
    return TargetBody.of(table, file)
