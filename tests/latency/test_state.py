"""What a device tells of itself, on a made-up /proc and a made-up NVML."""

from types import SimpleNamespace

import pytest
import torch

from latency.runtimes import Device, state
from latency.runtimes.state import DeviceState, clocks, device_state, driver

CPU, GPU = Device("cpu", "A CPU"), Device("cuda", "A GPU")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that writes a file of /proc or /sys."""
    monkeypatch.setattr(state, "ROOT", tmp_path)
    monkeypatch.setattr(state, "_own_core", lambda: 3)

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


FREQUENCY = "sys/devices/system/cpu/cpu3/cpufreq"


def test_a_cpu_tells_its_clock_its_load_and_who_else_wants_to_run(machine):
    machine("proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2596.118\nprocessor\t: 1\ncpu MHz\t\t: 2000.0\n")
    machine("proc/loadavg", "0.28 0.50 0.62 4/85 20775\n")
    assert device_state(CPU) == DeviceState(clock_mhz=2596.118, others=3, load=0.28)
    assert clocks(CPU) == "2596 MHz"


def test_a_cpus_own_frequency_and_governor_come_first(machine):
    machine("proc/cpuinfo", "cpu MHz\t\t: 2596.118\n")
    machine(f"{FREQUENCY}/scaling_cur_freq", "3400000\n")
    machine(f"{FREQUENCY}/scaling_governor", "powersave\n")
    assert device_state(CPU).clock_mhz == 3400
    assert clocks(CPU) == "3400 MHz, governor powersave"


def test_a_cpu_that_tells_nothing_is_in_no_known_state(machine):
    assert device_state(CPU) == DeviceState()
    assert not device_state(CPU).throttled
    assert clocks(CPU) == ""


def test_this_cpu_is_driven_by_its_kernel():
    assert driver(CPU).split()
    assert device_state(CPU).others >= 0


class FakeNvml:
    """A card with two processes on it and clocks that `reasons` keep down."""

    class NVMLError(Exception):
        pass

    reasons = 0

    def nvmlInit(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return "999.1"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-abc"
        return "card"

    def nvmlDeviceGetClockInfo(self, card, kind):
        assert card == "card"
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card):
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=1), SimpleNamespace(pid=2), SimpleNamespace(pid=2)]

    def nvmlDeviceGetEnforcedPowerLimit(self, card):
        return 700_000


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setattr(state, "_nvml", lambda: fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    state._handle.cache_clear()
    yield fake
    state._handle.cache_clear()


def test_a_gpu_tells_its_clocks_its_limit_and_its_other_processes(nvml):
    assert device_state(GPU) == DeviceState(clock_mhz=1980, memory_mhz=2619, others=1)
    assert clocks(GPU) == "SM 1980 MHz, memory 2619 MHz, power limit 700 W"
    assert driver(GPU) == f"999.1, CUDA {torch.version.cuda}"


@pytest.mark.parametrize(("bits", "slowed_by"), [(0, ()), (0x01, ()), (0x02, ()), (0x44, ("power cap",))])
def test_a_gpu_is_throttled_by_power_or_heat_but_not_by_idling_or_fixed_clocks(nvml, bits, slowed_by):
    nvml.reasons = bits
    found = device_state(GPU)
    assert found.throttled == bool(slowed_by)
    assert set(slowed_by) <= set(found.slowed_by)
    assert all(reason in clocks(GPU) for reason in found.slowed_by)


def test_what_a_card_does_not_tell_is_left_out(nvml, monkeypatch):
    def refuse(*_):
        raise nvml.NVMLError

    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetClockInfo", refuse)
    assert device_state(GPU) == DeviceState(others=1)
    assert clocks(GPU) == "power limit 700 W"


def test_without_nvml_nothing_is_known_of_a_gpu(monkeypatch):
    monkeypatch.setattr(state, "_nvml", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    state._handle.cache_clear()
    assert (device_state(GPU), clocks(GPU), driver(GPU)) == (DeviceState(), "", "")
    state._handle.cache_clear()
