"""Content-addressed files, by their sha256: written once, whole or not at all."""

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from api.settings import Settings

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """In a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, settings: "Settings") -> "Blobs":
        return cls(settings.data_dir / "blobs")

    def put(self, path: Path) -> str:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not self.exists(digest):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", dir=self._folder)
            os.close(handle)
            try:
                shutil.copyfile(path, name)
                Path(name).replace(self._folder / digest)
            finally:
                Path(name).unlink(missing_ok=True)
        return digest

    def local(self, digest: str) -> Path:
        assert _DIGEST.fullmatch(digest)
        return self._folder / digest

    def exists(self, digest: str) -> bool:
        return self.local(digest).is_file()

    def size(self, digest: str) -> int:
        return self.local(digest).stat().st_size

    def open(self, digest: str) -> BinaryIO:
        return self.local(digest).open("rb")

    def delete(self, digest: str) -> None:
        self.local(digest).unlink(missing_ok=True)
