"""Modules as ONNX models in memory, by the exporter that `vitfit export` uses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latency.runtimes.device import Device
from latency.runtimes.onnx_template import template_of
from latency.runtimes.pytorch import placed
from vit.model import Block

INPUT, OUTPUT = "x", "y"


def onnx_models(modules: Sequence[nn.Module], x: Tensor, dtype: torch.dtype = torch.float32) -> list[bytes]:
    """One model for each module, for batches of exactly the shape of x, in a dtype, weights included.

    Modules of equal weights share one model.
    """
    x, known = x.to(dtype), list[tuple[nn.Module, bytes]]()
    for module in modules:
        if not any(_equal(module, other) for other, _ in known):
            known.append((module, _model(module, x)))
    return [next(model for other, model in known if _equal(module, other)) for module in modules]


def _equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return a is b or (ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours))


def _model(module: nn.Module, x: Tensor) -> bytes:
    if isinstance(module, Block) and (template := template_of(module, x.dtype, export)):
        return template.fill(module, x)
    return export(module, x)


@torch.no_grad()
def export(module: nn.Module, x: Tensor) -> bytes:
    """The module in the dtype of x and for batches of its shape, straight from the exporter."""
    program = torch.onnx.export(
        placed(module, Device("cpu", ""), x.dtype),
        (x,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert program is not None  # None only without dynamo
    return program.model_proto.SerializeToString()
