"""How many units leave each block, so that just as many go as were asked for: the cheapest of all blocks.

Blocks of greedy solvers are followed only as deep as the answer needs.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsity.errors import SparsityError
from sparsity.solvers import Solver

FIRST = 0.85
"""Of the asked share of its units, how much of a block is looked at first: most blocks lose about their share."""

STEPS = 10
"""By this part of a block those that may lose more are followed on."""


@torch.no_grad()
def cheapest(solvers: Sequence[Solver], units: int) -> list[Tensor]:
    """Counts for every block of every solver, (n,) each, that add up to `units`: those with the smallest errors.

    Raises:
        SparsityError: fewer than that may go.
    """
    if not units:
        return [torch.zeros(len(solver.errors), dtype=torch.int64, device=solver.errors.device) for solver in solvers]
    sizes = [solver.errors.shape[1] for solver in solvers]
    total = sum(solver.errors.numel() for solver in solvers)
    depths = [
        torch.full_like(solver.errors[:, 0], min(size, max(1, int(FIRST * units / total * size))), dtype=torch.int64)
        for solver, size in zip(solvers, sizes, strict=True)
    ]
    behind = [True] * len(solvers)
    while True:
        for solver, depth, some in zip(solvers, depths, behind, strict=True):
            if some:
                solver.advance(depth)
        limit = _limit(solvers, units)
        for index, (solver, size) in enumerate(zip(solvers, sizes, strict=True)):
            last = solver.errors.gather(1, (depths[index] - 1)[:, None])[:, 0]
            follow = ~solver.exhausted & (last <= limit) & (depths[index] < size)
            depths[index] = torch.where(follow, (depths[index] + max(1, size // STEPS)).clamp_max(size), depths[index])
            behind[index] = bool(follow.any())
        if not any(behind):
            break
    if math.isinf(limit):
        known = sum(int(solver.errors.isfinite().sum()) for solver in solvers)
        raise SparsityError(f"{units} units were to be removed, only {known} may go")
    return _counts(solvers, units, limit)


def _limit(solvers: Sequence[Solver], units: int) -> float:
    """The error of the unit that comes in that place, of all that are known; infinity where fewer are known."""
    known = torch.cat([torch.empty(0), *(solver.errors[solver.errors.isfinite()].cpu() for solver in solvers)])
    return float(known.kthvalue(units).values) if len(known) >= units else math.inf


def _counts(solvers: Sequence[Solver], units: int, limit: float) -> list[Tensor]:
    """Everything below the limit goes; of what is at it, the first ones, until there are enough."""
    counts = [(solver.errors < limit).sum(dim=1) for solver in solvers]
    missing = units - sum(int(count.sum()) for count in counts)
    for solver, count in zip(solvers, counts, strict=True):
        if missing <= 0:
            break
        equal = (solver.errors == limit).sum(dim=1)
        before = equal.cumsum(dim=0) - equal
        more = (missing - before).clamp(min=0).minimum(equal)
        count += more
        missing -= int(more.sum())
    return counts
