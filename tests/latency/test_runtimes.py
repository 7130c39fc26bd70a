"""Runtimes run what they are given; what is not there is refused by name."""

import contextlib

import pytest
import torch

from latency.errors import TargetError
from latency.runtimes import DTYPES, RUNTIMES, Device, find_device, local_target, prepare, versions
from latency.target import Target
from vit.errors import UnknownNameError

CPU = Device("cpu", "A CPU", 1)


def test_the_cpu_is_found_with_its_threads():
    device = find_device("cpu", 3)
    assert (device.torch_device, device.threads, device.single_threaded) == ("cpu", 3, False)
    assert device.slug.endswith("-3t")
    assert find_device("cpu", 1).single_threaded
    assert local_target(device, "eager", "fp32", 4, 17).slug == f"{device.slug}-eager-fp32-b4-n17"


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_refused(threads):
    with pytest.raises(TargetError, match="threads must be at least 1"):
        find_device("cpu", threads)


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="unknown device 'tpu'; known: cpu, cuda"):
        find_device("tpu")


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=f"unknown runtime 'warp'; known: {', '.join(RUNTIMES)}"):
        local_target(CPU, "warp", "fp32", 1, 5)


def test_an_unknown_dtype_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=f"unknown dtype 'int3'; known: {', '.join(DTYPES)}"):
        local_target(CPU, "eager", "int3", 1, 5)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_below_one_is_refused(batch):
    with pytest.raises(TargetError, match="batch must be a whole number from 1"):
        local_target(CPU, "eager", "fp32", batch, 5)


def test_cuda_where_there_is_none_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match="no CUDA device here; profile with --device cpu"):
        find_device("cuda")


def test_a_devices_threads_hold_while_it_is_active_and_no_longer():
    before = torch.get_num_threads()
    with contextlib.suppress(KeyError), Device("cpu", "x", before + 1).active():
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


class Recorder(torch.nn.Module):
    """Remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.seen = []

    def forward(self, x):
        self.seen.append((x.shape, x.dtype, x.device.type, self.weight.dtype, self.training, torch.is_grad_enabled()))
        return x * self.weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_call_runs_the_module_once_on_a_batch_of_the_target_in_eval_mode_without_autograd(runtime, dtype):
    module = Recorder()
    call = prepare(Target("x", runtime, dtype, 4, 5), CPU, [module], (5, 3))
    seen = (torch.Size((4, 5, 3)), DTYPES[dtype], "cpu", DTYPES[dtype], False, False)
    before = len(module.seen)
    call()
    assert module.seen[before:] == [seen]


def test_versions_name_what_was_timed():
    assert versions()["torch"] == torch.__version__
    assert set(versions()) == {"torch", "python", "allocator"}
