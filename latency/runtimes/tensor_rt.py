"""TensorRT on CUDA: one engine for each module, built from ONNX, on PyTorch's tensors and stream."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import tensorrt
import torch
from torch import Tensor, nn

from latency.errors import TargetError
from latency.runtimes.catalogue import Call
from latency.runtimes.device import Device
from latency.runtimes.onnx_graph import INPUT, OUTPUT, onnx_models
from latency.runtimes.pytorch import WEIGHTS

_LOGGER = tensorrt.Logger(tensorrt.Logger.ERROR)


def tensor_rt(modules: Sequence[nn.Module], x: Tensor, device: Device, dtype: str) -> list[Call]:
    """Engines whose weights are not shared, with one input and one output for all.

    Building takes seconds, so modules of equal weights share one build; each loads an engine of its own from it.
    Networks are strongly typed (the only kind from TensorRT 11 on): the ONNX model's own dtypes hold.

    Raises:
        TargetError: TensorRT does not take the model.
    """
    plan = cache(_plan)
    models = onnx_models(modules, x, WEIGHTS[dtype])
    x = x.to(device.torch_device, WEIGHTS[dtype])
    engines = [_runtime().deserialize_cuda_engine(plan(model)) for model in models]
    y = torch.empty(tuple(engines[0].get_tensor_shape(OUTPUT)), dtype=x.dtype, device=x.device)
    return [_Bound(engine, x, y) for engine in engines]


@cache
def _runtime() -> Any:
    """Must outlive its engines."""
    return tensorrt.Runtime(_LOGGER)


def _plan(model: bytes) -> Any:
    builder = tensorrt.Builder(_LOGGER)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, _LOGGER)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise TargetError(f"TensorRT {tensorrt.__version__} does not take the model: {errors}")
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)  # PyTorch's fp32 has none either
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise TargetError(f"TensorRT {tensorrt.__version__} could not build an engine for the model")
    return plan


class _Bound:
    """Enqueues an engine on one input in fixed memory, into one output in fixed memory."""

    def __init__(self, engine: Any, x: Tensor, y: Tensor) -> None:
        self.engine, self.context, self.x, self.y = engine, engine.create_execution_context(), x, y
        self.context.set_tensor_address(INPUT, x.data_ptr())
        self.context.set_tensor_address(OUTPUT, y.data_ptr())

    def __call__(self) -> Tensor:
        if not self.context.execute_async_v3(torch.cuda.current_stream(self.x.device).cuda_stream):
            raise TargetError("TensorRT refused to run the engine; its own message is above")
        return self.y
