"""What the caller plugs into search, so that search and recovery never meet."""

from typing import Protocol

from torch import Tensor

from vit.model import VisionTransformer


class Loss(Protocol):
    """Mean loss of a batch: what saliency is an increase of."""

    def __call__(self, model: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor: ...
