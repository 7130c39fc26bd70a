"""A module as an ONNX model in memory, by the exporter that `vitfit export` uses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latency.runtimes.device import Device
from latency.runtimes.pytorch import placed

INPUT, OUTPUT = "x", "y"


@torch.no_grad()
def onnx_bytes(module: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> bytes:
    """The module for batches of exactly the shape of x, weights included."""
    program = torch.onnx.export(
        placed(module, Device("cpu", ""), dtype),
        (x.to(dtype),),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert program is not None  # None only without dynamo
    return program.model_proto.SerializeToString()


def onnx_models(modules: Sequence[nn.Module], x: Tensor, dtype: torch.dtype = torch.float32) -> list[bytes]:
    """One model for each module; modules of equal weights share one export (and its bytes)."""
    known: list[tuple[nn.Module, bytes]] = []
    models = []
    for module in modules:
        found = next((model for other, model in known if _equal(module, other)), None)
        if found is None:
            found = onnx_bytes(module, x, dtype)
            known.append((module, found))
        models.append(found)
    return models


def _equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
