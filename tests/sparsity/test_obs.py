"""Greedy elimination: compiled, in torch, as Algorithm 1 has it; each step against Eqs. 2, 4 and 5 by brute force."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sparsity.plain import trace
from tests.sparsity.toys import best_without, elimination, fisher, problem, to

PATHS = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])


def blocks(count, size, seed=0, gradients=None, damp=1e-3):
    """Weights (n, B) and Fisher blocks (n, B, B)."""
    rows, weights = problem(count, size, gradients or 2 * size, seed)
    return weights.view(count, size), fisher(rows, size, damp)


@PATHS
@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 2), (4, 9), (2, 40)])
def test_every_step_is_the_plain_trace_s(compiled, count, size):
    weights, matrix = blocks(count, size)
    states, order, gains = trace(torch.linalg.inv(matrix), weights)
    made = to(elimination(weights, matrix, compiled=compiled), size)
    assert torch.equal(made._order.long(), order.T)
    torch.testing.assert_close(made.gains, gains.T)
    for steps in range(size + 1):
        left, keep = made.result(torch.full((count,), steps))
        torch.testing.assert_close(left, states[steps])
        assert ((~keep).sum(dim=1) == steps).all()
        assert (left[~keep] == 0).all()


@PATHS
def test_float32_goes_the_same_way_nearly(compiled):
    weights, matrix = blocks(6, 48)
    _, _, gains = trace(torch.linalg.inv(matrix), weights)
    made = to(elimination(weights.float(), matrix.float(), compiled=compiled), 24)
    # float32: a tie within rounding goes the other way now and then, at the same loss
    torch.testing.assert_close(made.gains[:, :24].sum(1).double(), gains[:24].sum(0), rtol=1e-3, atol=0.0)


@PATHS
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 6))
def test_every_step_is_the_cheapest_of_all_candidates_and_costs_its_exact_loss(compiled, seed, size):
    """Eq. 4 solved anew for every candidate, no inverse and no update involved."""
    weights, matrix = blocks(1, size, seed)
    made = to(elimination(weights, matrix, compiled=compiled), size)
    gone, before = [], 0.0
    for step in range(size):
        costs = {q: best_without(matrix[0], weights[0], [*gone, q])[0] for q in range(size) if q not in gone}
        picked = int(made._order[0, step])
        assert costs[picked] <= min(costs.values()) + 1e-9
        assert float(made.gains[0, step]) == pytest.approx(costs[picked] - before, abs=1e-9)
        gone.append(picked)
        before = costs[picked]
        left, _ = made.result(torch.tensor([step + 1]))
        torch.testing.assert_close(left[0], best_without(matrix[0], weights[0], gone)[1], rtol=1e-6, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 6))
def test_group_saliency_and_update_are_the_constrained_minimum(seed, size):
    """Eq. 5 solves Eq. 4, and one weight of it is Eq. 2."""
    weights, matrix = blocks(1, size, seed)
    w, inverse = weights[0], torch.linalg.inv(matrix[0])
    for group in itertools.chain.from_iterable(itertools.combinations(range(size), k) for k in range(1, size + 1)):
        q = list(group)
        solved = torch.linalg.solve(inverse[q][:, q], w[q])
        expected_loss, expected = best_without(matrix[0], w, q)
        assert float(w[q] @ solved) / 2 == pytest.approx(expected_loss)
        torch.testing.assert_close(w - inverse[:, q] @ solved, expected)
        if len(q) == 1:
            assert float(w[q] ** 2 / (2 * inverse[q, q])) == pytest.approx(expected_loss)


@PATHS
@pytest.mark.parametrize("unit", [1, 2])
def test_going_on_after_a_stop_is_going_at_once(compiled, unit):
    weights, matrix = blocks(3, 12)
    once = to(elimination(weights, matrix, unit, compiled=compiled), 12 // unit)
    twice = elimination(weights, matrix, unit, compiled=compiled)
    for until in ([1, 0, 3], [1, 2, 3], [0, 0, 0], [12, 4, 3], [12, 12, 12]):
        twice.advance(torch.tensor(until))
    assert torch.equal(once._order, twice._order)
    assert torch.equal(once.count, twice.count)
    torch.testing.assert_close(once.gains, twice.gains)
    counts = torch.tensor([0, 3, 5])
    torch.testing.assert_close(once.result(counts), twice.result(counts))


@PATHS
def test_only_as_many_steps_as_asked_for_are_known(compiled):
    weights, matrix = blocks(3, 6)
    made = elimination(weights, matrix, compiled=compiled)
    made.advance(torch.tensor([0, 2, 6]))
    assert made.gains.isfinite().sum(dim=1).tolist() == [0, 2, 6]
    assert made.exhausted.tolist() == [False, False, True]


@pytest.mark.parametrize("unit", [2, 3])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tiles_go_by_their_joint_loss_each_the_cheapest(unit, seed):
    size = 6
    weights, matrix = blocks(1, size, seed)
    made = to(elimination(weights, matrix, unit), size // unit)
    gone, before = [], 0.0
    for step in range(size // unit):
        tiles = [list(range(t * unit, (t + 1) * unit)) for t in range(size // unit)]
        costs = {t: best_without(matrix[0], weights[0], gone + q)[0] for t, q in enumerate(tiles) if q[0] not in gone}
        picked = int(made._order[0, step])
        assert costs[picked] <= min(costs.values()) + 1e-9
        assert float(made.gains[0, step]) == pytest.approx(costs[picked] - before, abs=1e-9)
        gone += tiles[picked]
        before = costs[picked]
        left, _ = made.result(torch.tensor([step + 1]))
        torch.testing.assert_close(left[0], best_without(matrix[0], weights[0], gone)[1], rtol=1e-6, atol=1e-7)


@PATHS
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (1, 4)])
def test_groups_are_left_alone_when_they_have_no_more_room(compiled, keep, of):
    """Each step is the cheapest of the weights whose group has lost fewer than M - N (oViT, F.3)."""
    weights, matrix = blocks(3, 16)
    room = torch.full((3, 16 // of), of - keep)
    made = to(elimination(weights, matrix, room=room, compiled=compiled), 16)
    assert made.exhausted.all()
    total = 16 // of * (of - keep)
    assert made.count.tolist() == [total] * 3
    for block in range(3):
        gone = []
        for step in range(total):
            lost = [sum(q // of == group for q in gone) for group in range(16 // of)]
            open_ = [q for q in range(16) if q not in gone and lost[q // of] < of - keep]
            costs = {q: best_without(matrix[block], weights[block], [*gone, q])[0] for q in open_}
            gone.append(int(made._order[block, step]))
            assert costs[gone[-1]] <= min(costs.values()) + 1e-9
    _, kept = made.result(made.count)
    assert (kept.view(3, -1, of).sum(dim=2) == keep).all()


@PATHS
@pytest.mark.parametrize("unit", [1, 2])
def test_removed_units_never_move_and_never_count(compiled, unit):
    weights, matrix = blocks(4, 8, gradients=30)
    alive = torch.tensor([[1, 0] * (4 // unit), [1] * (8 // unit), [0] * (8 // unit), [0, 1] * (4 // unit)]).bool()
    dead = ~alive.repeat_interleave(unit, dim=1)
    weights = weights.masked_fill(dead, 0.0)
    matrix = matrix.masked_fill(dead[:, :, None] | dead[:, None, :], 0.0)
    matrix += torch.diag_embed(torch.where(dead, 1e-3, 0.0).double())
    made = to(elimination(weights, matrix, unit, alive, compiled=compiled), 8 // unit)
    assert made.count.tolist() == alive.sum(dim=1).tolist()
    for steps in range(8 // unit + 1):
        counts = made.count.clamp_max(steps)
        left, keep = made.result(counts)
        assert (left[dead] == 0).all()
        assert (keep.sum(dim=1) == unit * (alive.sum(dim=1) - counts)).all()
    assert all(alive[block, made._order[block, : made.count[block]].long()].all() for block in range(4))


def test_a_block_of_zeros_has_nothing_to_remove():
    weights, matrix = torch.zeros(1, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[None]
    made = to(elimination(weights, matrix, alive=torch.zeros(1, 4, dtype=torch.bool)), 4)
    assert made.exhausted.all()
    assert made.count.tolist() == [0]
    assert math.isinf(float(made.gains.min()))
