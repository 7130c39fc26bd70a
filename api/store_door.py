"""The store of a service, opened when somebody first needs it, and kept the same as what other machines see."""

import logging
from collections.abc import Mapping
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Literal

from api.blobs import Blobs
from api.settings import Settings
from vit.errors import VitfitError

if TYPE_CHECKING:
    from api.db import Database
    from api.stored import Store

logger = logging.getLogger(__name__)

MANIFEST = ".stored.json"
"""In the data folder: which of its files are of rows, so that those of rows that are gone can go. Where there is none,
nothing was stored from here."""

Noun = Literal["table", "model", "saliency"]

PLACES: Mapping[Noun, tuple[str, str]] = {
    "table": ("tables", ".parquet"),
    "model": ("models", ".safetensors"),
    "saliency": ("saliencies", ".safetensors"),
}
"""Folder and suffix."""

SYNC_SECONDS = 5.0
"""Between two looks at what other machines stored."""


class StoreDoor:
    """All methods may be called from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lock, self._stop = settings, Lock(), Event()
        self._database: Database | None = None
        self._thread: Thread | None = None

    def open(self) -> "Store":
        """
        Raises:
            DatabaseError, BlobError: as the methods of `Store`.
        """
        from api.stored import Store

        return Store(self._settings.data_dir, Blobs.of(self._settings), self.database)

    def database(self) -> "Database":
        """
        Raises:
            DatabaseError: it cannot be reached, or is of another version.
        """
        with self._lock:
            if self._database is None:
                from api.db import Database, database_url

                self._database = Database(database_url(self._settings), pool=True)
            return self._database

    def names(self, noun: Noun) -> list[str]:
        return list(self.digests(noun))

    def digests(self, noun: Noun) -> dict[str, tuple[str, str]]:
        """Digest and time of what is stored, by name; none, without a look at the database, where nothing ever was."""
        return {one.name: (one.digest, one.created_at) for one in self.open().all(noun)} if self._in_use else {}

    @property
    def _in_use(self) -> bool:
        return bool(self._settings.database_url) or (self._settings.data_dir / MANIFEST).exists()

    def start(self) -> None:
        """Make the files what the rows say: once, and on a shared database again and again. Returns at once."""
        shared = bool(self._settings.database_url)
        if self._in_use:
            self._thread = Thread(target=self._keep, args=(shared,), name="store-sync", daemon=True)
            self._thread.start()

    def _keep(self, shared: bool) -> None:
        while not self._stop.is_set():
            try:
                self.open().sync()
            except (VitfitError, OSError) as error:
                logger.warning("what is stored cannot be looked at: %s", error)
            if not shared or self._stop.wait(SYNC_SECONDS):
                return

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
