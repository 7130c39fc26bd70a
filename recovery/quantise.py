"""Training to 8 bit: linear layers round weights and inputs on the way forward, gradients pass as if they did not.

Quantisation-aware training as in oViT's Appendix F.1, with the fake quantisers and observers of torchao (pt2e). What is
trained is what int8 kernels compute:

    weights   int8, symmetric, a scale for each output: w ≈ s · q with q in -127 ... 127, so that zeros stay zeros
    inputs    uint8, one scale and zero point a layer, of running ranges that stay fixed after training

Patch embedding, norms, softmax and the predictors of token pruning stay as they are.
"""

import copy
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recovery.errors import TrainingError
from vit.errors import CalibrationError, UnsupportedModelError
from vit.model import VisionTransformer
from vit.tokens import build, plan_of

MEMORY = 0.99
"""Share of a range that stays when the next batch is seen."""


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
    """A linear layer that computes what its int8 version will, in floating point, with a gradient.

    Attributes:
        of_input: rounds inputs; learns their range in training, and keeps it after.
        of_weight: rounds weights, by the range that each row has now.
    """

    def __init__(self, layer: nn.Linear) -> None:
        fake = _fake_quantisation()
        outputs, inputs = layer.weight.shape
        super().__init__(inputs, outputs, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.of_input = fake.FakeQuantize(
            fake.MovingAverageMinMaxObserver, 0, 255, dtype=torch.uint8, qscheme=torch.per_tensor_affine,
            averaging_constant=1 - MEMORY,
        )  # fmt: skip
        self.of_weight = fake.FakeQuantize(
            fake.PerChannelMinMaxObserver, -127, 127, dtype=torch.int8, qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )  # fmt: skip
        self.to(layer.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        self.of_input.enable_observer(self.training)
        return F.linear(self.of_input(x.float()), self.rounded_weight(), self.bias)

    def rounded_weight(self) -> Tensor:
        """The weights on their grid, with the gradient of the weights."""
        self.of_weight.activation_post_process.reset_min_max_vals()  # its range only grows, rows of weights also shrink
        rounded: Tensor = self.of_weight(self.weight)
        return rounded

    @torch.no_grad()
    def int8(self) -> Int8Layer:
        """
        Raises:
            CalibrationError: the layer has seen no inputs.
        """
        seen = self.of_input.activation_post_process
        if not bool(seen.min_val <= seen.max_val):
            raise CalibrationError("a layer has seen no inputs, so it has no range; run `calibrate` first")
        rounded, scale = self.rounded_weight(), self.of_weight.scale  # the same steps, where a weight is between two
        weight = (rounded / scale[:, None]).round().to(torch.int8)
        return Int8Layer(weight.cpu(), scale.cpu().clone(), float(self.of_input.scale), int(self.of_input.zero_point))


def _fake_quantisation() -> Any:
    """torchao's, when it is needed: importing it takes seconds, and warns of what it does itself."""
    loud = logging.getLogger("torch.utils._pytree")
    before = loud.level
    loud.setLevel(logging.ERROR)
    try:
        from torchao.quantization import pt2e
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f"the torchao that is installed does not work with torch {torch.__version__} ({error!s:.200}); install the "
            "one that was released with this torch"
        ) from None
    finally:
        loud.setLevel(before)
    return pt2e


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
