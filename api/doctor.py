"""Is everything there that vitfit needs here? Each check says what it found and, where it is not well, what to do."""

import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from api.settings import Settings
from vit.errors import VitfitError

FREE_GB = 2.0
FILES = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Attributes:
        do: what helps, where it is not ok.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    do: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    for check in (_python, _packages, _gpu, _runtimes, _folder, _database, _blobs, _keys, _port, _limits):
        try:
            findings += check(settings)
        except (VitfitError, OSError) as error:
            findings.append(Finding(check.__name__.strip("_"), "fail", str(error), "see the message"))
    return findings


def _python(_: Settings) -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    yield Finding(
        "python", "ok" if ok else "fail", platform.python_version(), "" if ok else "install Python 3.11 or later"
    )


def _packages(_: Settings) -> Iterator[Finding]:
    for name, needed in (
        ("torch", True),
        ("timm", True),
        ("onnxruntime", True),
        ("dbos", True),
        ("openvino", False),
        ("ray", False),
    ):
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            do = f"pip install {name}" if needed else f"optional: pip install 'vitfit[{name}]'"
            yield Finding(name, "fail" if needed else "warn", "not installed", do)


def _gpu(_: Settings) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding("gpu", "warn", "no CUDA device that torch can use", "CPU targets work; for GPUs check the driver")
        return
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        known = f"sm_{capability[0]}" in {name[:-1] for name in torch.cuda.get_arch_list()}
        do = "" if known else "this build of torch has no kernels for it; take one of an older CUDA (V100: CUDA 12)"
        yield Finding(f"gpu {index}", "ok" if known else "fail", name, do)


def _runtimes(_: Settings) -> Iterator[Finding]:
    for name in ("openvino", "tensorrt"):
        if importlib.util.find_spec(name) is not None:
            yield Finding(f"runtime {name}", "ok", version(name))


def _folder(settings: Settings) -> Iterator[Finding]:
    root = settings.data_dir
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
        yield Finding("data folder", "ok", f"{root} can be written")
    except OSError as error:
        yield Finding("data folder", "fail", f"{root}: {error.strerror}", "make it writable, or set VITFIT_DATA_DIR")
        return
    free = shutil.disk_usage(root).free / 1e9
    state: Literal["ok", "warn"] = "ok" if free > FREE_GB else "warn"
    yield Finding("disk", state, f"{free:.1f} GB free", "" if free > FREE_GB else "make room: jobs keep checkpoints")


def _database(settings: Settings) -> Iterator[Finding]:
    from api.db import HEAD, Database, database_url, shown

    url = database_url(settings)
    database = Database(url)
    try:
        with database.reading():
            yield Finding("database", "ok", f"{shown(url)}, version {HEAD}")
    finally:
        database.close()


def _blobs(settings: Settings) -> Iterator[Finding]:
    from api.blobs import Blobs

    blobs = Blobs.of(settings)
    digest = blobs.put_bytes(b"vitfit doctor")
    blobs.delete(digest)
    yield Finding("blobs", "ok", settings.blob_url or "in the data folder")


def _keys(settings: Settings) -> Iterator[Finding]:
    from api.db import Database, database_url
    from api.guard import keys_required
    from api.keys import Keys

    if not keys_required(settings):
        yield Finding("API keys", "ok", f"not needed on {settings.host}")
        return
    database = Database(database_url(settings))
    try:
        valid = [key for key in Keys(lambda: database).all() if key.to_dict()["state"] == "valid"]
    finally:
        database.close()
    do = "" if valid else "make one: vitfit keys create NAME --scope write"
    yield Finding("API keys", "ok" if valid else "fail", f"needed on {settings.host}; {len(valid)} are valid", do)


def _port(settings: Settings) -> Iterator[Finding]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
            yield Finding("port", "ok", f"{settings.host}:{settings.port} is free")
        except OSError as error:
            do = "a service may run there already; else choose another with --port"
            yield Finding("port", "warn", f"{settings.host}:{settings.port}: {error.strerror}", do)


def _limits(_: Settings) -> Iterator[Finding]:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft >= FILES
    yield Finding("open files", "ok" if ok else "warn", f"{soft} at most", "" if ok else f"ulimit -n {FILES}")
    yield Finding("cores", "ok", f"{os.cpu_count()}")


Check = Callable[[Settings], Iterator[Finding]]
