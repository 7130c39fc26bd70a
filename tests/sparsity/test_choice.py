"""How many units each block loses, against sorting the errors of all."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity import choice
from sparsity.choice import cheapest
from sparsity.errors import SparsityError
from sparsity.solvers import MERGES, Greedy, Ranked
from tests.cases import generator


class Scripted:
    """Gains that are known as far as they were asked for, in the place of an elimination; some blocks have fewer."""

    def __init__(self, gains, lengths):
        self.all, self.lengths = gains, lengths
        self.gains = torch.full_like(gains, torch.inf)
        self.count = torch.zeros_like(lengths)

    def advance(self, until):
        self.count = torch.maximum(self.count, torch.minimum(until, self.lengths))
        known = torch.arange(self.all.shape[1]) < self.count[:, None]
        self.gains = torch.where(known, self.all, torch.inf)

    @property
    def exhausted(self):
        return self.count == self.lengths


def scripted(seed, merge, ties):
    """Two layers with blocks of 7 and of 30 units."""
    made = []
    for index, (count, size) in enumerate(((5, 7), (3, 30))):
        draw = generator(2 * seed + index)
        gains = torch.rand(count, size, generator=draw, dtype=torch.float64) * (torch.arange(size) + 1)
        if ties:
            gains = gains.ceil()
        lengths = torch.randint(0, size + 1, (count,), generator=draw)
        made.append(Greedy(Scripted(gains, lengths), MERGES[merge]))
    return made


def everything(solvers):
    """The errors of all units that may go, of all blocks, sorted."""
    errors = []
    for solver in solvers:
        solver.advance(torch.full((len(solver.errors),), solver.errors.shape[1]))
        errors += solver.errors[solver.errors.isfinite()].tolist()
    return sorted(errors)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), merge=st.sampled_from(list(MERGES)), ties=st.booleans(), share=st.floats(0, 1))
def test_just_so_many_go_the_cheapest_of_all_however_deep_blocks_were_followed(seed, merge, ties, share):
    everyone = everything(scripted(seed, merge, ties))
    units = round(share * len(everyone))
    solvers = scripted(seed, merge, ties)
    counts = cheapest(solvers, units)
    assert sum(int(count.sum()) for count in counts) == units
    taken = []
    for solver, count in zip(solvers, counts, strict=True):
        for errors, number in zip(solver.errors, count.tolist(), strict=True):
            taken += errors[:number].tolist()
    assert sorted(taken) == everyone[:units]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), merge=st.sampled_from(list(MERGES)), units=st.integers(0, 20))
def test_blocks_followed_as_deep_as_needed_lose_what_blocks_followed_to_their_end_lose(seed, merge, units):
    solvers = scripted(seed, merge, ties=False)
    units = min(units, len(everything(scripted(seed, merge, ties=False))))
    lazily = cheapest(solvers, units)
    deep = scripted(seed, merge, ties=False)
    everything(deep)
    assert [count.tolist() for count in lazily] == [count.tolist() for count in cheapest(deep, units)]


def test_most_blocks_are_not_followed_to_their_end():
    gains = torch.rand(50, 48, generator=generator(3), dtype=torch.float64).cumsum(dim=1)
    blocks = Scripted(gains, torch.full((50,), 48))
    cheapest([Greedy(blocks, MERGES["marginal"])], 50 * 48 // 2)
    assert int(blocks.count.sum()) < 0.75 * 50 * 48


def test_the_first_depth_and_the_steps_are_a_matter_of_speed_alone(monkeypatch):
    expected = cheapest(scripted(1, "marginal", ties=True), 30)
    for first, steps in ((0.01, 100), (1.0, 1), (3.0, 7)):
        monkeypatch.setattr(choice, "FIRST", min(first, 1.0))
        monkeypatch.setattr(choice, "STEPS", steps)
        found = cheapest(scripted(1, "marginal", ties=True), 30)
        assert [count.tolist() for count in found] == [count.tolist() for count in expected]


@pytest.mark.parametrize("more", [1, 1000])
def test_more_than_may_go_is_an_error(more):
    known = len(everything(scripted(4, "marginal", ties=False)))
    with pytest.raises(SparsityError, match=r"may go"):
        cheapest(scripted(4, "marginal", ties=False), known + more)
    with pytest.raises(SparsityError, match="only 0 may go"):
        cheapest([], 1)


def test_none_may_be_asked_for():
    assert [count.tolist() for count in cheapest(scripted(0, "marginal", ties=False), 0)] == [[0] * 5, [0] * 3]


@pytest.mark.parametrize("merge", list(MERGES))
def test_errors_never_fall(merge):
    gains = torch.rand(20, 9, generator=generator(0))
    assert (MERGES[merge](gains).diff(dim=1) >= 0).all()


def lost(gains, counts):
    return sum(float(row[:count].sum()) for row, count in zip(gains, counts, strict=True))


def both(gains, units):
    found = {}
    for merge in MERGES:
        blocks = Scripted(gains, torch.full((len(gains),), gains.shape[1]))
        found[merge] = lost(gains, cheapest([Greedy(blocks, MERGES[merge])], units)[0].tolist())
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), units=st.integers(1, 12))
def test_where_each_step_costs_more_than_the_last_marginal_errors_give_the_least_sum_there_is(seed, units):
    """By all ways to share the units out; cumulative errors never lose less than that."""
    gains = torch.rand(3, 4, generator=generator(seed), dtype=torch.float64).sort(dim=1).values
    best = min(lost(gains, counts) for counts in itertools.product(range(5), repeat=3) if sum(counts) == units)
    found = both(gains, units)
    assert found["marginal"] == pytest.approx(best)
    assert found["cumulative"] >= best - 1e-12


def test_where_costs_also_fall_marginal_errors_lose_less_on_the_average():
    marginal = cumulative = 0.0
    for seed in range(40):
        steps = torch.rand(8, 16, generator=generator(seed), dtype=torch.float64) * torch.linspace(0.2, 2, 16)
        found = both(steps, 64)
        marginal, cumulative = marginal + found["marginal"], cumulative + found["cumulative"]
    assert marginal < cumulative


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), number=st.integers(0, 8))
def test_ranked_units_go_by_score_as_long_as_their_group_has_room(seed, number):
    draw = generator(seed)
    weights = torch.randn(2, 12, generator=draw)
    scores = torch.rand(2, 6, generator=draw).mul(4).ceil()  # units of two, with ties
    alive = torch.rand(2, 6, generator=draw) < 0.8
    room = torch.randint(0, 4, (2, 2), generator=draw)
    solver = Ranked(weights, scores, alive, room)
    for block in range(2):
        order = sorted(range(6), key=lambda unit: (float(scores[block, unit]), unit))
        left, goes = room[block].tolist(), []
        for unit in order:
            if alive[block, unit] and left[unit // 3] > 0:
                left[unit // 3] -= 1
                goes.append(unit)
        assert solver.errors[block].isfinite().sum() == len(goes)
        count = min(number, len(goes))
        made, keep = solver.result(torch.tensor([count, count]))
        gone = {unit for unit in range(6) if not alive[block, unit]} | set(goes[:count])
        assert (~keep[block]).view(6, 2).all(dim=1).nonzero().flatten().tolist() == sorted(gone)
        assert torch.equal(made[block], weights[block] * keep[block])
