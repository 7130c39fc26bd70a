"""Greedy elimination inside every block at once (Kuznedelev et al., oViT, Algorithm 1, lines 3 to 14).

Optimal Brain Surgeon removes weight q at a loss of w_q² / (2 d_q), d the diagonal of the inverse Fisher block, and
re-tunes the others (Eq. 2). Done again and again it is a Cholesky factorisation of the inverse block, pivoted by w²/d:

    L_k = (column p of the inverse left) / √d_p        c_k = w_p / √d_p
    w ← w - c_k L_k      inverse ← inverse - L_k L_kᵀ      the loss rises by c_k² / 2

So no state has to be kept for each step, as Algorithm 1 has it: the weights after any number of steps are
w - Σ c_k L_k, and L_k takes the place of the row of the inverse that its weight no longer needs.

Units of g weights (tiles) go in the same way, with g x g pivots (Eq. 5). n blocks of size B, U = B/g units in each.
"""

import math

import torch
from torch import Tensor

from sparsity.kernels import as_many_threads_as_torch, eliminate, restore


class Elimination:
    """One layer's blocks, from the first removed unit to as many as are asked for.

    Attributes:
        gains: shape (n, U): by how much the loss rises with each step; infinity for steps that were not made.
        count: shape (n,): steps made.
    """

    def __init__(self, weights: Tensor, inverse: Tensor, least: Tensor, alive: Tensor, unit: int, room: Tensor) -> None:
        """
        Args:
            weights: shape (n, B), zero where they are removed already.
            inverse: of the damped Fisher blocks, shape (n, B, B); taken over and overwritten.
            least: lower bound of its diagonal, shape (n, B).
            alive: boolean, shape (n, U): units that can go.
            unit: weights in a unit.
            room: shape (n, G): how many units may go of each of G groups of U/G neighbours.
        """
        count, size = weights.shape
        self._start, self._alive, self._unit = weights, alive, unit
        self._weights = weights.clone()
        self._factors = inverse
        self._compiled = weights.device.type == "cpu" and unit == 1
        self._variance = torch.maximum(inverse.diagonal(dim1=1, dim2=2), least) if self._compiled else least
        self._least = least
        self._room = room.to(torch.int64, copy=True)
        self._closed = torch.zeros_like(alive, dtype=weights.dtype).masked_fill_(~alive, math.inf)
        self._closed.masked_fill_((self._room <= 0).repeat_interleave(size // unit // room.shape[1], dim=1), math.inf)
        self._order = torch.zeros(count, size // unit, dtype=torch.int32, device=weights.device)
        self._coefficient = weights.new_zeros(count, size // unit, unit)
        self.gains = weights.new_full((count, size // unit), math.inf)
        self.count = torch.zeros(count, dtype=torch.int64, device=weights.device)

    @property
    def exhausted(self) -> Tensor:
        """Blocks in which nothing is left that may go, shape (n,)."""
        return torch.isinf(self._closed).all(dim=1)

    @torch.no_grad()
    def advance(self, until: Tensor) -> None:
        """Until each block has lost so many units, (n,), or none is left that may go."""
        if self._compiled:
            blocks = self._factors, self._weights, self._variance, self._least, self._closed, self._room
            steps = self._order, self._coefficient[:, :, 0], self.gains, self.count, until.to(torch.int64)
            as_many_threads_as_torch()
            eliminate(*(tensor.numpy() for tensor in (*blocks, *steps)))
            return
        while len(todo := ((self.count < until) & ~self.exhausted).nonzero().flatten()):
            self._step(todo)

    def _step(self, todo: Tensor) -> None:
        """One unit of each of these blocks: m of them, g weights a unit."""
        factors, weights = self._factors[todo], self._weights[todo]  # m B B; m B
        blocks, size, g = len(todo), factors.shape[1], self._unit
        pivots = (
            factors.view(blocks, size // g, g, size // g, g).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        )  # m U g g
        roots = torch.linalg.cholesky_ex(pivots + torch.diag_embed(_lifted(pivots, self._least[todo], g)))[0]
        scaled = torch.linalg.solve_triangular(roots, weights.view(blocks, -1, g, 1), upper=False)[..., 0]  # m U g
        losses = scaled.square().sum(dim=2) / 2 + self._closed[todo]
        picked = losses.nan_to_num(nan=math.inf).argmin(dim=1)
        each = torch.arange(blocks, device=todo.device)
        c, root = scaled[each, picked], roots[each, picked]
        at = picked[:, None] * g + torch.arange(g, device=todo.device)  # m g
        rows = torch.linalg.solve_triangular(root, factors.gather(1, at[:, :, None].expand(-1, -1, size)), upper=False)
        gone = self._gone(todo)
        rows.masked_fill_(gone[:, None, :], 0.0)
        weights -= (c[:, None, :] @ rows)[:, 0]
        factors.baddbmm_(rows.transpose(1, 2), rows, alpha=-1)
        factors.scatter_(1, at[:, :, None].expand(-1, -1, size), rows)  # no later step touches what is gone
        weights.scatter_(1, at, 0.0)
        weights.masked_fill_(gone, 0.0)
        self._factors[todo], self._weights[todo] = factors, weights
        step = self.count[todo]
        self._order[todo, step] = picked.to(torch.int32)
        self._coefficient[todo, step], self.gains[todo, step] = c, c.square().sum(dim=1) / 2
        self.count[todo] += 1
        self._close(todo, picked)

    def _gone(self, todo: Tensor) -> Tensor:
        """Weights that are no longer there, shape (m, B)."""
        made = torch.arange(self._order.shape[1], device=todo.device) < self.count[todo][:, None]
        units = torch.zeros_like(self._alive[todo]).scatter_reduce_(1, self._order[todo].long(), made, "amax")
        return (units | ~self._alive[todo]).repeat_interleave(self._unit, dim=1)

    def _close(self, todo: Tensor, picked: Tensor) -> None:
        self._closed[todo, picked] = math.inf
        per_group = self._order.shape[1] // self._room.shape[1]
        self._room[todo, picked // per_group] -= 1
        full = (self._room[todo] <= 0).repeat_interleave(per_group, dim=1)
        self._closed[todo] = self._closed[todo].masked_fill(full, math.inf)

    @torch.no_grad()
    def result(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Weights after so many steps of each block (n,), and which of them stay; both (n, B)."""
        weights, g = self._start.clone(), self._unit
        made = torch.arange(self._order.shape[1], device=counts.device) < counts[:, None]
        units = torch.zeros_like(self._alive).scatter_reduce_(1, self._order.long(), made, "amax")
        keep = (self._alive & ~units).repeat_interleave(g, dim=1)
        if self._compiled:
            steps = self._factors, self._order, self._coefficient[:, :, 0], counts.to(torch.int64), weights
            as_many_threads_as_torch()
            restore(*(tensor.numpy() for tensor in steps))
        else:
            for step in range(int(counts.max())):
                at = self._order[:, step, None].long() * g + torch.arange(g, device=counts.device)
                rows = self._factors.gather(1, at[:, :, None].expand(-1, -1, weights.shape[1]))
                c = self._coefficient[:, step] * (step < counts)[:, None]
                weights -= (c[:, None, :] @ rows)[:, 0]
        return weights.masked_fill_(~keep, 0.0), keep


def _lifted(pivots: Tensor, least: Tensor, unit: int) -> Tensor:
    """What the diagonals of pivots lack of their lower bound, (m, U, g)."""
    diagonal = pivots.diagonal(dim1=2, dim2=3)
    return (least.view(*diagonal.shape[:2], unit) - diagonal).clamp_min(0)
