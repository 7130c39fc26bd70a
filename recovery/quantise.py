"""Training to 8 bit: linear layers round weights and inputs on the way forward, gradients pass as if they did not.

Quantisation-aware training as in oViT's Appendix F.1. What is trained is what int8 kernels compute:

    weights   int8, symmetric, a scale for each output: w ≈ s · q with q in -127 ... 127, so that zeros stay zeros
    inputs    uint8, one scale and zero point a layer, of running ranges that stay fixed after training

Patch embedding, norms, softmax and the predictors of token pruning stay as they are.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.errors import CalibrationError, UnsupportedModelError
from vit.model import VisionTransformer
from vit.tokens import build, plan_of

MEMORY = 0.99
"""Share of a range that stays when the next batch is seen."""
SMALLEST = 1e-8
"""Scale of a layer of zeros."""


@dataclass(frozen=True, eq=False)
class Int8Layer:
    """A linear layer as int8 kernels take it.

    Attributes:
        weight: int8, shape (outputs, inputs).
        weight_scale: shape (outputs,).
        input_scale, input_zero: x ≈ input_scale · (q - input_zero), q in 0 ... 255.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: float
    input_zero: int


class Int8Linear(nn.Linear):
    """A linear layer that computes what its int8 version will, in floating point, with a gradient."""

    low: Tensor
    high: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        outputs, inputs = layer.weight.shape
        super().__init__(inputs, outputs, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        for name, value in (("low", torch.inf), ("high", -torch.inf)):
            self.register_buffer(name, torch.tensor(value, device=layer.weight.device, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._observe(x)
        scale, zero = self._input_grid()
        x = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)
        return F.linear(x, self.rounded_weight(), self.bias)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = x.aminmax()
        low, high = low.float().clamp_max(0.0), high.float().clamp_min(0.0)  # zero is a number that inputs can have
        first = self.low > self.high
        self.low.copy_(torch.where(first, low, MEMORY * self.low.nan_to_num() + (1 - MEMORY) * low))
        self.high.copy_(torch.where(first, high, MEMORY * self.high.nan_to_num() + (1 - MEMORY) * high))

    def _input_grid(self) -> tuple[Tensor, Tensor]:
        scale = ((self.high - self.low) / 255).clamp_min(SMALLEST)
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        return scale, zero

    def _weight_scale(self) -> Tensor:
        return (self.weight.detach().abs().amax(dim=1) / 127).clamp_min(SMALLEST)

    def rounded_weight(self) -> Tensor:
        """The weights on their grid, with the gradient of the weights."""
        scale = self._weight_scale()
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(self.weight, scale, zero, 0, -127, 127)

    @torch.no_grad()
    def int8(self) -> Int8Layer:
        """
        Raises:
            CalibrationError: the layer has seen no inputs.
        """
        if not bool(self.low <= self.high):
            raise CalibrationError("a layer has seen no inputs, so it has no range; run `calibrate` first")
        weight_scale, (scale, zero) = self._weight_scale(), self._input_grid()
        weight = (self.weight / weight_scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        return Int8Layer(weight.cpu(), weight_scale.cpu(), float(scale), int(zero))


def int8_layers(model: nn.Module) -> Iterator[tuple[str, Int8Linear]]:
    """By name, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            yield name, module


def with_int8(model: VisionTransformer) -> VisionTransformer:
    """A copy of a model that computes in simulated 8 bit; its parameters have the same names.

    Raises:
        UnsupportedModelError: weights that are not fp32.
    """
    if (dtype := next(model.parameters()).dtype) != torch.float32:
        raise UnsupportedModelError(f"training to 8 bit starts from fp32 weights, got {dtype}")
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear) and not name.startswith("predictors."):
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, Int8Linear(module))
    return made


@torch.no_grad()
def calibrate(model: VisionTransformer, batches: Iterable[Tensor]) -> None:
    """Ranges of the inputs of all layers from a few batches of images, in place."""
    training = model.training
    seen = False
    model.train()
    for images in batches:
        model(images.to(next(model.parameters())))
        seen = True
    model.train(training)
    if not seen:
        raise CalibrationError("no images to find the ranges of inputs with")


@torch.no_grad()
def settled(model: VisionTransformer) -> VisionTransformer:
    """The model with ordinary layers again, whose weights are on the grid of their 8 bits."""
    plain = build(model.arch, plan_of(model))
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    for name, layer in int8_layers(model):
        state[f"{name}.weight"] = layer.rounded_weight().cpu()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.eval()
