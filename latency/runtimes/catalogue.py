"""The table of runtimes: what each needs installed, and which dtypes it runs on which device.

The table is known without importing any of them, nor torch; a runtime's file is loaded when it is used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from latency.errors import TargetError
from latency.runtimes.device import Device, cpu_threads
from latency.target import Target
from vit.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor, nn

Call = Callable[[], "Tensor"]
"""Runs a module once and returns its output. On a CPU it returns when it is done, on a GPU when it is enqueued."""

Prepare = Callable[["Sequence[nn.Module]", "Tensor", Device, str], list[Call]]
"""(modules, batch, device, dtype) -> one call for each module, each with weights in memory of its own.

The modules differ in their weights only. They and the batch are fp32, on the CPU, and stay as they are.
"""

DTYPES: dict[str, str] = {
    "fp32": "single precision",
    "bf16": "weights and activations in bfloat16",
    "fp16": "weights and activations in half precision",
    "amp": "weights in single precision, autocast to half precision",
}
"""What a dtype means."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A row of the table.

    Attributes:
        prepare: its Prepare, as `module:function`.
        package: what must be importable.
        dtypes: those that it runs, by device.
        extra: the extra of vitfit that installs the package; empty where vitfit itself does.
    """

    prepare: str
    package: str
    dtypes: Mapping[str, tuple[str, ...]]
    extra: str = ""

    def load(self) -> Prepare:
        module, _, function = self.prepare.partition(":")
        found: Prepare = getattr(import_module(module), function)
        return found


_TORCH = {"cpu": ("fp32", "bf16", "amp"), "cuda": ("fp32", "bf16", "fp16", "amp")}

RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime("latency.runtimes.pytorch:eager", "torch", _TORCH),
    "compile": Runtime("latency.runtimes.pytorch:compiled", "torch", _TORCH),
    # ONNX Runtime's CPU kernels know no bf16, and few know fp16.
    "onnxruntime": Runtime(
        "latency.runtimes.onnx_runtime:onnx_runtime", "onnxruntime", {"cpu": ("fp32",), "cuda": ("fp32", "fp16")}
    ),
    "openvino": Runtime("latency.runtimes.open_vino:open_vino", "openvino", {"cpu": ("fp32", "bf16")}, "openvino"),
    "tensorrt": Runtime(
        "latency.runtimes.tensor_rt:tensor_rt", "tensorrt", {"cuda": ("fp32", "bf16", "fp16")}, "tensorrt"
    ),
}


def check_names(runtime: str, torch_device: str, dtype: str) -> None:
    """Can this be run anywhere?

    Raises:
        UnknownNameError: a name that is in no table.
        TargetError: the runtime does not run the dtype, or not on the device.
    """
    if runtime not in RUNTIMES:
        raise UnknownNameError("runtime", runtime, RUNTIMES)
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    row = RUNTIMES[runtime]
    if torch_device not in row.dtypes:
        raise TargetError(f"runtime {runtime} runs on {' and '.join(row.dtypes)}, not on {torch_device}")
    if dtype not in row.dtypes[torch_device]:
        allowed = ", ".join(row.dtypes[torch_device])
        others = [name for name, other in RUNTIMES.items() if dtype in other.dtypes.get(torch_device, ())]
        raise TargetError(
            f"runtime {runtime} on {torch_device} runs {allowed}, not {dtype}"
            + (f"; {dtype} on {torch_device} is run by {', '.join(others)}" if others else "")
        )


def check(runtime: str, torch_device: str, dtype: str) -> None:
    """Can this be run here?

    Raises:
        UnknownNameError, TargetError: it can be run nowhere (see `check_names`), or the runtime is not installed.
    """
    check_names(runtime, torch_device, dtype)
    row = RUNTIMES[runtime]
    if find_spec(row.package) is None:
        install = f"pip install 'vitfit[{row.extra}]'" if row.extra else f"pip install {row.package}"
        raise TargetError(f"runtime {runtime} needs the package {row.package}: {install}")


def local_target(device: Device, runtime: str, dtype: str, batch: int, tokens: int) -> Target:
    """The Target of this machine; what cannot be run here is refused (see `check`)."""
    check(runtime, device.torch_device, dtype)
    return Target(device.slug, runtime, dtype, batch, tokens)


def remote_target(device_slug: str, runtime: str, dtype: str, batch: int, tokens: int) -> Target:
    """The Target of another machine; what can be run nowhere is refused (see `check_names`)."""
    check_names(runtime, "cuda" if cpu_threads(device_slug) is None else "cpu", dtype)
    return Target(device_slug, runtime, dtype, batch, tokens)
