"""What was uploaded to the service, or made by its jobs: tables, models, saliencies.

    database     a row each: name, digest, metadata
    blobs        the bytes
    data folder  tables/, models/, saliencies/: a file each, which library and jobs read like the user's own

The row is the truth: `sync` makes the files what the rows say. A file without a row is the operator's own and is left
alone. On several machines, which share database and blobs, every one has the files.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from api.blobs import Blobs
from api.db import Database
from api.db_stored import stored
from api.errors import ChangedError, NameTakenError, NotStoredError
from api.store_door import MANIFEST, PLACES, Noun
from vit.errors import VitfitError
from vit.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """
    Attributes:
        digest: sha256 of the file, its ETag.
        upload: sha256 of what was uploaded.
        document: metadata, JSON.
        created_at: UTC, ISO 8601.
    """

    noun: Noun
    name: str
    digest: str
    upload: str
    bytes: int
    document: Mapping[str, Any]
    created_at: str


class Store:
    """All methods may be called from many threads and processes.

    Raises:
        DatabaseError, BlobError: from every method.
    """

    def __init__(self, root: Path, blobs: Blobs, database: Callable[[], Database]) -> None:
        """
        Args:
            root: data folder.
            database: opens it, or gives the one that is open.
        """
        self.root, self.blobs, self._database = root, blobs, database
        self._lock = Lock()

    def all(self, noun: Noun | None = None) -> list[Stored]:
        query = sa.select(stored).order_by(stored.c.noun, stored.c.name)
        if noun is not None:
            query = query.where(stored.c.noun == noun)
        with self._database().reading() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def get(self, noun: Noun, name: str) -> Stored | None:
        query = sa.select(stored).where(stored.c.noun == noun, stored.c.name == name)
        with self._database().reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _stored(row)

    def uploaded(self, noun: Noun, upload: str) -> Stored | None:
        """What came of an upload of these bytes before."""
        query = sa.select(stored).where(stored.c.noun == noun, stored.c.upload == upload).order_by(stored.c.created_at)
        with self._database().reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _stored(row)

    def add(
        self, noun: Noun, name: str, path: Path, document: Mapping[str, Any], upload: str | None = None
    ) -> tuple[Stored, bool]:
        """Keep a copy of a file under a name.

        Args:
            upload: sha256 of what it was made from; of the file itself where not given.

        Returns:
            What is kept, and whether it is new: the same file under the same name is kept once.

        Raises:
            NameTakenError: another file has the name.
        """
        self._note({})  # a service that is killed now looks, when it starts again, at what is stored
        digest = self.blobs.put(path)
        wanted = Stored(noun, name, digest, upload or digest, path.stat().st_size, document, _now())
        place = self.place(noun, name)
        if place.exists() and self.get(noun, name) is None and _digest(place) != digest:
            raise NameTakenError(f"the library has another {noun} {name!r}, put there by hand; choose another name")
        with self._database().writing() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            row = insert(stored).values(**_row(wanted)).on_conflict_do_nothing().returning(stored.c.name)
            new = connection.execute(row).first() is not None
        kept = wanted if new else self.get(noun, name)
        if kept is None or kept.digest != digest:
            raise NameTakenError(f"there is another {noun} {name!r} already; choose another name, or delete it first")
        self._write(kept)
        return kept, new

    def delete(self, noun: Noun, name: str, digest: str | None = None) -> bool:
        """
        Args:
            digest: only this one.

        Returns:
            Whether it was there.

        Raises:
            ChangedError: it has another digest.
            NotStoredError: there is such a file, and nobody uploaded it.
        """
        found = self.get(noun, name)
        if found is None:
            if self.place(noun, name).exists():
                raise NotStoredError(
                    f"the {noun} {name!r} was put into the data folder by hand; it is removed there, not over REST"
                )
            return False
        if digest is not None and digest != found.digest:
            raise ChangedError(f'the {noun} {name!r} is another one by now: its ETag is "{found.digest}"')
        with self._database().writing() as connection:
            connection.execute(
                stored.delete().where(stored.c.noun == noun, stored.c.name == name, stored.c.digest == found.digest)
            )
        place = self.place(noun, name)
        if place.is_file() and _digest(place) == found.digest:
            place.unlink(missing_ok=True)
        self._note({(noun, name): None})
        self._forget_blob(found.digest)
        return True

    def sync(self) -> int:
        """Make this machine's files what the rows say; how many came or went. A file that cannot be had is logged."""
        rows = {(one.noun, one.name): one for one in self.all()}
        known, changed = self._noted(), 0
        for key, digest in known.items():
            place = self.place(*key)
            if (key not in rows or rows[key].digest != digest) and place.is_file() and _digest(place) == digest:
                place.unlink(missing_ok=True)
                changed += 1
        for key, one in rows.items():
            if known.get(key) != one.digest or not self.place(*key).exists():
                try:
                    changed += self._write(one)
                except VitfitError as error:
                    logger.warning("the %s %s is not on this machine: %s", one.noun, one.name, error)
        gone = {key: None for key in known if key not in rows}
        if gone:
            self._note(gone)
        return changed

    def place(self, noun: Noun, name: str) -> Path:
        folder, suffix = PLACES[noun]
        return self.root / folder / f"{name}{suffix}"

    def _write(self, one: Stored) -> bool:
        """The file of a row; whether it was not there."""
        place, new = self.place(one.noun, one.name), False
        if not place.exists():
            source = self.blobs.local(one.digest)
            write_atomically(place, lambda temporary: shutil.copyfile(source, temporary))
            new = True
        self._note({(one.noun, one.name): one.digest})
        return new

    def _forget_blob(self, digest: str) -> None:
        from api.db_jobs import files

        with self._database().reading() as connection:
            used = connection.execute(sa.select(stored.c.name).where(stored.c.digest == digest).limit(1)).first()
            used = used or connection.execute(sa.select(files.c.name).where(files.c.digest == digest).limit(1)).first()
        if used is None:
            self.blobs.delete(digest)

    def _noted(self) -> dict[tuple[Noun, str], str]:
        try:
            document = json.loads((self.root / MANIFEST).read_text(encoding="utf-8"))
            return {(noun, name): digest for noun, names in document.items() for name, digest in names.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _note(self, changes: Mapping[tuple[Noun, str], str | None]) -> None:
        with self._lock:
            known = self._noted()
            for key, digest in changes.items():
                if digest is None:
                    known.pop(key, None)
                else:
                    known[key] = digest
            document: dict[str, dict[str, str]] = {}
            for (noun, name), digest in sorted(known.items()):
                document.setdefault(noun, {})[name] = digest
            text = json.dumps(document, indent=1)
            write_atomically(self.root / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _stored(row: Any) -> Stored:
    values = row._mapping
    return Stored(
        **{name: values[name] for name in Stored.__slots__ if name != "document"},
        document=json.loads(values["document"]),
    )


def _row(one: Stored) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Stored.__slots__ if name != "document"} | {
        "document": json.dumps(dict(one.document), sort_keys=True)
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
