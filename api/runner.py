"""The process that does the steps of jobs, one at a time: `python -m api.runner`, which a worker starts.

It is the one with torch, and may be killed at any moment: where a job is cancelled, takes too long, or belongs to
another worker by now. What it leaves half-done is hidden, and removed by the next attempt.

On stdin come lines of JSON: the settings, then a request for each step. Out go lines of JSON, to a descriptor that is
kept from what libraries print: progress, log, and in the end what the step returned or the problem that it had.
"""

import errno
import json
import logging
import os
import queue
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from api import logs
from api.blobs import Blobs
from api.device_locks import device_held, folder_owned
from api.errors import LocatedError, kind_of
from api.job_kinds import KINDS
from api.job_saving import Context
from api.jobs import FOLDER, path_of
from api.library import Library
from api.problems import INTERNAL, STORAGE_FULL
from api.settings import Settings
from vit.errors import VitfitError
from vit.files import write_atomically

logger = logging.getLogger(__name__)

NICENESS = 10
"""Requests go before jobs where both want a core."""

NOTE_SECONDS = 0.5
"""Between two notes of a stage's progress."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One step of one job.

    Attributes:
        document: what was posted.
        made: what the step before returned.
        files: of the steps before, by name in the job's folder: their digests.
        retry_of: a job whose unfinished work may lie on this machine.
    """

    job: str
    kind: str
    step: str
    document: Document
    made: Document
    files: dict[str, str]
    retry_of: str | None = None


class Out:
    """Lines to the worker, from any thread."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._lock = file, threading.Lock()

    def __call__(self, **document: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(document) + "\n")
            self._file.flush()


class _Progress:
    """Of one step, written down now and then."""

    def __init__(self, out: Out) -> None:
        self._out, self._stage, self._due = out, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now < self._due:
            return
        self._stage, self._due = stage, now + NOTE_SECONDS
        self._out(progress=[stage, done, total])


class _Warnings(logging.Handler):
    """Into the log of the job, besides where they go anyway."""

    def __init__(self, out: Out) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        self._out(log=f"{record.levelname.lower()}: {record.getMessage()}"[:2000])


def main() -> None:
    out = Out(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what libraries print is no line of ours
    # Not through sys.stdin: who waits there holds its lock, and a process that is forked to load images closes it.
    lines = os.fdopen(os.dup(0))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    settings = Settings(**json.loads(lines.readline()))
    asked: queue.Queue[Document] = queue.Queue()
    threading.Thread(target=_read, args=(lines, asked), daemon=True).start()
    logs.configure(settings, "job")
    logging.getLogger().addHandler(_Warnings(out))
    os.nice(NICENESS)
    # Names of files are relative to the data folder: what a job reports says nothing about the machine.
    os.chdir(settings.data_dir)
    library, blobs = Library.of(settings), Blobs.of(settings)
    while True:
        request = Request(**asked.get())
        try:
            out(**done(request, library, blobs, settings, out))
        except Exception as error:
            out(problem=problem_of(error, request.job))


def _read(lines: TextIO, asked: "queue.Queue[Document]") -> None:
    """Ends this process with its worker, whatever that dies of: kill -9 closes the pipe, too."""
    for line in lines:
        asked.put(json.loads(line))
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # and those that load its images
    os._exit(0)


def done(request: Request, library: Library, blobs: Blobs, settings: Settings, out: Out) -> Document:
    """Do a step; gives what it returned, and the digests of the files that are there now."""
    kind, folder, progress = KINDS[request.kind], Path(FOLDER, request.job), _Progress(out)
    step = kind.load(request.step)
    context = Context(request.document, library, settings, folder, lambda text: out(log=text))
    alone, device = kind.alone, _lock_name(request.document)
    with (
        folder_owned(folder),
        device_held(Path(FOLDER), device, alone, lambda: progress("waiting for the device", 0, 1)),
    ):
        _sweep(folder)
        if request.retry_of is not None:
            _take_along(Path(FOLDER, request.retry_of), folder)
        for name, digest in request.files.items():
            _fetch(folder / name, digest, blobs)
        made = dict(step(context, request.made, progress))
        left: list[str] = made.pop("leaves", [])
        return {"done": made, "files": {name: _stored(folder, name, blobs, request.files) for name in left}}


def problem_of(error: Exception, job_id: str) -> Document:
    """As the service shows it."""
    cause = error.cause if isinstance(error, LocatedError) else error
    ours, kind = isinstance(cause, VitfitError), kind_of(cause)
    if not ours:
        logger.exception("job %s failed", job_id)
    detail = str(error) if ours else INTERNAL.example
    if (reason := _unwritable(error)) is not None:
        kind, detail = STORAGE_FULL, reason
    detail = detail.replace(f"{Path.cwd()}/", "")
    field = error.field if isinstance(error, LocatedError) else None
    return kind.document(detail, path_of(job_id), field)


def _unwritable(error: BaseException | None) -> str | None:
    """Why nothing can be written, where that is what went wrong. Libraries in other languages tell it in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return os.strerror(error.errno)
        if (found := re.search(r"\(os error (\d+)\)", str(error))) and int(found[1]) in FULL:
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return None


def _lock_name(document: Document) -> str:
    if document.get("device") != "cuda":
        return "cpu"
    return f"cuda-{os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0] or '0'}"


def _sweep(folder: Path) -> None:
    """Remove what an attempt that was killed left half-written: hidden files and folders."""
    for path in folder.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _take_along(before: Path, folder: Path) -> None:
    """Unfinished work of the job that this one tries again: runs with a journal go on in the middle of a step."""
    if before.is_dir() and not any(folder.iterdir()):
        shutil.copytree(before, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def _fetch(path: Path, digest: str, blobs: Blobs) -> None:
    """A file of an earlier step, where another machine did it."""
    if not path.exists():
        write_atomically(path, lambda temporary: shutil.copyfile(blobs.local(digest), temporary))


def _stored(folder: Path, name: str, blobs: Blobs, known: dict[str, str]) -> list[Any]:
    path = folder / name
    return [known.get(name) or blobs.put(path), path.stat().st_size]


if __name__ == "__main__":
    main()
