"""A target, a device and modules -> the call that is timed."""

import itertools
import platform
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from latency.runtimes.catalogue import RUNTIMES, Call, check
from latency.runtimes.device import Device, keep_memory
from latency.target import Target

if TYPE_CHECKING:
    from torch import nn


def prepare(target: Target, device: Device, modules: "Sequence[nn.Module]", shape: tuple[int, ...]) -> Call:
    """The call that runs one module on a batch of random numbers of `shape`, the next one each time.

    Args:
        modules: fp32 on the CPU, of the same shapes; they stay as they are.
        shape: of one example.

    Raises:
        UnknownNameError, TargetError: the target's runtime or dtype cannot be run here (see `check`).
    """
    import torch

    check(target.runtime, device.torch_device, target.dtype)
    x = torch.randn(target.batch, *shape, generator=torch.Generator().manual_seed(0))
    calls = RUNTIMES[target.runtime].load()(modules, x, device, target.dtype)
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def versions(runtime: str = "eager") -> dict[str, str]:
    """Of what was timed, and the memory allocator it used."""
    import torch

    package = RUNTIMES[runtime].package
    return {
        package: str(import_module(package).__version__),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "allocator": keep_memory(),
    }
