"""Algorithm 1 of oViT as the paper writes it, in plain vectorised torch: rank-one updates and a trace of every step.

The slow truth that `sparsity` is compared with. n blocks of size B, m gradients.
"""

import math

import torch
from torch import Tensor


def rank_one_inverse(gradients: Tensor, block_size: int, damp: float) -> Tensor:
    """Inverse of the damped empirical Fisher blocks by Sherman-Morrison, one gradient at a time; shape (n, B, B).

    Args:
        gradients: shape (m, n·B).
    """
    count = len(gradients)
    blocks = gradients.view(count, -1, block_size)
    inverse = (torch.eye(block_size, dtype=gradients.dtype) / damp).repeat(blocks.shape[1], 1, 1)
    for gradient in blocks:
        v = torch.einsum("nij,nj->ni", inverse, gradient)
        v /= (count + (gradient * v).sum(dim=1, keepdim=True)).sqrt()
        inverse -= v[:, :, None] * v[:, None, :]
    return inverse


def trace(inverse: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every step of greedy elimination in each block, to the last weight.

    Returns:
        weights after each number of steps (B + 1, n, B), which weight went (B, n), by how much the loss rose (B, n).
    """
    inverse, weights = inverse.clone(), weights.clone()
    count, size = weights.shape
    each = torch.arange(count)
    gone = torch.zeros_like(weights, dtype=torch.bool)
    states, order, gains = [weights.clone()], [], []
    for _ in range(size):
        variance = inverse.diagonal(dim1=1, dim2=2)
        losses = (weights.square() / (2 * variance)).masked_fill(gone, math.inf)
        picked = losses.argmin(dim=1)
        row, pivot = inverse[each, picked], variance[each, picked]
        gains.append(losses[each, picked])
        order.append(picked)
        weights = weights - (weights[each, picked] / pivot)[:, None] * row
        gone[each, picked] = True
        weights[gone] = 0
        row = row / pivot.sqrt()[:, None]
        inverse -= row[:, :, None] * row[:, None, :]
        states.append(weights.clone())
    return torch.stack(states), torch.stack(order), torch.stack(gains)


def ovit(gradients: Tensor, weights: Tensor, block_size: int, damp: float, zeros: int) -> tuple[Tensor, Tensor]:
    """Weights (n·B,) with that many zeros, and what stays; blocks are merged by their cumulative errors (lines 15-18).

    Args:
        gradients: shape (m, n·B).
        weights: shape (n·B,).
    """
    states, _, gains = trace(rank_one_inverse(gradients, block_size, damp), weights.view(-1, block_size))
    errors = gains.cumsum(dim=0)
    counts = torch.zeros(states.shape[1], dtype=torch.long)
    cheapest = errors.T.reshape(-1).argsort(stable=True)[:zeros]
    counts += torch.bincount(cheapest // block_size, minlength=len(counts))
    pruned = states[counts, torch.arange(len(counts))]
    return pruned.reshape(-1), pruned.reshape(-1) != 0


def quadratic_loss(gradients: Tensor, before: Tensor, after: Tensor, block_size: int, damp: float) -> float:
    """½ δᵀ F δ with the damped Fisher blocks (Eq. 4), in float64."""
    change = (after - before).double().view(-1, block_size)
    blocks = gradients.double().view(len(gradients), -1, block_size)
    along = torch.einsum("mnb,nb->mn", blocks, change)
    return float(along.square().sum() / len(gradients) + damp * change.square().sum()) / 2
