"""OpenVINO on CPUs: one compiled model for each module."""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openvino
import torch
from torch import Tensor, nn

from latency.errors import TargetError
from latency.runtimes.catalogue import Call
from latency.runtimes.device import Device
from latency.runtimes.onnx_graph import onnx_models

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""Left alone, OpenVINO computes in bf16 wherever the processor can."""


def open_vino(modules: Sequence[nn.Module], x: Tensor, device: Device, dtype: str) -> list[Call]:
    """Compiled models whose weights are not shared, with one input and one output for all.

    Raises:
        TargetError: bf16 on a processor without it.
    """
    with _own_signal_stack():
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # loads the plugin
    if dtype == "bf16" and "BF16" not in capabilities:
        raise TargetError(f"{device.name} has no bf16 instructions for OpenVINO; use fp32")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": device.threads,
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "ENABLE_CPU_PINNING": False,  # the threads of several compiled models would meet on the same cores
    }
    compiled = [core.compile_model(core.read_model(model), "CPU", settings) for model in onnx_models(modules, x)]
    y = torch.empty(tuple(compiled[0].output(0).shape))
    return [_Bound(each, x, y) for each in compiled]


class _SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """This thread's alternate signal stack stays what it was.

    OpenVINO's CPU plugin (seen with 2026.4 on a processor with AMX) sets one of its own and unmaps it with the last
    model. Python handles every signal on that stack: the next one, Ctrl-C or the end of a child, kills the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


class _Bound:
    """Runs a compiled model on one input in fixed memory, into one output in fixed memory; OpenVINO owns neither."""

    def __init__(self, compiled: Any, x: Tensor, y: Tensor) -> None:
        self.request, self.x, self.y = compiled.create_infer_request(), x, y
        self.request.set_input_tensor(openvino.Tensor(self.x.numpy(), shared_memory=True))
        self.request.set_output_tensor(openvino.Tensor(self.y.numpy(), shared_memory=True))

    def __call__(self) -> Tensor:
        self.request.infer()
        return self.y
