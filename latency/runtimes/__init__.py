"""What runs a module, where, and how its time is taken. Names are known without torch; running needs it."""

from latency.runtimes.catalogue import DTYPES, RUNTIMES, Call, Prepare, Runtime, check, local_target, remote_target
from latency.runtimes.device import Device, cpu_threads, device_of, find_device, keep_memory
from latency.runtimes.prepare import prepare, versions
from latency.runtimes.state import DeviceState, clocks, device_state, driver

__all__ = [
    "DTYPES",
    "RUNTIMES",
    "Call",
    "Device",
    "DeviceState",
    "Prepare",
    "Runtime",
    "check",
    "clocks",
    "cpu_threads",
    "device_of",
    "device_state",
    "driver",
    "find_device",
    "keep_memory",
    "local_target",
    "prepare",
    "remote_target",
    "versions",
]
