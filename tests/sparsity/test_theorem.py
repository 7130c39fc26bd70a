"""Theorem 1 of oViT by brute force over all supports; the package computes nothing of it but its greedy answer."""

import itertools

import pytest
import torch

from tests.sparsity.toys import elimination, fisher, problem, to


def regression(rows, weights, removed):
    """Eq. 6 (10) for one support: the least (1/2m) Σ (gᵀw' - gᵀw)² with w' zero there, and w'."""
    stay = [index for index in range(len(weights)) if index not in removed]
    aim = rows @ weights
    made = torch.zeros_like(weights)
    if stay:
        made[stay] = torch.linalg.lstsq(rows[:, stay], aim).solution
    return float((rows @ made - aim).square().sum()) / (2 * len(rows)), made


def group_saliency(inverse, weights, removed):
    """Eq. 7 (11) for one support, and the weights after Eq. 5."""
    solved = torch.linalg.solve(inverse[removed][:, removed], weights[removed])
    return float(weights[removed] @ solved) / 2, weights - inverse[:, removed] @ solved


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 4, 6])
def test_the_sparse_regression_s_optimum_is_the_group_saliency_s(size, seed):
    rows, weights = problem(1, size, 3 * size, seed)
    inverse = torch.linalg.inv(fisher(rows, size, 0.0)[0])
    for zeros in range(1, size + 1):
        supports = [list(support) for support in itertools.combinations(range(size), zeros)]
        losses = [regression(rows, weights, support) for support in supports]
        saliencies = [group_saliency(inverse, weights, support) for support in supports]
        for (one, made), (other, updated) in zip(losses, saliencies, strict=True):
            assert one == pytest.approx(other)
            torch.testing.assert_close(made, updated)
        best = min(range(len(supports)), key=lambda index: losses[index][0])
        assert best == min(range(len(supports)), key=lambda index: saliencies[index][0])


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_its_own_taylor_expansion(seed):
    """Eqs. 12 and 13, with the half that they leave out, and Eq. 1: of gradients' squared errors, exactly."""
    rows, weights = problem(1, 5, 12, seed)
    change = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def squared_error(w):
        return (rows @ w - rows @ weights).square().sum() / (2 * len(rows))

    hessian = torch.autograd.functional.hessian(squared_error, weights)
    torch.testing.assert_close(hessian, fisher(rows, 5, 0.0)[0])
    torch.testing.assert_close(squared_error(weights + change), change @ hessian @ change / 2)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_optimal_for_one_weight_and_for_all_and_never_better_than_the_optimum(seed):
    rows, weights = problem(1, 6, 18, seed)
    made = to(elimination(weights[None], fisher(rows, 6, 0.0)), 6)
    for zeros in range(1, 7):
        best = min(regression(rows, weights, list(q))[0] for q in itertools.combinations(range(6), zeros))
        reached = float(made.gains[0, :zeros].sum())
        left, keep = made.result(torch.tensor([zeros]))
        own, expected = regression(rows, weights, (~keep[0]).nonzero().flatten().tolist())
        assert reached == pytest.approx(own)  # of the support that it chose its weights are the best
        torch.testing.assert_close(left[0], expected)
        assert reached >= best - 1e-12
        if zeros in (1, 6):
            assert reached == pytest.approx(best)
