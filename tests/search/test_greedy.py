"""Greedy removal meets the budget in whole steps, in the order that it says."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from latency.analytic import MacsModel
from latency.errors import TargetError
from latency.estimate import estimate, saving_ms
from latency.grid import AXES, Grid
from search.constraints import DEFAULT_MULTIPLES, Constraints
from search.errors import BudgetError
from search.greedy import greedy_choice
from search.saliency import Saliency
from tests.cases import CLASS_TOKEN, UNEQUAL
from tests.reference import GRID, monotone_table, random_saliency, random_table, sizes_in_steps, slow_kept, table_of
from vit.architecture import SIZE_FIELD, BlockShape, Unit
from vit.groups import EMBED, Group, groups, resize, size

STEPS = {Unit.EMBED: 4, Unit.HEAD: 1, Unit.QK: 2, Unit.V: 2, Unit.MLP: 8}
WIDE = CLASS_TOKEN.replace(embed_dim=44, blocks=(BlockShape(3, 20, 16, 50), BlockShape(2, 12, 24, 64)))


def smallest(arch, latency, steps):
    def least(group):
        return sizes_in_steps(size(arch, group), steps[group.unit], *latency.bounds[SIZE_FIELD[group.unit]])[0]

    return resize(arch, {group: least(group) for group in groups(arch)})


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [STEPS, DEFAULT_MULTIPLES], ids=["small steps", "default steps"])
def test_it_meets_the_budget_in_sizes_that_are_multiples_or_whole_and_within_the_bounds(seed, share, steps):
    arch = UNEQUAL if steps is STEPS else WIDE
    latency = monotone_table(seed, arch=arch) if arch is UNEQUAL else MacsModel(arch)
    saliency = random_saliency(arch, seed)
    low = estimate(latency, smallest(arch, latency, steps)).latency_ms
    high = estimate(latency, arch).latency_ms
    budget = low + share * (high - low)
    choice = greedy_choice(saliency, latency, budget, Constraints(multiples=steps))
    assert choice.latency_ms <= budget
    assert choice.latency_ms == estimate(latency, choice.arch).latency_ms
    assert choice.bound is None
    assert choice.gap is None
    for group, count in choice.sizes().items():
        allowed = sizes_in_steps(size(arch, group), steps[group.unit], *latency.bounds[SIZE_FIELD[group.unit]])
        assert count in allowed, group
    np.testing.assert_allclose(choice.kept, slow_kept(saliency, choice.sizes()) / saliency.total)
    # It lands within one group of the budget: the one that went last would have been too much.
    larger = []
    for group, count in choice.sizes().items():
        bounds = latency.bounds[SIZE_FIELD[group.unit]]
        more = [one for one in sizes_in_steps(size(arch, group), steps[group.unit], *bounds) if one > count]
        if more:
            larger.append(estimate(latency, resize(choice.arch, {group: more[0]})).latency_ms)
    assert not larger or max(larger) > budget


def test_a_budget_that_the_whole_model_meets_keeps_it_whole():
    latency = monotone_table(0, arch=UNEQUAL)
    choice = greedy_choice(random_saliency(UNEQUAL, 0), latency, estimate(latency, UNEQUAL).latency_ms)
    assert (choice.arch, choice.kept) == (UNEQUAL, pytest.approx(1.0))


def test_the_group_that_loses_least_per_millisecond_saved_goes_first():
    """Equal savings everywhere by equal MACs: then the saliency alone decides."""
    arch = CLASS_TOKEN.replace(blocks=(BlockShape(3, 4, 4, 16),) * 2)
    latency = MacsModel(arch)
    values = {group: np.ones(size(arch, group)) for group in groups(arch)}
    values[Group(Unit.MLP, 1)] = np.where(np.arange(16) < 8, 1e-6, 1.0)
    saliency = Saliency(arch, values, "x", "", "", 0)
    one_step = estimate(latency, resize(arch, {Group(Unit.MLP, 1): 8})).latency_ms
    choice = greedy_choice(saliency, latency, one_step, Constraints(multiples=STEPS))
    assert choice.arch == resize(arch, {Group(Unit.MLP, 1): 8})


def slow_ranking(arch, saliency, latency, constraints, eta):
    """Every chunk's rank by its definition, and the order in which chunks go."""
    full_ms, chunks = estimate(latency, arch).latency_ms, []
    for group in groups(arch):
        ladder = constraints.sizes(arch, group, latency.bounds)
        units = ladder[-1] - ladder[-2]
        saved = saving_ms(latency, arch, group, units) / units / full_ms
        values = np.sort(saliency.values[group])[::-1] / saliency.total
        for left, before in itertools.pairwise(ladder):
            loss = values[left:before].mean()
            chunks.append(((loss / saved if eta is None else loss - eta * saved), group, left))
    return [(group, left) for _, group, left in sorted(chunks, key=lambda chunk: (chunk[0], -chunk[2]))]


@pytest.mark.parametrize("eta", [None, 0.0, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_chunks_go_in_the_order_of_saliency_less_eta_times_latency(seed, eta):
    """What is given back in the end is the only gap in that order."""
    arch, latency, constraints = WIDE, MacsModel(WIDE), Constraints(multiples=STEPS)
    saliency = random_saliency(arch, seed)
    choice = greedy_choice(saliency, latency, 0.5 * estimate(latency, arch).latency_ms, constraints, eta=eta)
    order = slow_ranking(arch, saliency, latency, constraints, eta)
    until = order.index(choice.removed[-1]) + 1
    given_back = [chunk for chunk in order[:until] if chunk not in choice.removed]
    assert list(choice.removed) == [chunk for chunk in order[:until] if chunk not in given_back]
    for group, left in choice.removed:
        assert choice.sizes()[group] <= left


@pytest.mark.parametrize("seed", range(3))
def test_the_eta_that_is_found_is_the_budgets_multiplier(seed):
    """Given by hand, just above and just below, it removes the same chunks, or stops one short."""
    latency, constraints = MacsModel(WIDE), Constraints(multiples=STEPS)
    saliency, budget = random_saliency(WIDE, seed), 0.6 * estimate(latency, WIDE).latency_ms
    found = greedy_choice(saliency, latency, budget, constraints)
    full_ms = estimate(latency, WIDE).latency_ms

    def negative(eta):
        """Sizes when everything with a negative rank is gone."""
        sizes = {group: size(WIDE, group) for group in groups(WIDE)}
        for group in groups(WIDE):
            ladder = constraints.sizes(WIDE, group, latency.bounds)
            units = ladder[-1] - ladder[-2]
            saved = saving_ms(latency, WIDE, group, units) / units / full_ms
            values = np.sort(saliency.values[group])[::-1] / saliency.total
            for left, before in itertools.pairwise(ladder):
                if values[left:before].mean() < eta * saved:
                    sizes[group] = min(sizes[group], left)
        return estimate(latency, resize(WIDE, sizes)).latency_ms

    assert negative(found.eta * (1 + 1e-9)) <= budget < negative(found.eta * (1 - 1e-9))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_eta_means_the_same_for_any_scale_of_loss_and_time(scale):
    saliency = random_saliency(UNEQUAL, 0)
    scaled = Saliency(UNEQUAL, {g: scale * v for g, v in saliency.values.items()}, "x", "", "", 0)
    latency = monotone_table(0, arch=UNEQUAL)
    slower = replace(latency, block_ms=latency.block_ms * 7, outside_ms=latency.outside_ms * 7)
    budget, constraints = 0.7 * estimate(latency, UNEQUAL).latency_ms, Constraints(multiples=STEPS)
    first = greedy_choice(saliency, latency, budget, constraints, eta=0.4)
    second = greedy_choice(scaled, slower, 7 * budget, constraints, eta=0.4)
    assert first.arch == second.arch


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_no_chunk_that_went_fits_again(seed, share):
    latency, constraints = MacsModel(WIDE), Constraints(multiples=STEPS)
    budget = share * estimate(latency, WIDE).latency_ms
    choice = greedy_choice(random_saliency(WIDE, seed), latency, budget, constraints)
    sizes = choice.sizes()
    for group in {group for group, _ in choice.removed}:
        ladder = constraints.sizes(WIDE, group, latency.bounds)
        larger = ladder[ladder.index(sizes[group]) + 1]
        assert estimate(latency, resize(WIDE, sizes | {group: larger})).latency_ms > budget


@pytest.mark.parametrize("eta", [-1.0, float("nan"), float("inf")])
def test_an_eta_that_is_none_is_refused(eta):
    with pytest.raises(BudgetError, match="eta must be a number from 0"):
        greedy_choice(random_saliency(WIDE, 0), MacsModel(WIDE), 1.0, eta=eta)


def test_a_budget_below_the_smallest_is_refused_with_what_greedy_reaches():
    latency = monotone_table(0, arch=UNEQUAL)
    low = estimate(latency, smallest(UNEQUAL, latency, STEPS)).latency_ms
    with pytest.raises(BudgetError, match=rf"the smallest that the table covers takes {low:.4g} ms"):
        greedy_choice(random_saliency(UNEQUAL, 0), latency, low / 2, Constraints(multiples=STEPS))


def test_a_table_for_another_number_of_tokens_is_refused():
    with pytest.raises(TargetError, match="tokens"):
        greedy_choice(random_saliency(UNEQUAL, 0), random_table(0, arch=UNEQUAL.replace(reg_tokens=1)), 1.0)


def test_a_group_that_cannot_be_cut_in_whole_steps_stays_whole():
    grid = Grid(*(axis if name != "embed_dim" else (9, 12) for name, axis in zip(AXES, GRID.axes, strict=True)))
    latency = table_of(np.cumsum(np.ones(grid.shape), axis=-1), grid, arch=UNEQUAL)
    choice = greedy_choice(
        random_saliency(UNEQUAL, 0), latency, estimate(latency, UNEQUAL).latency_ms * 0.9, Constraints(multiples=STEPS)
    )
    assert choice.sizes()[EMBED] == 12
