"""The catalogue of a service, opened when somebody first asks: the database takes longer to load than the service."""

from threading import Lock
from typing import TYPE_CHECKING

from api.settings import Settings

if TYPE_CHECKING:
    from api.catalogue import Catalogue


class CatalogueDoor:
    """All methods may be called from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lock = settings, Lock()
        self._catalogue: Catalogue | None = None

    def open(self) -> "Catalogue":
        """The catalogue, with presets and published figures in it.

        Raises:
            DatabaseError: it cannot be reached, or is of another version.
        """
        with self._lock:
            if self._catalogue is None:
                from api.catalogue import Catalogue
                from api.catalogue_sources import presets, published
                from api.db import Database, database_url

                catalogue = Catalogue(Database(database_url(self._settings), pool=True))
                catalogue.add([*presets(), *published()])
                self._catalogue = catalogue
            return self._catalogue

    def close(self) -> None:
        with self._lock:
            if self._catalogue is not None:
                self._catalogue.database.close()
                self._catalogue = None
