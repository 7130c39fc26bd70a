"""The frontier against brute force on instances that can be enumerated: answers, certificate, every budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.analytic import MacsModel
from latency.errors import OutsideGridError, TargetError
from latency.estimate import estimate
from latency.grid import Grid, grid_below
from search.constraints import Constraints
from search.errors import BudgetError
from search.frontier import Frontier, frontier_choice
from search.greedy import greedy_choice
from search.planes import TOLERANCE
from search.saliency import Saliency
from tests.cases import CLASS_TOKEN
from tests.reference import (
    GRID,
    mesh,
    monotone_table,
    multilinear,
    random_saliency,
    random_table,
    sizes_in_steps,
    slow_kept,
    table_of,
)
from vit.architecture import BLOCK_UNITS, SIZE_FIELD, BlockShape, Unit
from vit.groups import EMBED, Group, resize, size
from vit.presets import preset

ARCH = CLASS_TOKEN.replace(embed_dim=12, blocks=(BlockShape(2, 4, 5, 16), BlockShape(3, 6, 2, 18)))
STEPS = {Unit.EMBED: 4, Unit.HEAD: 1, Unit.QK: 2, Unit.V: 2, Unit.MLP: 8}
IN_STEPS = Constraints(multiples=STEPS)
TABLES = {
    "random": random_table,
    "monotone": monotone_table,
    "multilinear": lambda seed, arch: table_of(multilinear(seed)(mesh(GRID)) / 1e3, arch=arch),
    "macs": lambda seed, arch: MacsModel(arch),
}


class Enumerated:
    """Everything that a model can be cut to: `ms` and `kept` (share of the saliency), one entry an architecture."""

    def __init__(self, saliency, latency, steps=STEPS):
        self.arch, self.saliency, self.latency = saliency.arch, saliency, latency
        self.ms, self.kept, self.sizes = [], [], []
        self.planes = {}
        for embed in self._sizes(EMBED, steps):
            outside, kept_embed = float(latency.outside_times(embed)), slow_kept(saliency, {EMBED: embed})
            blocks = [self._block(embed, index, steps) for index in range(self.arch.depth)]
            self.planes[embed] = (outside, kept_embed, blocks)
            for choices in itertools.product(*blocks):
                self.ms.append(outside + sum(ms for ms, _, _ in choices))
                self.kept.append((kept_embed + sum(kept for _, kept, _ in choices)) / saliency.total)
                self.sizes.append({EMBED: embed} | {g: n for _, _, sizes in choices for g, n in sizes.items()})
        self.ms, self.kept = np.array(self.ms), np.array(self.kept)

    def _sizes(self, group, steps):
        bounds = self.latency.bounds[SIZE_FIELD[group.unit]]
        return sizes_in_steps(size(self.arch, group), steps[group.unit], *bounds)

    def _block(self, embed, index, steps):
        units = [Group(unit, index) for unit in BLOCK_UNITS]
        found = []
        for sizes in itertools.product(*(self._sizes(group, steps) for group in units)):
            named = dict(zip(units, sizes, strict=True))
            found.append((float(self.latency.block_times([embed, *sizes])), slow_kept(self.saliency, named), named))
        return found

    def optimum(self, budget_ms):
        return self.kept[self.ms <= budget_ms].max()

    def budgets(self, seed, count=6):
        """Between the ends, both of them included."""
        low, high = self.ms.min(), estimate(self.latency, self.arch).latency_ms
        return [low, high, *np.random.default_rng(seed).uniform(low, high, count)]


def slow_hull(points):
    """Upper hull of (ms, kept): from the fastest, always to the point of the steepest gain (the farthest of equals)."""
    ms, kept = min((ms, -kept) for ms, kept, _ in points)
    at = (ms, -kept)
    hull = [at]
    while better := [(k - at[1], m, k) for m, k, _ in points if k > at[1] and m > at[0]]:
        _, ms, kept = max(better, key=lambda b: (b[0] / (b[1] - at[0]), b[1]))
        at = (ms, kept)
        hull.append(at)
    return hull


def edges(points):
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(slow_hull(points))]


def instance(kind, seed):
    saliency, latency = random_saliency(ARCH, seed), TABLES[kind](seed, arch=ARCH)
    return saliency, latency, Frontier(saliency, latency, IN_STEPS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", TABLES)
def test_an_answer_meets_the_budget_and_the_optimum_lies_between_it_and_its_bound(kind, seed):
    saliency, latency, frontier = instance(kind, seed)
    space = Enumerated(saliency, latency)
    for budget in [frontier.smallest_ms, frontier.full_ms, *space.budgets(seed)[2:]]:
        choice, optimum = frontier.best(budget), space.optimum(budget * (1 + 1e-12))
        assert choice.latency_ms <= budget
        assert choice.latency_ms == estimate(latency, choice.arch).latency_ms
        assert choice.kept <= optimum + 1e-12
        assert optimum <= choice.bound + 1e-12
        assert choice.gap == choice.bound - choice.kept
        assert choice.gap <= TOLERANCE, "all ways in between were looked at"
        np.testing.assert_allclose(choice.kept, slow_kept(saliency, choice.sizes()) / saliency.total)
        assert choice.sizes() in space.sizes
        assert resize(ARCH, choice.sizes()) == choice.arch


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", TABLES)
def test_where_the_relaxation_is_whole_the_answer_is_the_optimum(kind, seed):
    """With EMBED fixed, at every budget that ends with a whole edge of the hulls in order of slope."""
    saliency, latency, _ = instance(kind, seed)
    steps = STEPS | {Unit.EMBED: ARCH.embed_dim}
    frontier, space = Frontier(saliency, latency, Constraints(multiples=steps)), Enumerated(saliency, latency, steps)
    ((outside, _, blocks),) = space.planes.values()
    everything = sorted((edge for block in blocks for edge in edges(block)), key=lambda edge: -edge[1] / edge[0])
    start = outside + sum(slow_hull(block)[0][0] for block in blocks)
    for budget in np.cumsum([start, *(ms for ms, _ in everything)]):
        budget = min(max(budget * (1 + 1e-13), frontier.smallest_ms), frontier.full_ms)
        choice = frontier.best(budget)
        np.testing.assert_allclose(choice.kept, space.optimum(budget), rtol=1e-12)
        assert choice.gap <= TOLERANCE


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", TABLES)
def test_a_budget_of_the_whole_model_keeps_all_its_saliency(kind, seed):
    _, _, frontier = instance(kind, seed)
    choice = frontier.best(frontier.full_ms)
    assert choice.kept == pytest.approx(1.0, abs=1e-12)
    assert choice.bound == pytest.approx(1.0, abs=1e-12)
    if kind != "random":  # in a table without order, a smaller model that keeps all can be slower than the whole
        assert choice.arch == ARCH


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", TABLES)
def test_a_budget_of_the_smallest_latency_is_met(kind, seed):
    saliency, latency, frontier = instance(kind, seed)
    assert frontier.smallest_ms == pytest.approx(Enumerated(saliency, latency).ms.min())
    assert frontier.best(frontier.smallest_ms).latency_ms == frontier.smallest_ms


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(TABLES)), st.integers(0, 10_000))
def test_more_budget_never_keeps_less(kind, seed):
    _, _, frontier = instance(kind, seed)
    budgets = np.linspace(frontier.smallest_ms, frontier.full_ms, 60)
    kept = [frontier.best(min(max(b, frontier.smallest_ms), frontier.full_ms)).kept for b in budgets]
    assert (np.diff(kept) >= 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", TABLES)
def test_the_latency_of_an_answer_is_a_budget_that_gives_as_much(kind, seed):
    _, _, frontier = instance(kind, seed)
    for share in np.linspace(0, 1, 20):
        budget = frontier.smallest_ms + share * (frontier.full_ms - frontier.smallest_ms)
        choice = frontier.best(min(budget, frontier.full_ms))
        again = frontier.best(choice.latency_ms)
        assert again.kept == pytest.approx(choice.kept, abs=1e-12)
        assert again.latency_ms <= choice.latency_ms


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", TABLES)
def test_a_budget_one_rounding_below_an_answer_is_met_too(kind, seed):
    _, _, frontier = instance(kind, seed)
    for share in np.linspace(0.05, 1, 40):
        budget = frontier.smallest_ms + share * (frontier.full_ms - frontier.smallest_ms)
        below = float(np.nextafter(frontier.best(min(budget, frontier.full_ms)).latency_ms, 0))
        if below >= frontier.smallest_ms:
            assert frontier.best(below).latency_ms <= below


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", TABLES)
def test_no_block_has_a_next_step_on_its_hull_that_would_still_fit(kind, seed):
    saliency, latency, frontier = instance(kind, seed)
    space = Enumerated(saliency, latency)
    for budget in space.budgets(seed)[2:]:
        choice = frontier.best(budget)
        _, _, blocks = space.planes[choice.arch.embed_dim]
        for index, block in enumerate(blocks):
            own = {group: count for group, count in choice.sizes().items() if group.block == index}
            (at,) = ((ms, kept) for ms, kept, sizes in block if sizes == own)
            longer = [b[0] - a[0] for a, b in itertools.pairwise(slow_hull(block)) if a == pytest.approx(at)]
            assert all(choice.latency_ms + ms > budget for ms in longer)


def test_one_budget_of_a_frontier_that_is_not_kept_is_the_same():
    saliency, latency, frontier = instance("monotone", 0)
    budget = (frontier.smallest_ms + frontier.full_ms) / 2
    assert frontier_choice(saliency, latency, budget, IN_STEPS) == frontier.best(budget)


@pytest.mark.parametrize("kind", TABLES)
def test_a_budget_beyond_the_ends_is_refused_with_the_ends(kind):
    _, latency, frontier = instance(kind, 0)
    low, high = frontier.smallest_ms, frontier.full_ms
    unit = "M MACs" if kind == "macs" else "ms"
    with pytest.raises(BudgetError) as below:
        frontier.best(low * 0.99)
    assert f"no architecture runs in {low * 0.99:.4g} {unit} on {latency.target.slug}" in str(below.value)
    with pytest.raises(BudgetError) as above:
        frontier.best(high * 1.01)
    assert f"the whole model runs in {high:.4g} {unit} on {latency.target.slug}" in str(above.value)
    for caught in (below, above):
        assert f"ask for {low:.4g} to {high:.4g}" in str(caught.value)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_positive_number_is_refused(budget):
    _, _, frontier = instance("monotone", 0)
    with pytest.raises(BudgetError, match="a budget is a positive number of ms"):
        frontier.best(budget)


def test_a_table_for_another_number_of_tokens_is_refused():
    with pytest.raises(TargetError, match="tokens"):
        Frontier(random_saliency(ARCH, 0), random_table(0, arch=ARCH.replace(image_size=(24, 24))))


def test_a_table_that_covers_no_size_of_the_model_is_refused_with_what_it_covers():
    grid = Grid((16, 32), (1, 3), (2, 6), (2, 5), (4, 18))
    with pytest.raises(BudgetError, match=r"covers no size that this model could be cut to \(embed_dim 16 to 32"):
        Frontier(random_saliency(ARCH, 0), random_table(0, grid, arch=ARCH), IN_STEPS)


def test_a_model_larger_than_the_table_has_no_known_latency_to_start_from():
    grid = Grid((4, 8), (1, 3), (2, 6), (2, 5), (4, 18))
    with pytest.raises(OutsideGridError, match="embed_dim=12 is outside"):
        Frontier(random_saliency(ARCH, 0), random_table(0, grid, arch=ARCH), IN_STEPS)


@pytest.mark.parametrize("silent", [Unit.MLP, Unit.HEAD, None], ids=["mlp", "head", "everything"])
def test_units_without_any_saliency_are_cut_first(silent):
    saliency = random_saliency(ARCH, 0)
    values = {g: v * (0.0 if silent in (None, g.unit) else 1.0) for g, v in saliency.values.items()}
    frontier = Frontier(Saliency(ARCH, values, "x", "", "", 0), monotone_table(0, arch=ARCH), IN_STEPS)
    choice = frontier.best(frontier.full_ms)
    assert all(b.size(silent or Unit.MLP) == (8 if silent in (None, Unit.MLP) else 1) for b in choice.arch.blocks)
    assert choice.kept == (0.0 if silent is None else pytest.approx(1.0))


def greedy_against_frontier(kind, seeds):
    """(frontier's choice, greedy's choice) at several budgets of several instances."""
    for seed in seeds:
        saliency, latency, frontier = instance(kind, seed)
        for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
            budget = frontier.smallest_ms + share * (frontier.full_ms - frontier.smallest_ms)
            try:
                greedy = greedy_choice(saliency, latency, budget, IN_STEPS)
            except BudgetError:
                continue
            yield frontier.best(budget), greedy


@pytest.mark.parametrize("kind", TABLES)
def test_greedy_never_keeps_more_than_the_bound(kind):
    compared = list(greedy_against_frontier(kind, range(10)))
    assert len(compared) > 30
    assert all(greedy.kept <= ours.bound + 1e-12 for ours, greedy in compared)


@pytest.mark.parametrize("kind", ["monotone", "random"])
def test_on_a_tiny_model_greedy_keeps_more_at_most_by_the_tolerance(kind):
    compared = list(greedy_against_frontier(kind, range(60)))
    assert all(greedy.kept <= ours.kept + TOLERANCE for ours, greedy in compared)
    assert np.mean([ours.kept - greedy.kept for ours, greedy in compared]) > 0.001


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_on_a_model_of_twelve_blocks_the_frontier_keeps_no_less_than_greedy_and_is_near_its_bound(seed, share):
    arch = preset("deit-t")
    steps = {Unit.EMBED: 32, Unit.MLP: 64}
    grid = grid_below(arch)
    function = multilinear(seed)(mesh(grid) / [100, 1, 10, 10, 100])
    table = table_of(function, grid, arch=arch)
    saliency = random_saliency(arch, seed)
    constraints = Constraints(multiples=steps)
    frontier = Frontier(saliency, table, constraints)
    budget = share * frontier.full_ms
    ours, greedy = frontier.best(budget), greedy_choice(saliency, table, budget, constraints)
    assert ours.kept >= greedy.kept - 1e-12
    assert ours.gap < 0.01


def test_the_whole_models_latency_is_a_budget_however_it_was_rounded():
    _, _, frontier = instance("monotone", 0)
    for budget in (frontier.full_ms, np.nextafter(frontier.full_ms, np.inf)):
        assert frontier.best(budget).kept == pytest.approx(1)
