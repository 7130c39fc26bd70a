"""Training a model that drops tokens: DynamicViT (Rao et al. 2021), as in oViT's Appendix F.2.

Decisions are drawn with Gumbel noise and passed on as 0 or 1, with the gradient of their probability; tokens that left
are hidden from the others' attention instead of being taken out, so the gradient reaches the predictors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.model import VisionTransformer
from vit.tokens import Masked, TokenPrunedTransformer

RATIO_WEIGHT = 2.0
DISTILLATION_WEIGHT = 0.5
"""Rao et al. 2021, Eq. 15 and below it. Distilling logits and labels are the recipe's."""


def drawn_decisions(log_probabilities: Tensor) -> Tensor:
    """1 for a token that stays, drawn by its probability (B, P); the gradient is that of a soft decision."""
    return F.gumbel_softmax(log_probabilities, tau=1.0, hard=True)[..., 1]


def token_training(
    model: TokenPrunedTransformer, images: Tensor, teacher: VisionTransformer | None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Logits of each classifier, with decisions drawn, and the loss of the decisions."""
    masked = model.masked(images, drawn_decisions)
    loss = RATIO_WEIGHT * ratio_loss(masked.decisions, model.plan.shares())
    if (
        teacher is not None
        and teacher.arch.tokens == model.arch.tokens
        and teacher.arch.embed_dim == model.arch.embed_dim
    ):
        with torch.no_grad():
            target = teacher.norm(teacher.blocks(teacher.embed(images)))
        loss = loss + DISTILLATION_WEIGHT * token_distillation(model, masked, target)
    return masked.heads, loss


def ratio_loss(decisions: tuple[Tensor, ...], shares: tuple[float, ...]) -> Tensor:
    """How far the tokens left are from what the plan says (Rao et al. 2021, Eq. 14):

    1 / (B S) Σ_b Σ_s (share_s - 1/P Σ_p D_bsp)²
    """
    return torch.stack(
        [(share - kept.float().mean(dim=1)).square().mean() for kept, share in zip(decisions, shares, strict=True)]
    ).mean()


def token_distillation(model: TokenPrunedTransformer, masked: Masked, target: Tensor) -> Tensor:
    """Mean squared difference to the teacher's last tokens, over the patch tokens left (Rao et al. 2021, Eq. 12)."""
    prefix = model.arch.prefix_tokens
    ours, kept = model.norm(masked.stream)[:, prefix:], masked.decisions[-1].detach()
    difference = (ours - target[:, prefix:]).float().square().mean(dim=-1)
    return (difference * kept).sum() / kept.sum().clamp_min(1.0)
