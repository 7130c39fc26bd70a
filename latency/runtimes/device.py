"""A device of this machine: its name, its threads, and the stopwatch that times work on it."""

import ctypes
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from latency.errors import TargetError
from latency.target import Target, device_slug
from latency.timer import CpuStopwatch, CudaStopwatch, Stopwatch
from vit.errors import UnknownNameError

HEAP_BYTES = 2**30
"""By which the heap grows while models are timed. Of addresses, not of memory: what is never used takes none."""

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


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

    def stopwatch(self) -> Stopwatch:
        """What times calls on this device: clocks around a CPU's, events between a GPU's."""
        return CudaStopwatch() if self.torch_device == "cuda" else CpuStopwatch(self.single_threaded)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Give PyTorch this device's threads and a steady allocator; threads go back to what they were."""
        import torch

        before = torch.get_num_threads()
        keep_memory()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@cache
def keep_memory() -> str:
    """Make glibc keep freed memory instead of handing it back to the system, in huge pages where there are any; returns
    what was done.

    By default every large activation is mapped, faulted in page by page and unmapped again: 20 % of the time of a small
    ViT on a CPU, and another share in every process. And in pages of 4 KiB, blocks of different sizes, which each use
    other memory, wait for the translation of its addresses, which a block that is timed alone does not. Services have
    the same with the settings of decision 3 (or with another allocator); a table made so promises what they get.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX in malloc.h
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return "system default"
    if mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1):
        return "glibc, freed memory kept" + (", huge pages" if _ask_for_huge_pages(libc) else "")
    return "glibc default"


def _ask_for_huge_pages(libc: ctypes.CDLL) -> bool:
    """Grow the heap, which is never given back, by `HEAP_BYTES`, and ask the kernel for huge pages in all of it.

    Returns whether the system has any. That depends on the system alone, not on what this process did before: journals
    of one table must not differ in it.
    """
    try:
        if "[never]" in HUGE_PAGES.read_text(encoding="ascii"):
            return False
    except OSError:
        return False
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free(libc.malloc(HEAP_BYTES))
    huge, advice = 2**21, 14  # MADV_HUGEPAGE
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith("[heap]"):
            start, end = (int(one, 16) for one in line.split()[0].split("-"))
            first = -(-start // huge) * huge
            if end - first >= huge:
                libc.madvise(first, (end - first) // huge * huge, advice)
    return True


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
        import torch

        if not torch.cuda.is_available():
            raise TargetError("no CUDA device here; profile with --device cpu, or on a machine with a GPU")
        return Device("cuda", torch.cuda.get_device_name())
    raise UnknownNameError("device", name, ("cpu", "cuda"))


def cpu_threads(slug: str) -> int | None:
    """Threads of a CPU by its slug: 'amd-epyc-4t' -> 4; None: a GPU."""
    found = re.search(r"-(\d+)t$", slug)
    return int(found[1]) if found else None


def device_of(target: Target) -> Device:
    """This machine's device that a target is of.

    Raises:
        TargetError: it is of another one.
    """
    threads = cpu_threads(target.device)
    device = find_device("cpu", threads) if threads else find_device("cuda")
    if device.slug != target.device:
        raise TargetError(f"{target.slug} is of {target.device}, this device is {device.slug}; measure it there")
    return device
