"""Runtimes: a module and a batch -> a call that runs it once and returns when it is done.

One function a runtime, all under one signature, in a table; later runtimes (torch.compile, ONNX Runtime) join it.
"""

import ctypes
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from latency.errors import TargetError
from latency.target import Target, device_slug
from vit.errors import UnknownNameError

Call = Callable[[], object]
Prepare = Callable[[nn.Module, Tensor], Call]


def eager(module: nn.Module, x: Tensor) -> Call:
    """PyTorch as it is, without autograd."""

    def call() -> None:
        with torch.inference_mode():
            module(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)

    return call


RUNTIMES: dict[str, Prepare] = {"eager": eager}

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine.

    Attributes:
        torch_device: `cpu` or `cuda`.
        name: as the device calls itself.
        threads: CPU threads that may run at once.
    """

    torch_device: str
    name: str
    threads: int = 1

    @property
    def slug(self) -> str:
        name = device_slug(self.name)
        return name if self.torch_device == "cuda" else f"{name}-{self.threads}t"

    @property
    def single_threaded(self) -> bool:
        return self.torch_device == "cpu" and self.threads == 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """Give PyTorch this device's threads and a steady allocator; threads go back to what they were."""
        before = torch.get_num_threads()
        keep_memory()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@cache
def keep_memory() -> str:
    """Make glibc keep freed memory instead of handing it back to the system; returns what was done.

    By default every large activation is mapped, faulted in page by page and unmapped again: 20 % of the time of a small
    ViT on a CPU, and another share in every process. Services set MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_MAX_ (or use
    another allocator) for the same effect; a table made so promises what they get.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return "system default"
    if mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1):
        return "glibc, freed memory kept"
    return "glibc default"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "cpu"


def find_device(name: str = "cpu", threads: int = 1) -> Device:
    """A device of this machine by PyTorch's name.

    Raises:
        TargetError: it is not there.
    """
    if name == "cpu":
        if threads < 1:
            raise TargetError(f"threads must be at least 1, got {threads}")
        return Device("cpu", _cpu_name(), threads)
    if name == "cuda":
        if not torch.cuda.is_available():
            raise TargetError("no CUDA device here; profile with --device cpu, or on a machine with a GPU")
        return Device("cuda", torch.cuda.get_device_name())
    raise UnknownNameError("device", name, ("cpu", "cuda"))


def local_target(device: Device, runtime: str, dtype: str, batch: int, tokens: int) -> Target:
    """The Target of this machine; unknown names are refused."""
    if runtime not in RUNTIMES:
        raise UnknownNameError("runtime", runtime, RUNTIMES)
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    return Target(device.slug, runtime, dtype, batch, tokens)


def prepare(target: Target, device: Device, modules: Sequence[nn.Module], shape: tuple[int, ...]) -> Call:
    """The call that runs one module on a batch of random numbers of `shape`, the next one each time."""
    dtype = DTYPES[target.dtype]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(target.batch, *shape, generator=generator).to(device.torch_device, dtype)
    runtime = RUNTIMES[target.runtime]
    turns = itertools.cycle([runtime(module.to(device.torch_device, dtype).eval(), x) for module in modules])
    return lambda: next(turns)()


def versions() -> dict[str, str]:
    """Of what was timed, and the memory allocator it used."""
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "allocator": keep_memory(),
    }
