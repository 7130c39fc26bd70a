"""The damped inverse of symmetric blocks, in place: n blocks of size B.

On CPUs a block that fits a core's cache is inverted there, and a larger one halved until its parts do. Float32 is
precise enough for most blocks; those whose pivots lose too many digits are done again in float64. On GPUs Cholesky does
both.
"""

import torch
from torch import Tensor

from sparsity.errors import SparsityError

SMALL = 192
"""Parts of at most this size are inverted pivot by pivot."""

CHUNK = 2**21
"""Numbers at a time: what is computed on the way takes so much memory, and not as much as the model has blocks."""

DIGITS = 1e-4
"""Smallest pivot over its diagonal element that float32 is trusted with: four of its seven digits are gone then."""

RESOLVED = 4 * torch.finfo(torch.float32).eps
"""Damping below this share of a block's largest diagonal element is lost in what float32 rounds off the sums."""

_MOST_RAISES = 12


@torch.no_grad()
def invert_(blocks: Tensor, damp: float, scale: float = 1.0) -> Tensor:
    """(scale · F + damp · I)⁻¹ of each block F, in place; returns the damping that each block got.

    A block gets more than `damp` where float32 sums cannot resolve it: RESOLVED of its largest diagonal element, and
    ten times more, again and again, as long as it is not positive definite.

    Args:
        blocks: sums of outer products, shape (n, B, B), float32 or float64.
        damp: λ of Eq. 3 (Kuznedelev et al., oViT), above zero.

    Returns:
        Shape (n,).

    Raises:
        SparsityError: a block that no damping makes positive definite, for its sums are not finite.
    """
    used = torch.empty(len(blocks), dtype=blocks.dtype, device=blocks.device)
    resolved = RESOLVED if blocks.dtype == torch.float32 else 0.0
    step = max(1, CHUNK // blocks.shape[1] ** 2)
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        most = part.diagonal(dim1=1, dim2=2).amax(dim=1) * scale
        lambdas = (resolved * most).clamp_min(damp)
        used[start : start + step] = lambdas
        kept = part if _in_cache(part) else part.clone()
        trusted = DIGITS if part.dtype == torch.float32 else 0.0
        worst = _attempt_(part, lambdas, scale, trusted)
        if len(index := (worst <= trusted).nonzero().flatten()):
            made, raised = _carefully(kept[index].double().mul_(scale), lambdas[index].double())
            part[index], used[start + index] = made.to(part.dtype), raised.to(used.dtype)
    return used


def _carefully(blocks: Tensor, lambdas: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, with as much damping as it takes."""
    wanted = blocks.clone()
    todo = torch.arange(len(blocks), device=blocks.device)
    for _ in range(_MOST_RAISES):
        made = wanted[todo]
        worst = _attempt_(made, lambdas[todo])
        blocks[todo] = made
        todo = todo[worst <= 0]
        if not len(todo):
            break
        lambdas[todo] *= 10
    else:
        raise SparsityError(
            "a Fisher block is not positive definite, however it is damped; are its gradients too large?"
        )
    return blocks, lambdas


def _in_cache(blocks: Tensor) -> bool:
    """Whether they are inverted one by one, and stay as they are where that fails."""
    return not blocks.is_cuda and blocks.shape[1] <= SMALL


def _attempt_(blocks: Tensor, lambdas: Tensor, scale: float = 1.0, trusted: float = 0.0) -> Tensor:
    """Invert in place; each block's smallest pivot over its diagonal element, zero or below where there is none."""
    if _in_cache(blocks):
        from sparsity.kernels import as_many_threads_as_torch, inverse

        as_many_threads_as_torch()
        least_of = torch.ones(len(blocks), dtype=blocks.dtype)
        own = blocks.contiguous()
        inverse(own.numpy(), scale, lambdas.numpy(), trusted, least_of.numpy())
        if own.data_ptr() != blocks.data_ptr():
            blocks.copy_(own)
        return least_of.nan_to_num(nan=0.0)
    diagonal = blocks.mul_(scale).diagonal(dim1=1, dim2=2)
    diagonal.add_(lambdas[:, None])
    if blocks.is_cuda:
        factor, failed = torch.linalg.cholesky_ex(blocks)
        pivots = factor.diagonal(dim1=1, dim2=2).square() / diagonal
        blocks.copy_(torch.cholesky_inverse(factor))
        least: Tensor = pivots.amin(dim=1).masked_fill(failed > 0, 0.0)
        return least.nan_to_num(nan=0.0)
    worst = torch.ones(len(blocks), dtype=blocks.dtype)
    _inverse_root_(blocks, diagonal.clone(), 0, worst)
    _squared_(blocks)
    return worst.nan_to_num(nan=0.0)


def _inverse_root_(blocks: Tensor, diagonal: Tensor, first: int, worst: Tensor) -> None:
    """M = L⁻¹ of each block L Lᵀ, in place, by halves; the whole block's upper right half is left as it is.

    [[A, B], [Bᵀ, D]]:   M₁ = L(A)⁻¹, T = M₁ B, M₂ = L(D - Tᵀ T)⁻¹,   M = [[M₁, ·], [-M₂ Tᵀ M₁, M₂]]
    """
    size = blocks.shape[1]
    if size <= SMALL:
        from sparsity.kernels import as_many_threads_as_torch, inverse_root

        as_many_threads_as_torch()
        own = blocks.contiguous()
        inverse_root(own.numpy(), diagonal.numpy(), first, worst.numpy())
        if own.data_ptr() != blocks.data_ptr():
            blocks.copy_(own)
        return
    half = size // 2
    upper, corner, lower = blocks[:, :half, :half], blocks[:, :half, half:], blocks[:, half:, half:]
    _inverse_root_(upper, diagonal, first, worst)
    t = torch.bmm(upper, corner)
    if size < diagonal.shape[1]:  # a half of a larger block, whose products take all of it
        corner.zero_()
    lower.baddbmm_(t.transpose(1, 2), t, alpha=-1)
    _inverse_root_(lower, diagonal, first + half, worst)
    blocks[:, half:, :half] = torch.bmm(torch.bmm(lower, t.transpose(1, 2)), upper).neg_()


def _squared_(blocks: Tensor) -> None:
    """Mᵀ M of lower triangles M, in place: positive semi-definite however it was rounded."""
    half = blocks.shape[1] // 2
    upper, left, lower = blocks[:, :half, :half], blocks[:, half:, :half], blocks[:, half:, half:]
    across = torch.bmm(left.transpose(1, 2), lower)
    first = torch.bmm(upper.transpose(1, 2), upper)
    first.baddbmm_(left.transpose(1, 2), left)
    lower.copy_(torch.bmm(lower.transpose(1, 2), lower))
    upper.copy_(first)
    blocks[:, :half, half:] = across
    left.copy_(across.transpose(1, 2))
