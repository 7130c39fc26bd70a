"""What is drawn anew at every step, from (seed, step) alone: mixed and erased images, left-out paths. All by timm.

timm draws from the global generators of Python, numpy and torch. `drawn` seeds them for a step and gives their state
back afterwards, so that a step is the same whatever was drawn before, by whomever.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recovery.recipes import Recipe
from vit.model import VisionTransformer


@contextmanager
def drawn(seed: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Inside, the global generators give what `seed` says; afterwards they go on as if nothing had happened."""
    for_python, for_numpy, for_torch = (int(word) for word in np.random.SeedSequence(seed).generate_state(3))
    python, array = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            random.seed(for_python)
            np.random.seed(for_numpy)
            torch.default_generator.manual_seed(for_torch)
            if devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(for_torch)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


class Augmentation:
    """Erases rectangles and mixes images of one batch, as a recipe says."""

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device) -> None:
        from timm.data import Mixup
        from timm.data.random_erasing import RandomErasing

        self._erase = RandomErasing(recipe.erasing, mode="pixel", device=device) if recipe.erasing else None
        self._mix = (
            Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)
            if recipe.mixes
            else None
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, height, width) and classes (B,) -> images and classes, or their probabilities where mixed."""
        if self._erase is not None or self._mix is not None:
            images = images.clone()  # timm writes into it
        if self._erase is not None:
            images = self._erase(images)
        return (images, labels) if self._mix is None else self._mix(images, labels)


@contextmanager
def stochastic_depth(model: VisionTransformer, rate: float) -> Iterator[None]:
    """Inside, branches of blocks are left out at random, image by image (Huang et al. 2016), rising to `rate` linearly.

    A hook on what ends each branch: the model itself knows nothing of it, and outside it is what it was.
    """
    from timm.layers import calculate_drop_path_rates

    with ExitStack() as hooks:
        if rate > 0:
            for block, probability in zip(
                model.each_block(), calculate_drop_path_rates(rate, model.arch.depth), strict=True
            ):
                for branch in (block.ls1, block.ls2):
                    hooks.callback(branch.register_forward_hook(partial(_dropped, probability)).remove)
        yield


def _dropped(probability: float, branch: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    from timm.layers import drop_path

    return drop_path(output, probability, training=True)
