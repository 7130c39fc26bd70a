"""How to choose single weights: oViT and what it is compared with, each by the statistic that it wants and its solver.

n blocks of size B, units of g weights, m gradients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity.obs import Elimination
from sparsity.solvers import MERGES, Greedy, Ranked, Solver
from sparsity.statistics import WAITING, BlockFisher, Nothing, Products, Squares, Statistic, Stored


@dataclass(frozen=True, eq=False, slots=True)
class Problem:
    """One layer, laid out in blocks.

    Attributes:
        weights: shape (n, B), zero where they are removed already.
        alive: boolean, shape (n, U): units that can go.
        room: shape (n, G): how many units may go of each of G groups of neighbours.
        unit: weights in a unit.
        gradients: how many were added to the statistic.
        damp: λ of the Fisher matrix.
        merge: name of how oViT compares blocks.
    """

    weights: Tensor
    alive: Tensor
    room: Tensor
    unit: int
    gradients: int
    damp: float
    merge: str

    def ranked(self, scores: Tensor, update: Callable[[Tensor], Tensor] | None = None) -> Solver:
        """By scores of single weights (n, B), added up over a unit."""
        together = scores.view(len(scores), -1, self.unit).sum(dim=2)
        return Ranked(self.weights, together, self.alive, self.room, update)


@dataclass(frozen=True, slots=True)
class Method:
    """
    Attributes:
        statistic: of a layer's gradients; made for its weights.
        solve: the problem and the statistic -> the solver.
        block_size: of a layer where nothing else is asked for.
        damp: where nothing else is asked for.
        needs_gradients: whether it looks at data.
        floats: numbers kept for a weight, with blocks of that size and so many gradients.
    """

    statistic: Callable[[Tensor], Statistic]
    solve: Callable[[Problem, Statistic], Solver]
    block_size: int = 64
    damp: float = 1e-8
    needs_gradients: bool = True
    floats: Callable[[int, int], float] = lambda size, gradients: 4.0
    source: str = ""


def _magnitude(problem: Problem, statistic: Statistic) -> Solver:
    """|w|, and the sum of squares of a unit."""
    del statistic
    return problem.ranked(problem.weights.square())


def _products(problem: Problem, statistic: Statistic) -> Solver:
    """Σ |w · g| (oViT, Eq. 9)."""
    assert isinstance(statistic, Products)
    return problem.ranked(statistic.total)


def _diagonal(problem: Problem, statistic: Statistic) -> Solver:
    """½ w² F_ii (LeCun et al. 1989), which is OBS with blocks of one weight: WF-1."""
    assert isinstance(statistic, Squares)
    fisher = statistic.total / problem.gradients + problem.damp
    return problem.ranked(problem.weights.square() * fisher / 2)


def _woodfisher(problem: Problem, statistic: Statistic) -> Solver:
    """Scores of each weight alone, then the sum of the updates of each alone (Singh & Alistarh 2020).

    A unit of several weights goes by its joint score and update (Kurtic et al. 2022, oBERT; oViT, Eq. 5).
    """
    assert isinstance(statistic, BlockFisher)
    inverse, least = statistic.inverse_(problem.gradients, problem.damp)
    if problem.unit == 1:
        variance = torch.maximum(inverse.diagonal(dim1=1, dim2=2), least)
        alone = problem.weights / variance
        scores = problem.weights * alone / 2
    else:
        shape = (len(problem.weights), -1, problem.unit)
        count, units = len(problem.weights), problem.weights.shape[1] // problem.unit
        tiles = inverse.view(count, units, problem.unit, units, problem.unit)
        pivots = tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        alone = torch.linalg.solve(pivots, problem.weights.view(*shape, 1)).reshape(count, -1)
        scores = problem.weights * alone / 2

    def update(removed: Tensor) -> Tensor:
        change: Tensor = torch.bmm(inverse, (alone * removed)[:, :, None])[:, :, 0]
        return change.neg()

    return problem.ranked(scores, update)


def _mfac(problem: Problem, statistic: Statistic) -> Solver:
    """As WoodFisher, the inverse applied through the gradients themselves (Frantar et al. 2021):

        F⁻¹ x = (x - Gᵀ (λ m I + G Gᵀ)⁻¹ G x) / λ          G: m x B

    In float64: what is left of two nearly equal numbers is divided by λ.
    """
    assert isinstance(statistic, Stored)
    damp, most = problem.damp, problem.gradients
    count, size = problem.weights.shape
    step = max(1, 2**22 // (most * size))  # blocks at a time

    def rows_of(start: int) -> Tensor:
        return statistic.of_blocks(start, min(start + step, count)).double()

    def roots(start: int) -> Tensor:
        """R with F⁻¹ = (I - Rᵀ R) / λ, of some blocks."""
        rows = rows_of(start)
        kernel = torch.bmm(rows, rows.transpose(1, 2))
        kernel.diagonal(dim1=1, dim2=2).add_(damp * most)
        root: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(kernel), rows, upper=False)
        return root

    variance = torch.cat([(1 - roots(start).square().sum(dim=1)) / damp for start in range(0, count, step)])
    fisher = torch.cat([rows_of(start).square().mean(dim=1) for start in range(0, count, step)]) + damp
    alone = problem.weights / torch.maximum(variance, fisher.reciprocal())

    def update(removed: Tensor) -> Tensor:
        made = []
        for start in range(0, count, step):
            root, x = roots(start), (alone * removed)[start : start + step, :, None]
            made.append((x - root.transpose(1, 2) @ (root @ x))[:, :, 0] / damp)
        return -torch.cat(made).to(problem.weights)

    return problem.ranked((problem.weights * alone / 2).to(problem.weights), update)


def _ovit(problem: Problem, statistic: Statistic) -> Solver:
    """Greedy OBS in every block, correlations included (oViT, Algorithm 1)."""
    assert isinstance(statistic, BlockFisher)
    inverse, least = statistic.inverse_(problem.gradients, problem.damp)
    blocks = Elimination(problem.weights, inverse, least, problem.alive, problem.unit, problem.room)
    return Greedy(blocks, MERGES[problem.merge])


def _blocks_and_buffer(size: int, gradients: int) -> float:
    """The Fisher block, and gradients that wait to be added or what the solver keeps of each step."""
    del gradients
    return size + WAITING


METHODS: Mapping[str, Method] = {
    "ovit": Method(
        BlockFisher,
        _ovit,
        floats=_blocks_and_buffer,
        source="Kuznedelev et al., oViT, Algorithm 1; damping of Appendix G",
    ),
    "woodfisher": Method(
        BlockFisher,
        _woodfisher,
        damp=1e-6,
        floats=_blocks_and_buffer,
        source="Singh & Alistarh 2020; Kurtic et al. 2022; oViT, Appendix G",
    ),
    "mfac": Method(
        Stored,
        _mfac,
        block_size=2048,
        damp=1e-6,
        floats=lambda size, gradients: gradients + 16,
        source="Frantar et al. 2021; oViT, Appendix H",
    ),
    "diagonal": Method(Squares, _diagonal, source="LeCun et al. 1989; WF-1 of oViT, Figure 3"),
    "grw": Method(Products, _products, source="oViT, Eq. 9"),
    "magnitude": Method(Nothing, _magnitude, needs_gradients=False, source="Han et al. 2015; Zhu & Gupta 2017"),
}
"""By name."""
