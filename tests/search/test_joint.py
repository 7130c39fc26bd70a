"""Several targets at once against brute force: within every budget, below the bound, and best of all there is."""

import itertools

import numpy as np
import pytest

from latency.analytic import MacsModel
from latency.errors import TargetError
from latency.estimate import estimate
from search.constraints import Constraints
from search.errors import BudgetError, ConstraintError
from search.frontier import Frontier
from search.joint import joint_choice
from tests.cases import CLASS_TOKEN
from tests.reference import (
    every_architecture,
    monotone_table,
    random_saliency,
    random_table,
    slow_kept,
)
from vit.architecture import BlockShape, Unit

ARCH = CLASS_TOKEN.replace(embed_dim=12, blocks=(BlockShape(2, 4, 2, 8), BlockShape(3, 2, 5, 18)))
STEPS = {Unit.EMBED: 4, Unit.HEAD: 1, Unit.QK: 2, Unit.V: 2, Unit.MLP: 8}
IN_STEPS = Constraints(multiples=STEPS)


def targets(kind, seed, count):
    if kind == "macs and tables":
        return [MacsModel(ARCH), *(monotone_table(seed + i, arch=ARCH) for i in range(1, count))]
    make = {"monotone": monotone_table, "random": random_table}[kind]
    return [make(10 * seed + i, arch=ARCH) for i in range(count)]


def everything(saliency, latencies, allowed=lambda arch: True):
    """ms on every target (A, T), and share kept (A,), of all that the model can be cut to."""
    ms, kept = [], []
    for sizes, arch in every_architecture(ARCH, latencies[0], STEPS):
        if allowed(arch):
            ms.append([estimate(latency, arch).latency_ms for latency in latencies])
            kept.append(slow_kept(saliency, sizes) / saliency.total)
    return np.array(ms), np.array(kept)


KINDS = ["monotone", "random", "macs and tables"]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_meets_every_budget_and_the_optimum_lies_between_it_and_its_bound(kind, seed, count):
    saliency, latencies = random_saliency(ARCH, seed), targets(kind, seed, count)
    ms, kept = everything(saliency, latencies)
    draw, full = np.random.default_rng(seed), [estimate(latency, ARCH).latency_ms for latency in latencies]
    for _ in range(6):
        budgets = np.minimum(ms[draw.integers(len(ms))] * draw.uniform(1.0, 1.3, count), full)
        within, question = (ms <= budgets).all(axis=1), list(zip(latencies, budgets, strict=True))
        if not within.any():  # the whole model may be faster than a smaller one
            with pytest.raises(BudgetError):
                joint_choice(saliency, question, IN_STEPS)
            continue
        optimum, choice = kept[within].max(), joint_choice(saliency, question, IN_STEPS)
        assert choice.budget_ms == tuple(budgets)
        assert choice.latency_ms == tuple(estimate(latency, choice.arch).latency_ms for latency in latencies)
        assert (np.array(choice.latency_ms) <= budgets).all()
        assert choice.kept <= optimum + 1e-12
        assert optimum <= choice.bound + 1e-12
        assert choice.kept == pytest.approx(optimum)
        assert choice.gap <= 1e-9, "a model so small is searched through"


@pytest.mark.parametrize("kind", ["monotone", "random"])
def test_the_latencies_of_an_architecture_are_budgets_that_keep_as_much(kind):
    saliency, latencies = random_saliency(ARCH, 5), targets(kind, 5, 2)
    ms, kept = everything(saliency, latencies)
    smaller = np.flatnonzero((ms <= [estimate(latency, ARCH).latency_ms for latency in latencies]).any(axis=1))
    for index in np.random.default_rng(0).choice(smaller, 10):
        choice = joint_choice(saliency, list(zip(latencies, ms[index].tolist(), strict=True)), IN_STEPS)
        assert choice.kept >= kept[index] - 1e-12


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_one_target_is_the_ordinary_frontier(share):
    saliency, latency = random_saliency(ARCH, 1), monotone_table(1, arch=ARCH)
    frontier = Frontier(saliency, latency, IN_STEPS)
    budget = frontier.smallest_ms + share * (frontier.full_ms - frontier.smallest_ms)
    one, joint = frontier.best(budget), joint_choice(saliency, [(latency, budget)], IN_STEPS)
    assert (joint.arch, joint.kept, joint.bound) == (one.arch, one.kept, one.bound)
    assert (joint.latency_ms, joint.budget_ms) == ((one.latency_ms,), (budget,))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_budget_that_binds_nothing_changes_nothing(share):
    saliency, (first, second) = random_saliency(ARCH, 2), targets("monotone", 2, 2)
    frontier = Frontier(saliency, first, IN_STEPS)
    budget = frontier.smallest_ms + share * (frontier.full_ms - frontier.smallest_ms)
    loose = 2 * estimate(second, ARCH).latency_ms
    joint = joint_choice(saliency, [(first, budget), (second, loose)], IN_STEPS)
    alone = frontier.best(budget)
    assert alone.kept - 1e-12 <= joint.kept <= alone.bound + 1e-12


@pytest.mark.parametrize(
    ("constraints", "allowed"),
    [
        ({"minimum": {Unit.MLP: 10}}, lambda arch: False),
        ({"minimum": {Unit.MLP: 8}}, lambda arch: True),
        ({"fix_embed_dim": 8}, lambda arch: arch.embed_dim == 8),
        ({"protect": (1,)}, lambda arch: arch.blocks[1] == ARCH.blocks[1]),
    ],
    ids=["too large a minimum", "minimum", "fixed embed_dim", "protected block"],
)
def test_it_keeps_to_the_constraints(constraints, allowed):
    saliency, latencies = random_saliency(ARCH, 3), targets("monotone", 3, 2)
    ms, kept = everything(saliency, latencies, allowed)
    constraints = Constraints(multiples=STEPS, **constraints)
    if not len(ms):
        with pytest.raises(ConstraintError, match="minimum mlp_dim 10 is more than the model has"):
            joint_choice(saliency, [(latency, 1.0) for latency in latencies], constraints)
        return
    budgets = np.quantile(ms, 0.6, axis=0)
    choice = joint_choice(saliency, list(zip(latencies, budgets, strict=True)), constraints)
    assert allowed(choice.arch)
    assert choice.kept == pytest.approx(kept[(ms <= budgets).all(axis=1)].max())


def test_equal_blocks_are_equal():
    arch = ARCH.replace(blocks=(BlockShape(3, 6, 5, 18),) * 3)
    saliency = random_saliency(arch, 0)
    latencies = [monotone_table(seed, arch=arch) for seed in range(2)]
    budgets = [(latency, 0.6 * estimate(latency, arch).latency_ms) for latency in latencies]
    choice = joint_choice(saliency, budgets, Constraints(multiples=STEPS, equal_blocks=True))
    assert len(set(choice.arch.blocks)) == 1
    assert all(ms <= budget for ms, (_, budget) in zip(choice.latency_ms, budgets, strict=True))
    assert choice.gap == 0


def test_a_budget_that_nothing_meets_is_refused_with_its_target():
    saliency, (first, second) = random_saliency(ARCH, 0), targets("monotone", 0, 2)
    with pytest.raises(BudgetError, match=rf"no architecture runs in 0.0001 ms on {second.target.slug}"):
        joint_choice(saliency, [(first, estimate(first, ARCH).latency_ms), (second, 1e-4)], IN_STEPS)


def test_budgets_that_exclude_each_other_are_refused_together():
    saliency, latencies = random_saliency(ARCH, 0), targets("random", 0, 2)
    ms, _ = everything(saliency, latencies)
    low = ms.min(axis=0)
    assert not (ms <= low * 1.01).all(axis=1).any()
    with pytest.raises(BudgetError, match="meets all budgets at once; each alone can be met"):
        joint_choice(saliency, list(zip(latencies, low * 1.01, strict=True)), IN_STEPS)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_positive_number_is_refused(budget):
    saliency, (first, second) = random_saliency(ARCH, 0), targets("monotone", 0, 2)
    with pytest.raises(BudgetError, match="a budget is a positive number of ms"):
        joint_choice(saliency, [(first, 1.0), (second, budget)], IN_STEPS)


def test_budgets_above_the_whole_model_need_no_search():
    saliency, latencies = random_saliency(ARCH, 0), targets("monotone", 0, 2)
    with pytest.raises(BudgetError, match="so it needs no search"):
        joint_choice(saliency, [(latency, 1e6) for latency in latencies], IN_STEPS)
    with pytest.raises(BudgetError, match="at least one target"):
        joint_choice(saliency, [])


def test_tables_of_another_number_of_tokens_are_refused():
    other = monotone_table(0, arch=ARCH.replace(image_size=(24, 24)))
    with pytest.raises(TargetError, match="tokens"):
        joint_choice(random_saliency(ARCH, 0), [(MacsModel(ARCH), 1.0), (other, 1.0)], IN_STEPS)


def test_all_orders_of_targets_keep_the_same():
    saliency, latencies = random_saliency(ARCH, 4), targets("monotone", 4, 3)
    budgets = [(latency, 0.5 * estimate(latency, ARCH).latency_ms) for latency in latencies]
    kept = [joint_choice(saliency, order, IN_STEPS).kept for order in itertools.permutations(budgets)]
    assert kept == pytest.approx([kept[0]] * len(kept))
