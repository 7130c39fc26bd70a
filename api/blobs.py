"""Content-addressed files, by their sha256: written once, whole or not at all.

In `blobs/` of the data folder, or, for several machines, wherever fsspec reaches with VITFIT_BLOB_URL
(`s3://bucket/prefix`, with the extra `s3`; `file:///shared/folder`): then what was fetched stays in `blobs/`, a cache.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from vit.errors import VitfitError

if TYPE_CHECKING:
    from api.settings import Settings

_DIGEST = re.compile(r"[0-9a-f]{64}")

FOLDER = "blobs"

PIECE = 2**20


class BlobError(VitfitError, RuntimeError):
    """The store of the blobs cannot be reached, or gave other bytes than it was given."""


class Far(Protocol):
    """Of fsspec's file systems, what is used."""

    def exists(self, path: str) -> bool: ...
    def put_file(self, lpath: str, rpath: str) -> None: ...
    def get_file(self, rpath: str, lpath: str) -> None: ...
    def rm_file(self, path: str) -> None: ...


class Blobs:
    """All methods may be called from many threads and processes.

    Raises:
        BlobError: from every method, where the far store does not do what it should.
    """

    def __init__(self, folder: Path, far: Far | None = None, prefix: str = "") -> None:
        """
        Args:
            folder: need not exist.
            far: where blobs are kept for all machines; `folder` is then a cache of it.
            prefix: of their names there.
        """
        self._folder, self._far, self._prefix = folder, far, prefix.rstrip("/")

    @classmethod
    def of(cls, settings: "Settings") -> "Blobs":
        """
        Raises:
            BlobError: a URL that fsspec cannot make a file system of.
        """
        folder = settings.data_dir / FOLDER
        if not settings.blob_url:
            return cls(folder)
        far, prefix = _file_system(settings.blob_url)
        return cls(folder, far, prefix)

    def put(self, path: Path) -> str:
        """Copy a file in; its digest."""
        with path.open("rb") as file:
            return self._take(lambda: file.read(PIECE))

    def put_bytes(self, data: bytes) -> str:
        pieces = iter([data, b""])
        return self._take(lambda: next(pieces))

    def _take(self, read: Callable[[], bytes]) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", dir=self._folder)
        temporary, sha = Path(name), hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as file:
                while piece := read():
                    sha.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            digest = sha.hexdigest()
            if self._far is not None:
                with _Translated(digest):
                    if not self._far.exists(self._at(digest)):
                        self._far.put_file(str(temporary), self._at(digest))
            if not self._path(digest).exists():
                temporary.chmod(0o644)
                temporary.replace(self._path(digest))
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def local(self, digest: str) -> Path:
        """The file on this machine, fetched and verified where it is not here yet.

        Raises:
            BlobError: it is nowhere, or another one.
        """
        path = self._path(digest)
        if not path.is_file():
            if self._far is None:
                raise BlobError(f"the blob {digest} is gone from {self._folder.name}/; restore it from a back-up")
            self._fetch(digest, path)
        return path

    def _fetch(self, digest: str, path: Path) -> None:
        assert self._far is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", dir=self._folder)
        os.close(handle)
        temporary = Path(name)
        try:
            with _Translated(digest):
                self._far.get_file(self._at(digest), name)
            with temporary.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise BlobError(
                    f"the blob {digest} has other bytes in its store (sha256 {found}); it was changed there"
                )
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, digest: str) -> bool:
        if self._far is None:
            return self._path(digest).is_file()
        with _Translated(digest):
            return self._far.exists(self._at(digest))

    def size(self, digest: str) -> int:
        return self.local(digest).stat().st_size

    def open(self, digest: str) -> BinaryIO:
        return self.local(digest).open("rb")

    def delete(self, digest: str) -> None:
        """Whether it is there or not."""
        if self._far is not None:
            with _Translated(digest):
                if self._far.exists(self._at(digest)):
                    self._far.rm_file(self._at(digest))
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        assert _DIGEST.fullmatch(digest), digest
        return self._folder / digest

    def _at(self, digest: str) -> str:
        return f"{self._prefix}/{digest}" if self._prefix else digest


class _Translated:
    """Whatever the far store raises, as ours."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, BlobError):
            raise BlobError(f"the blob {self._digest} cannot be reached in VITFIT_BLOB_URL: {error}") from error


def _file_system(url: str) -> tuple[Far, str]:
    try:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False} if url.startswith("s3") else {}
        if url.startswith(("file:", "local:")):
            options["auto_mkdir"] = True
        found, prefix = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError, OSError) as error:
        raise BlobError(f"VITFIT_BLOB_URL cannot be used: {error}; s3:// needs `pip install 'vitfit[s3]'`") from None
    return found, prefix
