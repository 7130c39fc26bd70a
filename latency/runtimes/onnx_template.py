"""ONNX models of many blocks from one export.

Exporting a block takes half a second, and most of it goes into what all blocks share: an exported block differs from
another of its kind only in its weights, its softmax scale and the numbers that its sizes put into the graph. So one
block whose sizes can be told apart in any product is exported, and filled in for others in milliseconds.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from vit.architecture import Architecture, BlockShape
from vit.model import Block

Export = Callable[[Block, Tensor], bytes]
"""The exporter: a block and a batch -> a model."""

WIDTHS = {-1: (7, 13), 0: (13, 13), 1: (13, 7)}
"""QK and V of the exported block, by which of the two is wider: that decides what is padded."""


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """An exported block, and what goes where for another one.

    Attributes:
        model: without weights.
        numbers: of the exported block, in the order of `_numbers`.
        weights: for every initialiser that is a parameter, its name and whether it is stored transposed.
        scales: initialisers, or constants by their output, that are a power of the softmax scale, and the power.
    """

    model: Any
    numbers: list[int]
    weights: dict[str, tuple[str, bool]]
    scales: dict[str, float]

    def fill(self, block: Block, x: Tensor) -> bytes:
        """The model of a block of the same kind, in the dtype of x and for batches of its shape."""
        numbers = dict(zip(self.numbers, _numbers(block, x), strict=True))
        state = block.state_dict()
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for value in (*model.graph.input, *model.graph.output):
            for size in value.type.tensor_type.shape.dim:
                size.dim_value = numbers[size.dim_value]
        for found in model.graph.initializer:
            if found.name in self.weights:
                name, transposed = self.weights[found.name]
                weight = state[name].detach().to(x.dtype)
                weight = weight.T if transposed else weight
                found.dims[:] = weight.shape
                found.raw_data = _bytes(weight)
            elif found.name in self.scales:
                scale = torch.tensor(block.attn.scale, dtype=x.dtype)
                found.raw_data = _bytes(scale ** self.scales[found.name])
            else:
                _renumber(found, numbers)
        for node, attribute in _constants(model):
            if node.output[0] in self.scales:
                _set_number(attribute, float(block.attn.scale ** self.scales[node.output[0]]), x.dtype)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _renumber(attribute.t, numbers)
            elif attribute.type == onnx.AttributeProto.INT:
                attribute.i = numbers.get(attribute.i, attribute.i)
            elif attribute.type == onnx.AttributeProto.INTS:
                attribute.ints[:] = [numbers.get(n, n) for n in attribute.ints]
        return bytes(model.SerializeToString())


def _constants(model: Any) -> Iterator[tuple[Any, Any]]:
    """Nodes that are constants, and their attributes: older exporters leave numbers there."""
    return ((node, a) for node in model.graph.node if node.op_type == "Constant" for a in node.attribute)


def _number(attribute: Any) -> float | None:
    """The one real number that an attribute holds; None if it holds something else."""
    if attribute.type == onnx.AttributeProto.FLOAT:
        return float(attribute.f)
    if attribute.type != onnx.AttributeProto.TENSOR:
        return None
    value = _tensor(attribute.t)
    return float(value) if value.is_floating_point() and value.numel() == 1 else None


def _set_number(attribute: Any, number: float, dtype: torch.dtype) -> None:
    if attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = number
    else:
        attribute.t.raw_data = _bytes(torch.tensor(number, dtype=dtype))


def _renumber(tensor: Any, numbers: dict[int, int]) -> None:
    """Sizes of the exported block into another one's, in a tensor of whole numbers."""
    if tensor.data_type == onnx.TensorProto.INT64:
        values = numpy_helper.to_array(tensor)
        filled = np.array([numbers.get(n, n) for n in values.ravel().tolist()], np.int64)
        tensor.CopyFrom(numpy_helper.from_array(filled.reshape(values.shape), tensor.name))


def template_of(block: Block, dtype: torch.dtype, export: Export) -> Template | None:
    """The template of a block's kind; None if this exporter's blocks do not differ as they should."""
    shape = block.attn.shape
    wider = (shape.qk_dim > shape.v_dim) - (shape.qk_dim < shape.v_dim)
    kind = block.arch.replace(embed_dim=29, blocks=(BlockShape(5, *WIDTHS[wider], 31),), softmax_scale=(0.123,))
    return _template(kind, dtype, export)


@cache
def _template(kind: Architecture, dtype: torch.dtype, export: Export) -> Template | None:
    """From one export, checked against a second one of other sizes."""
    block, x = _sample(kind, 23, 17, dtype)
    template = _generalised(block, x, onnx.load_from_string(export(block, x)))
    heads, qk, v, mlp = 2, *(2 * width + 1 for width in (kind.blocks[0].qk_dim, kind.blocks[0].v_dim)), 40
    changes = {"embed_dim": 19, "blocks": (BlockShape(heads, qk, v, mlp),), "softmax_scale": (0.277,)}
    other, y = _sample(kind.replace(**changes), 3, 12, dtype)
    return template if same_model(template.fill(other, y), export(other, y)) else None


def _sample(arch: Architecture, batch: int, tokens: int, dtype: torch.dtype) -> tuple[Block, Tensor]:
    """A block whose weights are all different, so that they can be recognised."""
    block = Block(arch, 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(generator=draw)
    return block.to(dtype).eval(), torch.zeros(batch, tokens, arch.embed_dim, dtype=dtype)


def _numbers(block: Block, x: Tensor) -> list[int]:
    """What sizes put into the graph of a block: they, and some of their products."""
    batch, tokens, embed_dim = x.shape
    shape = block.attn.shape
    heads, qk, v = shape.num_heads, shape.qk_dim, shape.v_dim
    sizes = [batch, tokens, embed_dim, heads, qk, v, shape.mlp_dim]
    return [*sizes, heads * qk, heads * v, batch * heads, batch * tokens, abs(qk - v)]


def _generalised(block: Block, x: Tensor, model: Any) -> Template:
    """Recognise weights by their values and drop them; drop what the exporter notes for people."""
    state = block.state_dict()
    weights: dict[str, tuple[str, bool]] = {}
    scales: dict[str, float] = {}
    for found in model.graph.initializer:
        value = _tensor(found)
        if not value.is_floating_point():
            continue
        for name, parameter in state.items():
            if torch.equal(value, parameter):
                weights[found.name] = name, False
            elif parameter.ndim == 2 and torch.equal(value, parameter.T):
                weights[found.name] = name, True
        for power in (0.5, 1.0):
            if value.numel() == 1 and torch.allclose(value.float(), torch.tensor(block.attn.scale**power), rtol=1e-2):
                scales[found.name] = power
        if found.name in weights:
            found.raw_data = b""
    for node, attribute in _constants(model):
        for power in (0.5, 1.0):
            if (number := _number(attribute)) and math.isclose(number, block.attn.scale**power, rel_tol=1e-2):
                scales[node.output[0]] = power
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:]
    return Template(model, _numbers(block, x), weights, scales)


def _bytes(tensor: Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))  # numpy has no bfloat16
    return flat.view(torch.uint8).numpy().tobytes()


def _tensor(initialiser: Any) -> Tensor:
    """In its own dtype."""
    if initialiser.data_type == onnx.TensorProto.BFLOAT16:
        return torch.frombuffer(bytearray(initialiser.raw_data), dtype=torch.bfloat16).reshape(list(initialiser.dims))
    return torch.from_numpy(np.array(numpy_helper.to_array(initialiser)))


def same_model(a: bytes, b: bytes) -> bool:
    """Do two models have the same nodes in the same order, and the same numbers? Names do not count."""
    return _described(onnx.load_from_string(a)) == _described(onnx.load_from_string(b))


def _described(model: Any) -> tuple[Any, ...]:
    graph = model.graph
    numbers = itertools.count()
    number: dict[str, int] = defaultdict(lambda: next(numbers))  # of a name, in the order in which they are met
    nodes = []
    for node in graph.node:
        attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
        nodes.append((node.op_type, [number[name] for name in (*node.input, *node.output)], attributes))
    values = {number[i.name]: (i.data_type, list(i.dims), _bytes(_tensor(i))) for i in graph.initializer}
    edges = [value.type.SerializeToString() for value in (*graph.input, *graph.output)]
    return nodes, values, edges, [(o.domain, o.version) for o in model.opset_import]
