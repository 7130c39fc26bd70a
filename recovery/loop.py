"""Training and fine-tuning: one loop over timm's optimisers, as an iterator of reports."""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from recovery.data import Dataset, Split
from recovery.losses import distilled_loss
from vit.errors import VitfitError
from vit.model import VisionTransformer


class TrainingError(VitfitError, ValueError):
    """Training that cannot go on; the message names the step."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        lr: peak learning rate of AdamW; linear warm-up, then a cosine down to zero.
        warmup: steps of warm-up.
        weight_decay, label_smoothing, clip_grad: as usual; clip_grad is the largest gradient norm.
        distillation, temperature: weight of the teacher's soft labels and their temperature.
        report_every: steps between two reports.
        seed: order of the images and their augmentation.
    """

    steps: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    clip_grad: float = 1.0
    distillation: float = 0.5
    temperature: float = 2.0
    report_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "report_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise TrainingError(f"lr must be a positive number, got {self.lr}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def after_refit(steps: int, seed: int = 0) -> Recipe:
    """A short fine-tune that does not undo a refit: towards the uncut model's outputs alone, at a low learning rate.

    With labels and the learning rate of training, thirty steps lowered what a refit had reached (docs/compress.md).
    """
    return Recipe(
        steps=steps,
        lr=1e-4,
        warmup=steps // 10,
        weight_decay=0.0,
        label_smoothing=0.0,
        distillation=1.0,
        temperature=2.0,
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class TrainReport:
    """Progress of training.

    Attributes:
        step, steps: done and to do.
        loss: mean of the steps since the last report.
        lr: learning rate of the last step.
    """

    step: int
    steps: int
    loss: float
    lr: float


def finetune(
    model: VisionTransformer,
    data: Dataset,
    recipe: Recipe,
    teacher: VisionTransformer | None = None,
) -> Iterator[TrainReport]:
    """Train `model` in place, with distillation from `teacher` if there is one; yields reports.

    Raises:
        DataError: the data does not fit the model.
        TrainingError: the loss or its gradient is not finite; the model then holds the last good weights.
    """
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    data.check(model.arch)
    device = next(model.parameters()).device
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(device).eval()
    loss_of = distilled_loss(teacher, recipe.distillation, recipe.temperature, recipe.label_smoothing)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
    warmup = min(recipe.warmup, recipe.steps // 5)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=recipe.steps - warmup,
        warmup_t=warmup,
        warmup_lr_init=recipe.lr / max(warmup, 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    model.train()
    recent: list[float] = []
    for step, (images, labels) in enumerate(_forever(data.train, recipe), start=1):
        scheduler.step_update(step - 1)
        loss = loss_of(model, images.to(device), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        value = float(loss.detach())
        if not (math.isfinite(value) and torch.isfinite(norm)):
            model.eval()
            raise TrainingError(
                f"the loss is {value:g} and its gradient's norm {float(norm):g} at step {step}; the model holds "
                f"the weights of step {step - 1}; lower the learning rate or check the images"
            )
        optimizer.step()
        recent.append(value)
        if step % recipe.report_every == 0 or step == recipe.steps:
            lr = float(optimizer.param_groups[0]["lr"])
            yield TrainReport(step, recipe.steps, sum(recent) / len(recent), lr)
            recent = []
        if step == recipe.steps:
            break
    model.eval()


def _forever(split: Split, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from split.shuffled(recipe.batch_size, recipe.seed * 100_003 + epoch, augment=True)
        epoch += 1


@torch.no_grad()
def accuracy(model: VisionTransformer, split: Split, batch_size: int = 250) -> float:
    """Top-1 accuracy in [0, 1], in eval mode."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    right = total = 0
    for images, labels in split.ordered(batch_size):
        right += int((model(images.to(device)).argmax(dim=1) == labels.to(device)).sum())
        total += len(labels)
    model.train(training)
    return right / total
