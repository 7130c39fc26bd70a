"""Losses for calibration and fine-tuning."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.errors import VitfitError
from vit.model import VisionTransformer


def cross_entropy(model: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a batch."""
    return F.cross_entropy(model(images), labels)


def soft_distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) at temperature T (Hinton et al. 2015); mean over the batch.

    The factor keeps the gradient's size the same at every temperature.
    """
    student = F.log_softmax(logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


TrainLoss = Callable[[VisionTransformer, Tensor, Tensor], Tensor]


def distilled_loss(
    teacher: VisionTransformer | None, weight: float, temperature: float, label_smoothing: float
) -> TrainLoss:
    """(1 - weight) · cross-entropy + weight · soft distillation from the teacher; without one, cross-entropy."""
    if not 0 <= weight <= 1:
        raise VitfitError(f"distillation weight must be from 0 to 1, got {weight}")
    if not 0 < temperature < float("inf"):
        raise VitfitError(f"distillation temperature must be positive, got {temperature}")

    def loss(model: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        supervised = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if teacher is None or weight == 0:
            return supervised
        with torch.no_grad():
            targets = teacher(images)
        return (1 - weight) * supervised + weight * soft_distillation(logits, targets, temperature)

    return loss
