"""Every runtime gives what PyTorch gives, from copies in turn, and refuses by name what it cannot run."""

import contextlib
import importlib.util
import itertools
import platform
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from latency.errors import TargetError
from latency.runtimes import DTYPES, RUNTIMES, Device, catalogue, find_device, local_target, prepare, versions
from latency.runtimes.device import HUGE_PAGES
from latency.target import Target
from tests.cases import CLASS_TOKEN, assert_same_state, build, images
from vit.architecture import BlockShape
from vit.errors import UnknownNameError

CPU = Device("cpu", "A CPU", 1)
ROOT = Path(__file__).parents[2]


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


def test_a_dtype_that_a_runtime_does_not_run_is_refused_with_those_it_runs_and_the_runtimes_that_do():
    expected = "runtime onnxruntime on cpu runs fp32, not bf16; bf16 on cpu is run by eager, compile, openvino"
    with pytest.raises(TargetError, match=expected):
        local_target(CPU, "onnxruntime", "bf16", 1, 5)


def test_a_device_that_a_runtime_does_not_run_on_is_refused_with_those_it_runs_on():
    with pytest.raises(TargetError, match="runtime tensorrt runs on cuda, not on cpu"):
        local_target(CPU, "tensorrt", "fp32", 1, 5)
    with pytest.raises(TargetError, match="runtime openvino runs on cpu, not on cuda"):
        local_target(Device("cuda", "x"), "openvino", "fp32", 1, 5)


@pytest.mark.parametrize("runtime", [name for name, row in RUNTIMES.items() if row.extra])
def test_a_runtime_that_is_not_installed_is_refused_with_the_extra_to_install(monkeypatch, runtime):
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    row = RUNTIMES[runtime]
    device = Device(next(iter(row.dtypes)), "x")
    expected = f"runtime {runtime} needs the package {row.package}: pip install 'vitfit\\[{row.extra}\\]'"
    with pytest.raises(TargetError, match=expected):
        local_target(device, runtime, "fp32", 1, 5)
    with pytest.raises(TargetError, match=expected):
        prepare(Target("x", runtime, "fp32", 1, 5), device, [torch.nn.Identity()], (5, 3))


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


# --- the contract of every runtime -------------------------------------------------------------------------------

TOLERANCE = {"fp32": 1e-5, "bf16": 4e-2, "fp16": 5e-3, "amp": 5e-3}
"""Largest difference over the largest output: some ten roundings of the dtype."""

SMALL = CLASS_TOKEN.replace(blocks=(BlockShape(3, 4, 5, 16),))
TOKENS, BATCH = SMALL.tokens, 3

ROWS = [
    pytest.param(
        name,
        device,
        dtype,
        id=f"{name}-{device}-{dtype}",
        marks=[
            *([pytest.mark.gpu] if device == "cuda" else []),
            pytest.mark.skipif(importlib.util.find_spec(row.package) is None, reason=f"needs {row.package}"),
        ],
    )
    for name, row in RUNTIMES.items()
    for device, dtypes in row.dtypes.items()
    for dtype in dtypes
]


def device_of(name):
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return find_device(name)


@pytest.mark.parametrize(("runtime", "device", "dtype"), ROWS)
def test_a_runtime_gives_what_pytorch_gives_from_its_modules_in_turn_and_leaves_them_as_they_are(
    runtime, device, dtype
):
    device = device_of(device)
    if (runtime, dtype) == ("openvino", "bf16") and not openvino_has_bf16():
        pytest.skip("this processor has no bf16")
    models = [build(SMALL, seed, torch.float32).train() for seed in (0, 1)]
    blocks = [model.blocks[0] for model in models]
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    target = Target(device.slug, runtime, dtype, BATCH, TOKENS)
    draw = torch.Generator().manual_seed(0)
    for modules, shape in ((blocks, (TOKENS, SMALL.embed_dim)), (models, images(SMALL, 1).shape[1:])):
        with device.active():
            call = prepare(target, device, modules, tuple(shape))
            found = [call().float().cpu().clone() for _ in range(4)]
        x = torch.randn(BATCH, *shape, generator=draw.manual_seed(0))
        with torch.no_grad():
            expected = [module(x) for module in modules]
        for y, truth in zip(found, itertools.cycle(expected)):
            assert (y - truth).abs().max() <= TOLERANCE[dtype] * truth.abs().max()
    for model, state in zip(models, before, strict=True):
        assert model.training
        assert_same_state(model.state_dict(), state)


def calls_of(runtime, dtype, threads=1, copies=1):
    """Calls of a small block, straight from the runtime."""
    modules = [build(SMALL, seed, torch.float32).blocks[0] for seed in range(copies)]
    x = torch.randn(BATCH, TOKENS, SMALL.embed_dim)
    return RUNTIMES[runtime].load()(modules, x, Device("cpu", "A CPU", threads), dtype)


@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_runtime_and_openvino_use_the_devices_threads(threads):
    options = calls_of("onnxruntime", "fp32", threads)[0].session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    pytest.importorskip("openvino")
    compiled = calls_of("openvino", "fp32", threads)[0].request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("NUM_STREAMS") == 1


def openvino_has_bf16():
    openvino = pytest.importorskip("openvino")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize(("dtype", "precision"), [("fp32", "f32"), ("bf16", "bf16")])
def test_openvino_multiplies_in_the_dtype_that_was_asked_for(dtype, precision):
    """Left alone it computes in bf16 wherever it can, whatever the model says."""
    if not openvino_has_bf16():
        pytest.skip("this processor has no bf16")
    compiled = calls_of("openvino", dtype)[0].request.get_compiled_model()
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    found = {i["runtimePrecision"].astype(str) for i in infos if i["layerType"].astype(str) == "FullyConnected"}
    assert found == {precision}


def test_openvino_refuses_bf16_on_a_processor_without_it(monkeypatch):
    openvino = pytest.importorskip("openvino")

    class Old(openvino.Core):
        def get_property(self, *_):
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", Old)
    with pytest.raises(TargetError, match="has no bf16 instructions for OpenVINO; use fp32"):
        calls_of("openvino", "bf16")


def test_onnx_runtime_without_kernels_for_the_device_says_what_to_install(monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(TargetError, match="does not run on cuda: install onnxruntime-gpu in its place"):
        RUNTIMES["onnxruntime"].load()([torch.nn.Identity()], torch.zeros(1, 2), Device("cuda", "x"), "fp32")


def test_one_compilation_serves_all_copies_and_another_one_leaves_it_alone():
    from torch._dynamo.utils import counters

    counters.clear()
    first = calls_of("compile", "fp32", copies=3)
    for call in (*first, *calls_of("compile", "bf16"), *first):
        call()
    assert counters["stats"]["unique_graphs"] == 2


class Recorder(torch.nn.Module):
    """Remembers what it was called with."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        Recorder.seen.append((x.shape, x.dtype, self.weight.dtype, self.training, torch.is_grad_enabled()))
        return x * self.weight


@pytest.mark.parametrize(("dtype", "weights"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_pytorch_runs_the_module_once_on_a_batch_of_the_target_in_eval_mode_without_autograd(dtype, weights):
    call = prepare(Target("x", "eager", dtype, 4, 5), CPU, [Recorder()], (5, 3))
    Recorder.seen.clear()
    call()
    assert Recorder.seen == [(torch.Size((4, 5, 3)), weights, weights, False, False)]


def test_versions_name_what_was_timed():
    assert versions()["torch"] == torch.__version__
    assert set(versions()) == {"torch", "python", "allocator"}
    assert set(versions("onnxruntime")) == {"onnxruntime", "torch", "python", "allocator"}


SIGNALLED = """
import faulthandler, gc, os, signal
faulthandler.enable()  # an alternate stack of its own, as under pytest
from tests.latency.test_runtimes import calls_of
for dtype in ("fp32", "bf16"):
    try:
        for call in calls_of("openvino", dtype):
            call()
    except ValueError:  # no bf16 here
        pass
del call
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="alternate signal stacks as Linux has them")
def test_signals_are_handled_after_openvino_has_come_and_gone():
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


HEAP = """
import ctypes
from pathlib import Path
from latency.runtimes import keep_memory

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
{before}
print(keep_memory())
parts = Path("/proc/self/smaps").read_text().split("[heap]")[1:]
flags = [part.partition("VmFlags:")[2].splitlines()[0].split() for part in parts]
sizes = [int(part.partition("Size:")[2].split()[0]) for part in parts]
print(max([size for size, flag in zip(sizes, flags) if "hg" in flag], default=0))
"""
BEFORE = {
    "fresh": "",
    "much-free": "libc.mallopt(-4, 0), libc.mallopt(-1, 2**31 - 1), libc.free(libc.malloc(2**31))",
    "much-in-use": "libc.mallopt(-4, 0), libc.malloc(2**30)",
}
"""What the process did with its heap, which must not change what is said of it: a run goes on in another process."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another kind")
@pytest.mark.parametrize("before", BEFORE)
def test_most_of_the_heap_asks_for_huge_pages_where_the_system_has_them(before):
    script = HEAP.replace("{before}", BEFORE[before])
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    said, kib = ran.stdout.splitlines()
    if HUGE_PAGES.exists() and "[never]" not in HUGE_PAGES.read_text():
        assert said == "glibc, freed memory kept, huge pages"
        assert int(kib) >= 2**19, "half of what the heap grew by, at least"
    else:
        assert int(kib) == 0
        assert said == "glibc, freed memory kept"
