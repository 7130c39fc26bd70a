"""Fences of the docs, and a shell that they are typed into."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
SECONDS = 540
"""Here a page takes about 90 seconds of one core, and a core may be shared by four."""


def page_text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text: str) -> Iterator[tuple[str, str]]:
    """What stands behind the opening ```, and what is in it."""
    yield from FENCE.findall(text)


def typed(script: str, folder: Path) -> tuple[int | None, str]:
    """Exit status (None: it took too long) and all that was printed. Whatever it started is stopped.

    It is typed in `folder / "work"`, where something may stand ready; library, home and port are its own.
    """
    work, vitfit = folder / "work", folder / "bin" / "vitfit"
    work.mkdir(exist_ok=True)
    vitfit.parent.mkdir()
    (folder / "home").mkdir()
    vitfit.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m api.cli "$@"\n')
    vitfit.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VITFIT_")} | {
        "PATH": f"{vitfit.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / "home"),
        "VITFIT_DATA_DIR": str(work / "library"),
        "VITFIT_PORT": str(port),
        "COLUMNS": "200",  # where lines are broken is of no interest
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    with (folder / "printed.txt").open("w") as out:
        shell = subprocess.Popen(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        try:
            status = shell.wait(SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            stop(shell.pid, work)
            shell.wait()
    return status, (folder / "printed.txt").read_text(encoding="utf-8")


def stop(session: int, work: Path) -> None:
    """The script's session, and what left it (a worker does its steps in a session of its own), known by its folder."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while left := [int(one.name) for one in Path("/proc").glob("[0-9]*") if str(work) in setting_of(one)]:
        assert time.monotonic() < deadline, left
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def setting_of(process: Path) -> str:
    try:
        return (process / "environ").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended, or is another user's
        return ""
