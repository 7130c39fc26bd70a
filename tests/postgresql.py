"""A PostgreSQL server of a test's own, on this machine alone; where none is installed its tests are skipped."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
MISSING = "PostgreSQL is not installed (Debian's package postgresql)"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be stopped and started again: `url` is of its database `postgres`."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def server() -> Iterator[str]:
    """URL of its database `postgres`."""
    with restartable() as found:
        yield found.url


@contextmanager
def restartable() -> Iterator[Server]:
    """As root its files belong to `postgres`: a server refuses to run as root."""
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # short: a socket's path has 107 characters at most
        if user:
            shutil.chown(folder, "postgres", "postgres")

        def run(program: str, *arguments: str) -> None:
            command = [str(PROGRAMS[-1] / program), "-D", f"{folder}/data", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, **user)
            assert done.returncode == 0, done.stderr or done.stdout

        run("initdb", "-A", "trust", "-U", "vitfit", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"

        def start() -> None:
            run("pg_ctl", "-l", f"{folder}/log", "-o", options, "-w", "start")

        def stop() -> None:
            run("pg_ctl", "-m", "immediate", "-w", "stop")

        start()
        try:
            yield Server(f"postgresql://vitfit@/postgres?host={folder}", stop, start)
        finally:
            stop()


@contextmanager
def database(url: str) -> Iterator[str]:
    """An empty database on a server."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        yield url.replace("/postgres?", f"/{name}?")
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
