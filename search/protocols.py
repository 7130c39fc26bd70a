"""What the caller plugs into search, so that search and recovery never meet."""

from typing import Protocol

from torch import Tensor

from search.saliency import Saliency
from vit.groups import Keep
from vit.model import VisionTransformer


class Loss(Protocol):
    """Mean loss of a batch: what saliency is an increase of."""

    def __call__(self, model: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor: ...


class Score(Protocol):
    """Saliency of what is left of a model after so many rounds."""

    def __call__(self, model: VisionTransformer, round_index: int) -> Saliency: ...


class Recover(Protocol):
    """Trains a model in place that was just cut to `keep`, until the next round."""

    def __call__(self, model: VisionTransformer, keep: Keep, round_index: int) -> None: ...
