"""A data folder in one file, and back: databases as of one moment, blobs, files, each with its sha256.

manifest.json    format, version, sha256 by name
files/...        the data folder's own
database.dump    of a PostgreSQL, as pg_dump writes it
"""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from api.settings import Settings
from vit.errors import VitfitError

FORMAT, VERSION = "vitfit-backup", "1"
LEFT_OUT = ("cache", "uploads", "frontiers", "service.log")
"""What is made again, or half of something."""

SQLITE = (".sqlite",)
BESIDE = (".sqlite-wal", ".sqlite-shm")


class BackupError(VitfitError, RuntimeError):
    """A back-up that cannot be made, or is none."""


def back_up(settings: Settings, out: Path) -> dict[str, Any]:
    """Write a back-up while the service may run; what it holds.

    Raises:
        BackupError: no data, a file in the way, or a PostgreSQL without pg_dump.
    """
    root = settings.data_dir
    if not root.is_dir():
        raise BackupError(f"there is no data folder {root}; name it with --data-dir or VITFIT_DATA_DIR")
    if out.exists():
        raise BackupError(f"{out} is there already; name another file")
    if out.resolve().is_relative_to(root.resolve()):
        raise BackupError(f"{out} is inside the data folder, which it is a back-up of; name a file elsewhere")
    digests: dict[str, str] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with tempfile.TemporaryDirectory() as scratch, tarfile.open(temporary, "w:gz", compresslevel=1) as archive:
            for path, inside in _contents(root, Path(scratch), settings):
                digests[inside] = _digest(path)
                archive.add(path, inside, recursive=False)
            manifest = {"format": FORMAT, "version": VERSION, "files": digests}
            text = Path(scratch, "manifest.json")
            text.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            archive.add(text, "manifest.json")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return {"path": str(out), "files": len(digests), "bytes": out.stat().st_size}


def _contents(root: Path, scratch: Path, settings: Settings) -> Iterator[tuple[Path, str]]:
    if settings.database_url and not settings.database_url.startswith("sqlite"):
        yield _dumped(settings, scratch), "database.dump"
    # Databases first: what they name is then among the files that follow, which are only ever added to.
    for path in sorted(root.rglob("*"), key=lambda path: (path.suffix not in SQLITE, path)):
        relative = path.relative_to(root)
        if relative.parts[0] in LEFT_OUT or not path.is_file() or path.name.endswith(BESIDE):
            continue
        if any(part.startswith(".") for part in relative.parts) and relative.name != ".stored.json":
            continue  # half-written, or a lock
        if path.suffix in SQLITE:
            copy = scratch / relative.name
            with (
                closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as live,
                closing(sqlite3.connect(copy)) as still,
            ):
                live.backup(still)
            path = copy
        yield path, f"files/{relative}"


def _dumped(settings: Settings, scratch: Path) -> Path:
    from api.db import normal_url

    if shutil.which("pg_dump") is None:
        raise BackupError("pg_dump is not installed, and the database is a PostgreSQL; install its client programs")
    out = scratch / "database.dump"
    url = normal_url(settings.database_url).replace("postgresql+psycopg://", "postgresql://")
    # In the environment, not among the arguments, which every user of the machine sees.
    command = ["pg_dump", "--format=custom", "--file", str(out)]
    done = subprocess.run(command, env={**os.environ, **_libpq(url)}, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise BackupError(f"pg_dump failed: {done.stderr.strip()[:500]}")
    return out


def _libpq(url: str) -> dict[str, str]:
    import sqlalchemy as sa

    found = sa.make_url(url)
    given = {
        "PGHOST": found.host or found.query.get("host"),
        "PGPORT": found.port or found.query.get("port"),
        "PGUSER": found.username,
        "PGPASSWORD": found.password,
        "PGDATABASE": found.database,
    }
    return {name: str(value) for name, value in given.items() if value}


def restore(archive_path: Path, root: Path) -> dict[str, Any]:
    """Unpack a back-up into a data folder that is not there or empty: verified first, then moved in place at once.

    Raises:
        BackupError: no back-up, a damaged one, or a folder with something in it.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BackupError(
            f"{root} is not empty; restore into another folder (--data-dir), and look before you replace one"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        try:
            with tarfile.open(archive_path, "r:gz") as archive:
                archive.extractall(scratch, filter="data")  # no links out of it, no devices, no absolute names
        except (OSError, tarfile.TarError, EOFError) as error:
            raise BackupError(f"{archive_path} is no back-up, or a damaged one: {error}") from None
        digests = _manifest(scratch, archive_path)
        for name, digest in digests.items():
            path = scratch / name
            if not path.is_file() or _digest(path) != digest:
                raise BackupError(f"{archive_path} is damaged: {name} is not what its manifest says")
        files = scratch / "files"
        files.mkdir(exist_ok=True)
        dump = scratch / "database.dump"
        if dump.exists():
            dump.rename(files / "database.dump")
        if root.exists():
            root.rmdir()
        files.rename(root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"data_dir": str(root), "files": len(digests), "database_dump": (root / "database.dump").exists()}


def _manifest(folder: Path, archive: Path) -> dict[str, str]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise BackupError(f"{archive} is of another format or version; this vitfit reads version {VERSION}")
        return {str(name): str(digest) for name, digest in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(f"{archive} is no back-up of vitfit's: it has no manifest") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
