"""What benchmarks share: the machine, one line a goal, what long runs keep, tables and a PostgreSQL to measure on."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from latency.table import LatencyTable
    from vit.architecture import Architecture


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


def add_keep(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep there what is done: killed, the same command goes on; an empty one for other options or other code",
    )


def kept(folder: Path | None, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, as JSON gives it back; where an earlier run kept it, that."""
    if folder is None:
        return json.loads(json.dumps(make()))
    from vit.files import write_atomically

    path = folder / f"{name}.json"
    if not path.exists():
        text = json.dumps(make())
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return json.loads(path.read_text(encoding="utf-8"))


def cpu_table(arch: "Architecture", folder: Path | None = None, name: str = "table", **plan: Any) -> "LatencyTable":
    """A table of this CPU, batch 64, kept likewise; `plan` is profile_plan's."""
    from api.profiling import profile_plan, run_profile
    from latency.runtimes import find_device
    from latency.storage import load_table

    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)) / f"{name}.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            for _ in run_profile(profile_plan(arch, find_device(), batch=64, **plan), find_device(), path):
                pass
        return load_table(path)


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
