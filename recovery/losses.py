"""Losses for calibration and fine-tuning. B images, C classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recovery.recipes import Recipe
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


def training_loss(
    heads: tuple[Tensor, ...],
    labels: Tensor,
    recipe: Recipe,
    uncut: Tensor | None = None,
    decisive: Tensor | None = None,
) -> Tensor:
    """(1 - s - h) · CE(labels) + s · T² KL(uncut ‖ student) + h · CE(argmax decisive), means over the batch.

    With s = 0 and h = ½ that is DeiT's hard distillation (Touvron et al. 2021, Eq. 3): a distilled model reads labels
    from its class token and decisions from its distillation token. Everything else is about the mean of its
    classifiers, which is what it says at inference.

    Args:
        heads: logits of each classifier, (B, C).
        labels: classes (B,), or their probabilities (B, C), which are smoothed already.
        uncut: the uncut model's logits (B, C); None: s is 0.
        decisive: logits (B, C) of the teacher whose decisions count; None: h is 0.
    """
    soft = 0.0 if uncut is None else recipe.distillation
    hard = 0.0 if decisive is None else recipe.hard_distillation
    whole = heads[0] if len(heads) == 1 else torch.stack(heads).mean(dim=0)
    terms: list[Tensor] = []
    if (weight := 1 - soft - hard) > 1e-9:
        smoothing = 0.0 if labels.is_floating_point() else recipe.label_smoothing
        logits = heads[0] if hard else whole
        terms.append(weight * F.cross_entropy(logits, labels, label_smoothing=smoothing))
    if soft and uncut is not None:
        terms.append(soft * soft_distillation(whole, uncut, recipe.temperature))
    if hard and decisive is not None:
        terms.append(hard * F.cross_entropy(heads[-1], decisive.argmax(dim=-1)))
    return torch.stack(terms).sum()
