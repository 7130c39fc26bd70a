"""How a batch goes through a model: in what precision, and how many of its images at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from search.errors import SaliencyError
from search.protocols import Loss
from vit.model import VisionTransformer


@dataclass(frozen=True, slots=True)
class Pass:
    """
    Attributes:
        autocast: torch.bfloat16 for mixed precision; None: the model's own type alone. Not torch.float16, whose small
            gradients would be zero without a scaled loss.
        micro_batch: images at a time; the sums over a batch are the same for every number. None: the whole batch.
    """

    autocast: torch.dtype | None = None
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.autocast not in (None, torch.bfloat16):
            raise SaliencyError(f"autocast must be torch.bfloat16 or None, got {self.autocast}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise SaliencyError(f"micro_batch must be at least 1, got {self.micro_batch}")

    def at_once(self, images: Tensor) -> int:
        """How many images of a batch are in the model together."""
        return max(min(len(images), self.micro_batch or len(images)), 1)

    def pieces(self, model: VisionTransformer, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch in pieces that go through together, on the model's device and in its type."""
        device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
        size = self.at_once(images)
        for some, theirs in zip(images.split(size), labels.split(size), strict=True):
            yield some.to(device, dtype), theirs.to(device)

    def loss(self, loss: Loss, model: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a piece, with a graph to go back on."""
        with torch.enable_grad(), torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            return loss(model, images, labels)


WHOLE = Pass()
"""The whole batch, in the model's own type."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a type are multiplied and summed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
