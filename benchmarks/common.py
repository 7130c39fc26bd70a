"""What benchmarks share: the machine, the versions, one line a goal, and a PostgreSQL to measure on."""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def print_machine(*packages: str) -> None:
    """Processor, cores, Python and the versions that matter."""
    from latency.runtimes import find_device

    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"machine: {find_device().name}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}")


def print_goal(name: str, value: float, bound: float, *, at_least: bool) -> None:
    """`goal NAME: VALUE (>= BOUND) met`; a missed goal is a figure, not a failure."""
    met = value >= bound if at_least else value <= bound
    print(f"goal {name}: {value:.4g} ({'>=' if at_least else '<='} {bound:g}) {'met' if met else 'missed'}")


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"


@contextmanager
def postgresql() -> Iterator[str | None]:
    """URL of a PostgreSQL server of one's own, empty and on this machine alone; None where none is installed.

    As root its files belong to the user `postgres`, for a server refuses to run as root.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not programs:
        yield None
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [str(programs[-1] / program), *arguments],
                capture_output=True,
                text=True,
                check=False,
                cwd=folder,
                **user,
            )
            if done.returncode:
                raise RuntimeError(f"{program}: {done.stderr or done.stdout}")

        run("initdb", "-D", text + "/data", "-A", "trust", "-U", "vitfit", "--no-sync")
        start = ["-D", text + "/data", "-l", text + "/log", "-o", f"-k {text} -c listen_addresses=''", "-w"]
        run("pg_ctl", *start, "start")
        try:
            yield f"postgresql://vitfit@/postgres?host={text}"
        finally:
            run("pg_ctl", "-D", text + "/data", "-m", "immediate", "-w", "stop")
