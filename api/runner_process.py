"""The worker's side of the process that does the steps: started for one, kept for the next, killed at will."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from api.settings import Settings

COMMAND = (sys.executable, "-m", "api.runner")

Message = Mapping[str, Any]

ENDED: Message = {"ended": True}


class RunnerProcess:
    """At most one process. `ask` and `next` are for one thread at a time; `kill` is for any."""

    def __init__(
        self, settings: Settings, environment: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND
    ) -> None:
        self._settings, self._command = settings, command
        self._environment = {**os.environ, **(environment or {})}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.Queue[Message] = queue.Queue()
        self._closed = False

    def ask(self, request: Mapping[str, Any]) -> None:
        """Begin a step; what comes of it is `next`."""
        with self._lock:
            if self._closed:
                return
            if self._process is None or self._process.poll() is not None:
                self._kill()  # closes what leads to it
                self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            with suppress(OSError):  # it died already, which `next` tells
                self._process.stdin.write(json.dumps(dict(request)) + "\n")
                self._process.stdin.flush()

    def next(self, seconds: float) -> Message | None:
        """The next thing that it says; `ENDED` where the process died; None where it says nothing for so long."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def kill(self) -> None:
        """End the process, now; the next step starts another one."""
        with self._lock:
            self._kill()

    def close(self) -> None:
        """End it, and start none any more."""
        with self._lock:
            self._closed = True
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)  # with those that load its images
            self._process.wait()
            assert self._process.stdin is not None
            with suppress(OSError):
                self._process.stdin.close()
            self._process = None

    def _start(self) -> None:
        self._messages = queue.Queue()
        self._process = process = subprocess.Popen(  # noqa: S603
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the worker
        )
        threading.Thread(target=_read, args=(process, self._messages), daemon=True).start()
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(self._settings.model_dump_json() + "\n")
            process.stdin.flush()


def _read(process: "subprocess.Popen[str]", messages: "queue.Queue[Message]") -> None:
    assert process.stdout is not None
    with process.stdout as lines, suppress(ValueError, OSError):
        for line in lines:
            messages.put(json.loads(line))
    # Whoever reads of its end asks for another one at once, and must not find this one still dying: it would wait for
    # ever for what nobody does.
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with those that load its images
        process.wait()
    messages.put(ENDED)
