"""Is the process alive, and can it answer?"""

from fastapi import APIRouter

from api.dependencies import LibraryDependency
from api.errors import NotReadyError
from api.problems import NOT_READY, documented
from api.schemas import Health

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", responses=documented())
async def live() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/ready", responses=documented(NOT_READY))
def ready(library: LibraryDependency) -> Health:
    """The data folder can be read."""
    try:
        library.check()
    except OSError as error:
        raise NotReadyError(f"the data folder {library.root} cannot be read: {error.strerror or error}") from None
    return Health(status="ok")
