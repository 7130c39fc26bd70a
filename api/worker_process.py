"""The service's side of the worker: starts its process when there may be jobs, and another one when it dies."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Event, Lock, Thread

from api.settings import Settings

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "api.worker")

LONGEST_PAUSE = 60.0
"""Seconds before the next attempt to start a worker that dies again and again."""

STOP_SECONDS = 10


class WorkerProcess:
    """At most one process, none while there is nothing to do. Methods may be called from many threads."""

    def __init__(self, settings: Settings, command: Sequence[str] = COMMAND, queue: str = "cpu") -> None:
        """
        Args:
            queue: that it serves.
        """
        self._settings, self._command, self._queue = settings, command, queue
        self._lock, self._stopping = Lock(), Event()
        self._keeper: Thread | None = None
        self._wanted = False
        self._process: subprocess.Popen[str] | None = None

    def ensure(self) -> None:
        """Returns at once; the process needs a moment."""
        with self._lock:
            self._wanted = True
            if self._keeper is None and not self._stopping.is_set():
                self._keeper = Thread(target=self._keep, name="worker-keeper", daemon=True)
                self._keeper.start()

    def stop(self) -> None:
        """End the process; the job that it is doing goes on with the next one."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()

    def _keep(self) -> None:
        pause = 1.0
        while (process := self._start()) is not None:
            status = process.wait()
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            if status and not self._stopping.is_set():
                logger.error("the worker ended with exit status %d; another one starts in %.0f s", status, pause)
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            with self._lock:
                # A worker that had nothing to do may end at the moment when a job comes.
                if not status and not self._wanted:
                    self._keeper = None
                    return

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._wanted = False
            # A session of its own: Ctrl-C is for the service, which then ends the worker.
            self._process = process = subprocess.Popen(  # noqa: S603
                self._command, stdin=subprocess.PIPE, text=True, start_new_session=True
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it died already, which its exit status tells
            told = self._settings.model_dump(mode="json") | {"queue": self._queue}
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()  # and stays open: the worker ends when nobody holds the other end any more
        return process


class WorkerProcesses:
    """A worker for each queue that the service itself serves; none where it is not to do jobs."""

    def __init__(self, settings: Settings) -> None:
        queues = settings.worker_queues if settings.worker else ()
        self._kept = {queue: WorkerProcess(settings, queue=queue) for queue in queues}

    def ensure(self, queue: str) -> None:
        """There is a job in a queue, which may be one that others serve."""
        if queue in self._kept:
            self._kept[queue].ensure()

    def ensure_all(self) -> None:
        """There may be jobs that were interrupted, or still wait."""
        for process in self._kept.values():
            process.ensure()

    def stop(self) -> None:
        for process in self._kept.values():
            process.stop()
