"""Who may use a device of this machine: many jobs at once, or one that measures, alone.

A profile measures, so it takes its device for itself; on the CPU, which every job uses, it takes the whole machine. All
others share. The locks are of files in the data folder, and the system gives them back whatever a process dies of.

One that wants a device alone waits at a gate, behind which nobody else gets in: it is not passed for ever by jobs that
share.
"""

import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

FOLDER, OWNERS = ".devices", ".owners"

POLL_SECONDS = 0.2


@contextmanager
def device_held(folder: Path, device: str, alone: bool, waiting: Callable[[], None]) -> Iterator[None]:
    """
    Args:
        folder: of the jobs of this machine.
        device: cpu, cuda-0 ...
        alone: nobody else on the device meanwhile.
        waiting: called now and then while others have it.
    """
    wanted = {"cpu": False, device: alone} | ({"cpu": alone} if device == "cpu" else {})
    with ExitStack() as stack:
        for name, exclusive in sorted(wanted.items()):
            stack.enter_context(_locked(folder / FOLDER, name, exclusive, waiting))
        yield


@contextmanager
def _locked(folder: Path, name: str, exclusive: bool, waiting: Callable[[], None]) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.gate").open("w") as gate, (folder / name).open("w") as lock:
        _take(gate.fileno(), fcntl.LOCK_EX, waiting)
        _take(lock.fileno(), fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, waiting)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def _take(file: int, how: int, waiting: Callable[[], None]) -> None:
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return
        except OSError:
            waiting()
            time.sleep(POLL_SECONDS)


@contextmanager
def folder_owned(folder: Path) -> Iterator[None]:
    """A job's folder for this process alone. Whoever else still writes there lost the job, and is killed.

    That is the process of a worker that stood still, was taken for dead, and woke up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / OWNERS / folder.name
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if (holder := _holder(file.fileno())) > 0:
                    os.kill(holder, signal.SIGKILL)
                time.sleep(POLL_SECONDS / 10)
        yield


class _Flock(ctypes.Structure):
    _fields_ = (
        ("l_type", ctypes.c_short),
        ("l_whence", ctypes.c_short),
        ("l_start", ctypes.c_longlong),
        ("l_len", ctypes.c_longlong),
        ("l_pid", ctypes.c_int),
    )


def _holder(file: int) -> int:
    """Process that has the POSIX lock of a file; 0 where nobody has it, or one that cannot be seen from here."""
    asked = bytes(_Flock(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    answer = _Flock.from_buffer_copy(fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if answer.l_type == fcntl.F_UNLCK else int(answer.l_pid)
