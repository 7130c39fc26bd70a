"""A model trained to 8 bit as ONNX: its matrix products between quantise and dequantise nodes (QDQ), which runtimes run
as int8."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from recovery.quantise import Int8Layer, int8_layers, settled
from vit.errors import ExportError
from vit.export import onnx_model
from vit.files import write_atomically
from vit.model import VisionTransformer
from vit.tokens import TokenPrunedTransformer

TOLERANCE, JITTERS = 0.01, 3.0
"""Largest allowed difference of logits to the simulated model's, relative to the largest: this much, and so many times
what the simulated model's own logits move when its images move by a millionth. Where an input is half way between two
steps, rounding errors decide which it takes, and a deep model adds such steps of 1/255 up."""


def images_to_compare(model: VisionTransformer, images: Tensor) -> Tensor:
    """Some of the images; of a model that drops tokens those on which its decisions are clearest."""
    if isinstance(model, TokenPrunedTransformer):
        return images[model.margins(images).topk(min(4, len(images))).indices]
    return images[:4]


@torch.no_grad()
def export_int8(model: VisionTransformer, images: Tensor, path: Path) -> float:
    """Write a model with `Int8Linear` layers, free batch size, and compare it in ONNX Runtime.

    Args:
        images: to compare on, (B, C, height, width).

    Returns:
        The largest difference of logits over the largest logit.

    Raises:
        CalibrationError: layers that have seen no inputs.
        ExportError: outputs differ, or ONNX Runtime refuses the file; nothing was written.
    """
    import onnxruntime

    model = model.cpu().eval()
    layers = [(name, layer.int8()) for name, layer in int8_layers(model)]
    plain = settled(model)
    found = with_qdq(onnx_model(plain, images), dict(plain.named_parameters()), layers)
    expected, difference = model(images), 0.0
    largest = expected.abs().max().clamp_min(1e-6)
    allowed = TOLERANCE + JITTERS * float((model(images * (1 + 1e-6)) - expected).abs().max() / largest)

    def write(temporary: Path) -> None:
        nonlocal difference
        onnx.save(found, temporary)
        try:
            session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
            logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise ExportError(f"ONNX Runtime refuses the 8-bit model, nothing was written: {error}") from None
        difference = float((logits - expected).abs().max() / largest)
        if not difference <= allowed:
            raise ExportError(
                f"the 8-bit export differs from the simulated model by {difference:.1e} of the largest logit "
                f"(allowed {allowed:.1e}); nothing was written"
            )

    write_atomically(path, write)
    return difference


def with_qdq(model: Any, weights: dict[str, Tensor], layers: list[tuple[str, Int8Layer]]) -> Any:
    """An ONNX model whose linear layers' weights are int8, and their inputs quantised and dequantised.

    Raises:
        ExportError: a layer that is not found in the graph.
    """
    graph = model.graph
    graph.ClearField("value_info")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    left, nodes = list(layers), list[Any]()
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in stored:
            values = numpy_helper.to_array(stored[node.input[1]])
            match = next((entry for entry in left if _axis(values, weights[f"{entry[0]}.weight"]) is not None), None)
            if match is not None:
                left.remove(match)
                name, layer = match
                axis = _axis(values, weights[f"{name}.weight"])
                assert axis is not None
                nodes += _qdq(graph, name, layer, node, axis)
        nodes.append(node)
    if left:
        raise ExportError(f"the exporter changed the weights of {left[0][0]}, so it cannot be made 8 bit")
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    return model


def _axis(values: np.ndarray[Any, Any], weight: Tensor) -> int | None:
    """Axis of the outputs where these are the weights of a layer, transposed (1) or not (0)."""
    ours = weight.detach().numpy()
    if values.shape == ours.T.shape and np.array_equal(values, ours.T):
        return 1
    return 0 if values.shape == ours.shape and np.array_equal(values, ours) else None


def _qdq(graph: Any, name: str, layer: Int8Layer, node: Any, axis: int) -> Iterator[Any]:
    """Make a node read what these nodes give; their constants go into the graph."""
    weight = layer.weight.numpy()
    constants = {
        f"{name}.weight.int8": weight if axis == 0 else np.ascontiguousarray(weight.T),
        f"{name}.weight.scale": layer.weight_scale.numpy(),
        f"{name}.weight.zero": np.zeros(len(weight), dtype=np.int8),
        f"{name}.input.scale": np.array(layer.input_scale, dtype=np.float32),
        f"{name}.input.zero": np.array(layer.input_zero, dtype=np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    assert graph.initializer[-1].data_type == TensorProto.UINT8
    grid = [f"{name}.input.scale", f"{name}.input.zero"]
    yield helper.make_node("QuantizeLinear", [node.input[0], *grid], [f"{name}.input.q"])
    yield helper.make_node("DequantizeLinear", [f"{name}.input.q", *grid], [f"{name}.input.dq"])
    of_weight = [f"{name}.weight.{part}" for part in ("int8", "scale", "zero")]
    yield helper.make_node("DequantizeLinear", of_weight, [f"{name}.weight.dq"], axis=axis)
    node.input[0], node.input[1] = f"{name}.input.dq", f"{name}.weight.dq"
