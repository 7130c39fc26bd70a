"""The saliencies that a search can start from."""

from fastapi import APIRouter

from api.dependencies import LibraryDependency
from api.problems import documented
from api.schemas import SaliencyBody, SaliencyList, UnreadableFile

router = APIRouter(prefix="/v1/saliencies", tags=["saliencies"])


@router.get("", responses=documented())
def list_saliencies(library: LibraryDependency) -> SaliencyList:
    """Saliencies with the model that they are of, and files that cannot be used, with the reason."""
    entries = library.saliencies()
    return SaliencyList(
        saliencies=[SaliencyBody.of(entry) for entry in entries if entry.saliency is not None],
        unreadable=[UnreadableFile(file=e.file, error=e.error) for e in entries if e.error is not None],
    )
