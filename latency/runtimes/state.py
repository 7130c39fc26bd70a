"""What a device is doing while it is timed: clocks, throttling, and who else is on it.

GPUs are asked through NVML (the extra `cuda`; without it nothing is known of them), CPUs through /proc and /sys.
"""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from latency.runtimes.device import Device

SLOWED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's bits for clocks that were lowered (nvml.h, nvmlClocksEventReasons). Idling and fixed clocks are none."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One look at a device; what it does not tell is None, or nothing to complain of.

    Attributes:
        clock_mhz: of the processors now; on a CPU of one core that this process may use.
        memory_mhz: of a GPU's memory now.
        slowed_by: why the clocks are lower than they were asked to be.
        others: a GPU's other processes; on a CPU, other threads of the machine that run or wait to.
        load: the CPU's load average over a minute.
    """

    clock_mhz: float | None = None
    memory_mhz: float | None = None
    slowed_by: tuple[str, ...] = ()
    others: int = 0
    load: float | None = None

    @property
    def throttled(self) -> bool:
        return bool(self.slowed_by)


def device_state(device: Device) -> DeviceState:
    """A look at the device now; takes about a millisecond and never fails."""
    return _gpu_state() if device.torch_device == "cuda" else _cpu_state()


def driver(device: Device) -> str:
    """What drives the device: a GPU's driver and CUDA, a CPU's kernel; "" where it is not known."""
    if device.torch_device == "cpu":
        return f"{platform.system()} {platform.release()}"
    import torch

    found = _ask("nvmlSystemGetDriverVersion")
    return f"{found}, CUDA {torch.version.cuda}" if found else ""


def clocks(device: Device) -> str:
    """Clocks and what bounds them, for people; "" where nothing is known."""
    state = device_state(device)
    if device.torch_device == "cpu":
        return ", ".join(part for part in (_mhz("", state.clock_mhz), _governor()) if part)
    limit = _ask_gpu("nvmlDeviceGetEnforcedPowerLimit")
    power = "" if limit is None else f"power limit {limit / 1000:.0f} W"
    parts = (_mhz("SM ", state.clock_mhz), _mhz("memory ", state.memory_mhz), power, " and ".join(state.slowed_by))
    return ", ".join(part for part in parts if part)


def _mhz(what: str, clock: float | None) -> str:
    return "" if clock is None else f"{what}{clock:.0f} MHz"


# --- CPUs --------------------------------------------------------------------------------------------------------

ROOT = Path("/")
"""Where proc and sys are; another folder in tests."""


def _cpu_state() -> DeviceState:
    load = _read("proc/loadavg").split()
    running = int(load[3].partition("/")[0]) if len(load) > 3 else 1
    return DeviceState(clock_mhz=_cpu_mhz(), others=max(0, running - 1), load=float(load[0]) if load else None)


def _cpu_mhz() -> float | None:
    """From cpufreq, which is quick, or from cpuinfo, where virtual machines have it."""
    if khz := _read(f"sys/devices/system/cpu/cpu{_own_core()}/cpufreq/scaling_cur_freq"):
        return float(khz) / 1000
    found = [line.partition(":")[2] for line in _read("proc/cpuinfo").splitlines() if line.startswith("cpu MHz")]
    return float(found[0]) if found else None


def _governor() -> str:
    governor = _read(f"sys/devices/system/cpu/cpu{_own_core()}/cpufreq/scaling_governor")
    return f"governor {governor}" if governor else ""


def _own_core() -> int:
    return min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _read(path: str) -> str:
    try:
        return (ROOT / path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


# --- GPUs --------------------------------------------------------------------------------------------------------


def _gpu_state() -> DeviceState:
    reasons = _ask_gpu("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    processes = _ask_gpu("nvmlDeviceGetComputeRunningProcesses") or ()
    return DeviceState(
        clock_mhz=_ask_gpu("nvmlDeviceGetClockInfo", 1),  # NVML_CLOCK_SM
        memory_mhz=_ask_gpu("nvmlDeviceGetClockInfo", 2),  # NVML_CLOCK_MEM
        slowed_by=tuple(name for bit, name in SLOWED.items() if reasons & bit),
        # This process is one of them, by a number that may be another outside of its container.
        others=max(0, len({process.pid for process in processes}) - 1),
    )


def _ask_gpu(function: str, *arguments: object) -> Any:
    handle = _handle()
    return None if handle is None else _ask(function, handle, *arguments)


def _ask(function: str, *arguments: object) -> Any:
    """NVML's answer, or None: not installed, no driver, or a card that does not say."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


@cache
def _nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


@cache
def _handle() -> Any:
    """NVML's handle of PyTorch's device, which CUDA_VISIBLE_DEVICES may have made any of the machine's."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(torch.device("cuda")), "uuid", None)
    return _ask("nvmlDeviceGetHandleByIndex", 0) if uuid is None else _ask("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
