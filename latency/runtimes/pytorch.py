"""PyTorch, as it is and compiled."""

import copy
import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from latency.runtimes.catalogue import Call
from latency.runtimes.device import Device

WEIGHTS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "amp": torch.float32,
}
"""What weights and inputs are stored in."""


def placed(module: nn.Module, device: Device, dtype: torch.dtype) -> nn.Module:
    """The module on a device in a dtype, in eval mode. It shares the tensors that need no change with the original,
    which stays as it is, and is the original where nothing has to change."""
    tensors_there = [*module.parameters(), *module.buffers()]
    if not module.training and all(
        t.device.type == device.torch_device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors_there
    ):
        return module

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device.torch_device, dtype if tensor.is_floating_point() else None)

    tensors: dict[int, object] = {id(p): nn.Parameter(moved(p), requires_grad=False) for p in module.parameters()}
    tensors |= {id(b): moved(b) for b in module.buffers()}
    return copy.deepcopy(module, tensors).eval()


def _calls(
    run: Callable[[nn.Module, Tensor], Tensor], modules: Sequence[nn.Module], x: Tensor, device: Device, dtype: str
) -> list[Call]:
    x = x.to(device.torch_device, WEIGHTS[dtype])

    def call_of(module: nn.Module) -> Call:
        def call() -> Tensor:
            autocast = torch.autocast(device.torch_device, torch.float16) if dtype == "amp" else nullcontext()
            with torch.inference_mode(), autocast:
                return run(module, x)

        return call

    return [call_of(placed(module, device, WEIGHTS[dtype])) for module in modules]


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def eager(modules: Sequence[nn.Module], x: Tensor, device: Device, dtype: str) -> list[Call]:
    """PyTorch as it is, without autograd."""
    return _calls(_forward, modules, x, device, dtype)


def compiled(modules: Sequence[nn.Module], x: Tensor, device: Device, dtype: str) -> list[Call]:
    """torch.compile for these very sizes: one compilation serves all modules.

    PyTorch keeps what it compiled with the code that was compiled, eight versions at most, and looks through all of
    them on every call. So each call of this function compiles code of its own, which is freed with its calls.
    """
    own = types.FunctionType(_forward.__code__.replace(), _forward.__globals__)
    calls = _calls(torch.compile(own, dynamic=False), modules, x, device, dtype)
    calls[0]()
    return calls
