"""What runs a module, where, and how its time is taken. Names are known without torch; running needs it."""

from latency.runtimes.catalogue import DTYPES, RUNTIMES, Call, Prepare, Runtime, check, local_target
from latency.runtimes.device import Device, find_device, keep_memory
from latency.runtimes.prepare import prepare, versions

__all__ = [
    "DTYPES",
    "RUNTIMES",
    "Call",
    "Device",
    "Prepare",
    "Runtime",
    "check",
    "find_device",
    "keep_memory",
    "local_target",
    "prepare",
    "versions",
]
