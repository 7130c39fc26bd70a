"""Learning rates by the number of the step, by timm. Each keeps no state: a step's rate follows from its number."""

import math
from collections.abc import Callable
from typing import Any

import torch

from recovery.recipes import Recipe


def _cosine(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    from timm.scheduler import CosineLRScheduler

    return CosineLRScheduler(optimizer, steps - recipe.warmup, recipe.min_lr, **_warmup(recipe))


def _cyclic(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """η(t) = η_max - (η_max - η_min) · (t mod T)/T (oViT, Eq. 8), T in whole steps: the last cycle may be shorter."""
    from timm.scheduler import PolyLRScheduler

    length = math.ceil((steps - recipe.warmup) / recipe.cycles)
    return PolyLRScheduler(
        optimizer, length, power=1.0, lr_min=recipe.min_lr, cycle_limit=recipe.cycles, **_warmup(recipe)
    )


def _constant(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    from timm.scheduler import StepLRScheduler

    return StepLRScheduler(optimizer, decay_t=steps, decay_rate=1.0, **_warmup(recipe))


def _warmup(recipe: Recipe) -> dict[str, Any]:
    return {
        "warmup_t": recipe.warmup,
        "warmup_lr_init": recipe.lr / max(recipe.warmup, 1),
        "warmup_prefix": True,
        "t_in_epochs": False,
    }


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer, Recipe, int], Any]] = {
    "cosine": _cosine,
    "cyclic": _cyclic,
    "constant": _constant,
}
