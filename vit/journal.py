"""An append-only journal of finished work: one JSON line each, flushed to disk before the next one starts.

Killed at any moment, the next run finds every line but, at worst, a torn last one, which it drops. The first line says
what the journal is of; another run's journal is never continued.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit.errors import JournalError


class Journal:
    """Lines of one piece of work, identified by its header."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Open for appending; `header` must equal that of an existing journal.

        Raises:
            JournalError: the file belongs to other work, or another process is writing it.
        """
        self.path = path
        self.lines: list[dict[str, Any]] = []
        header = json.loads(json.dumps(header))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        try:
            whole = self._claim(header)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(whole)  # drops a torn last line
        if whole == 0:
            self._write(header)

    def _claim(self, header: dict[str, Any]) -> int:
        """Lock the file and read what it holds; returns where its last whole line ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, killed or not
        except OSError:
            raise JournalError(
                f"another process is writing {self.path}; wait for it, or choose another --out"
            ) from None
        found = list(_whole_lines(self.path))
        # Without one whole line, only the beginning of our own header may be overwritten.
        ours = found[0][1] == header if found else _line(header).startswith(self.path.read_bytes())
        if not ours:
            theirs = found[0][1] if found and isinstance(found[0][1], dict) else {}
            differs = sorted(name for name in theirs.keys() & header.keys() if theirs[name] != header[name])
            raise JournalError(
                f"{self.path} is the journal of other work{f' (another {differs[0]})' if differs else ''}; "
                "choose another --out, or delete it to start afresh"
            )
        self.lines = [document for _, document in found[1:]]
        return found[-1][0] if found else 0

    def append(self, line: dict[str, Any]) -> None:
        """On disk when this returns."""
        self._write(line)
        self.lines.append(line)

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(_line(document))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, lines) of a journal, which another process may be writing.

    Raises:
        JournalError: no journal there, or not one whole line of one.
    """
    try:
        found = [document for _, document in _whole_lines(path)]
    except OSError as error:
        raise JournalError(f"no journal at {path}: {error.strerror}") from None
    if not found or not all(isinstance(document, dict) for document in found):
        raise JournalError(f"{path} is no journal")
    return found[0], found[1:]


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(end of the line in bytes, document) up to the first torn line."""
    end = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        try:
            document = json.loads(line)
        except ValueError:
            return
        end += len(line)
        yield end, document
