"""What a method wants to know of the gradients: added up one by one, at the weights that are left.

n blocks of size B of one layer, d = n·B weights, m gradients.
"""

from typing import Protocol

import torch
from torch import Tensor

from sparsity.gradients import gathered
from sparsity.inverse import invert_

WAITING = 64
"""Gradients that are added at once: every time, all blocks are read and written."""

CHUNK = 2**22
"""Numbers of them that are laid side by side for it: they stay in a cache."""


class Statistic(Protocol):
    """What is kept of a layer's gradients."""

    def add(self, gradient: Tensor) -> None:
        """One more gradient of a batch's mean loss, (n, B), zero where weights are removed."""

    def sums(self) -> list[Tensor]:
        """What processes that share the batches add up before it is used."""


class Nothing:
    """For methods that look at weights alone."""

    def __init__(self, weights: Tensor) -> None:
        del weights

    def add(self, gradient: Tensor) -> None:
        del gradient

    def sums(self) -> list[Tensor]:
        return []


class Products:
    """Σ |w · g| (Kuznedelev et al., oViT, Eq. 9, with one gradient a batch)."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self.total = torch.zeros_like(weights)

    def add(self, gradient: Tensor) -> None:
        self.total += (self._weights * gradient).abs_()

    def sums(self) -> list[Tensor]:
        return [self.total]


class Squares:
    """Σ g²: the diagonal of the empirical Fisher matrix."""

    def __init__(self, weights: Tensor) -> None:
        self.total = torch.zeros_like(weights)

    def add(self, gradient: Tensor) -> None:
        self.total.addcmul_(gradient, gradient)

    def sums(self) -> list[Tensor]:
        return [self.total]


class BlockFisher:
    """Σ g gᵀ in diagonal blocks (oViT, Eq. 3): d·B numbers, and up to WAITING gradients, at most as many again.

    All that wait go in at once: a product of matrices in the place of many rank-one updates. Until then they are kept
    as they are given, not copied.
    """

    def __init__(self, weights: Tensor) -> None:
        count, size = weights.shape
        self.blocks = weights.new_empty(count, size, size)
        self._waiting: list[Tensor] = []
        self._most, self._empty = min(WAITING, size), True

    def add(self, gradient: Tensor) -> None:
        self._waiting.append(gradient)
        if len(self._waiting) == self._most:
            self._flush()

    def _flush(self) -> None:
        if self._empty and not self._waiting:
            self.blocks.zero_()
        elif self._waiting:
            count, size = self._waiting[0].shape
            step = max(1, CHUNK // (len(self._waiting) * size))
            for start in range(0, count, step):
                rows = torch.stack([gradient[start : start + step] for gradient in self._waiting], dim=1)  # n m B
                part = self.blocks[start : start + step]
                if self._empty:
                    torch.bmm(rows.transpose(1, 2), rows, out=part)
                else:
                    part.baddbmm_(rows.transpose(1, 2), rows)
        self._waiting, self._empty = [], False

    def sums(self) -> list[Tensor]:
        self._flush()
        return [self.blocks]

    def inverse_(self, gradients: int, damp: float) -> tuple[Tensor, Tensor]:
        """The inverse of the damped mean, in the memory of the sum: (n, B, B); and its diagonal's lower bound (n, B).

        No variance of a weight falls below one over the Fisher matrix's diagonal, whatever else is removed.
        """
        self._flush()
        diagonal = self.blocks.diagonal(dim1=1, dim2=2) / gradients
        damping = invert_(self.blocks, damp, 1 / gradients)
        return self.blocks, (diagonal + damping[:, None]).reciprocal_()


class Stored:
    """All gradients, m·d numbers (Frantar et al. 2021, M-FAC): no Fisher matrix is made."""

    def __init__(self, weights: Tensor) -> None:
        self._rows: list[Tensor] = []
        self._weights = weights

    def add(self, gradient: Tensor) -> None:
        self._rows.append(gradient.clone())

    def sums(self) -> list[Tensor]:
        self._rows = gathered(self._rows, self._weights)
        return []

    def of_blocks(self, start: int, stop: int) -> Tensor:
        """The gradients of some blocks, (stop - start, m, B)."""
        return torch.stack([row[start:stop] for row in self._rows], dim=1)
