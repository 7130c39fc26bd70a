"""ONNX Runtime: one session for each module."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from latency.errors import TargetError
from latency.runtimes.catalogue import Call
from latency.runtimes.device import Device
from latency.runtimes.onnx_graph import INPUT, OUTPUT, onnx_models
from latency.runtimes.pytorch import WEIGHTS

PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),  # PyTorch's fp32 has none either
}


def onnx_runtime(modules: Sequence[nn.Module], x: Tensor, device: Device, dtype: str) -> list[Call]:
    """Sessions whose weights are not shared, with one input and one output bound to all.

    Raises:
        TargetError: this build of ONNX Runtime has no kernels for the device.
    """
    provider, options = PROVIDERS[device.torch_device]
    if provider not in onnxruntime.get_available_providers():
        raise TargetError(
            f"this build of onnxruntime does not run on {device.torch_device}: install onnxruntime-gpu in its place"
        )
    models = onnx_models(modules, x, WEIGHTS[dtype])
    x = x.to(device.torch_device, WEIGHTS[dtype])
    settings = _settings(device)
    sessions = [onnxruntime.InferenceSession(model, settings, providers=[(provider, options)]) for model in models]
    y = torch.empty(sessions[0].get_outputs()[0].shape, dtype=x.dtype, device=x.device)
    return [_Bound(session, x, y) for session in sessions]


def _settings(device: Device) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = device.threads
    settings.inter_op_num_threads = 1
    # Threads that wait in a loop would count as work and take the core of whoever shares it.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device.torch_device == "cpu":
        _share_memory()
        settings.add_session_config_entry("session.use_env_allocators", "1")
    return settings


@cache
def _share_memory() -> None:
    """One pool of activation memory for all sessions: the blocks of a model take turns in the same memory, too. With a
    pool each, they write to memory that has left the cache (docs/decisions/0006)."""
    arena = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(arena, None)


class _Bound:
    """Runs a session on one input in fixed memory, into one output in fixed memory."""

    def __init__(self, session: Any, x: Tensor, y: Tensor) -> None:
        self.session, self.x, self.y = session, x, y
        self.binding = session.io_binding()
        for bind, name, tensor in (
            (self.binding.bind_input, INPUT, self.x),
            (self.binding.bind_output, OUTPUT, self.y),
        ):
            element = np.dtype(str(tensor.dtype).removeprefix("torch."))
            bind(name, tensor.device.type, tensor.device.index or 0, element, list(tensor.shape), tensor.data_ptr())

    def __call__(self) -> Tensor:
        self.session.run_with_iobinding(self.binding)
        return self.y
