"""Files and folders that are whole or not there: written under a temporary name, flushed to disk, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder and rename the result to `path`.

    Whatever goes wrong, `path` holds its old content or the new one, and no temporary file stays; only kill -9 may
    leave a hidden one behind, under another name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary folder beside `path`, and rename that to `path`, which may be an empty folder.

    Whatever goes wrong, nothing is written; only kill -9 may leave a hidden folder behind, under another name.

    Raises:
        FileExistsError: `path` is a file, or a folder that is not empty.
    """
    path = path.resolve()  # a folder cannot be renamed to a link
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists" + (" and is not empty" if path.is_dir() else " and is no folder"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's object_pairs_hook: of two members with one name, one would be silently ignored.

    Raises:
        ValueError: a name comes twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.40} comes twice")
        found[name] = value
    return found


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
