"""Cutting to a budget: the last step meets it, what is left are slices of the original, and that one survives."""

import copy

import numpy as np
import pytest
import torch

from latency.analytic import MacsModel
from latency.estimate import estimate
from recovery.losses import cross_entropy
from search.constraints import Constraints
from search.criteria import compute_saliency
from search.errors import BudgetError
from search.prune import SELECTIONS, prune
from search.schedule import Schedule
from tests.cases import CLASS_TOKEN, assert_same_state, build, generator, images
from tests.reference import monotone_table
from vit.architecture import BlockShape, Unit
from vit.groups import EMBED, Group, Keep, groups
from vit.surgery import shrink

ARCH = CLASS_TOKEN.replace(embed_dim=12, blocks=(BlockShape(2, 4, 5, 16), BlockShape(3, 6, 2, 18)))
STEPS = {Unit.EMBED: 4, Unit.HEAD: 1, Unit.QK: 2, Unit.V: 2, Unit.MLP: 8}
TABLES = {"macs": MacsModel(ARCH), "table": monotone_table(0, arch=ARCH)}


def batches(round_index):
    """Other images each round."""
    labels = torch.randint(0, 5, (4,), generator=generator(round_index))
    return [(images(ARCH, 4, seed=10 * round_index + k), labels) for k in range(2)]


def budget_of(latency, share):
    smallest = ARCH.replace(embed_dim=4, blocks=(BlockShape(1, 2, 2, 8),) * 2)
    low, high = (estimate(latency, arch).latency_ms for arch in (smallest, ARCH))
    return low + share * (high - low)


def scored_by(criterion):
    return lambda model, round_index: compute_saliency(model, batches(round_index), criterion, cross_entropy)


def run(model, latency, budget, *, criterion="nvit", rounds=1, **how):
    how = {"schedule": Schedule(rounds), "constraints": Constraints(multiples=STEPS)} | how
    return list(prune(model, scored_by(criterion), latency, budget, **how))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_last_step_meets_the_budget_and_the_model_survives(selection, table, rounds, share):
    latency, model = TABLES[table], build(ARCH)
    before = copy.deepcopy(model.state_dict())
    budget = budget_of(latency, share)
    steps = run(model, latency, budget, rounds=rounds, select=SELECTIONS[selection])
    assert [step.round for step in steps] == list(range(rounds))
    assert steps[-1].choice.latency_ms <= budget
    for step in steps:
        assert step.model.arch == step.choice.arch
        assert step.choice.latency_ms == estimate(latency, step.model.arch).latency_ms
        assert step.model(images(step.model.arch)).isfinite().all()
    times = [step.choice.latency_ms for step in steps]
    assert times == sorted(times, reverse=True)
    assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("share", np.linspace(0.1, 0.9, 7))
def test_a_budget_one_rounding_below_an_answer_is_met_too(share, rounds):
    latency, model = TABLES["table"], build(ARCH)
    (answer,) = run(model, latency, budget_of(latency, share), criterion="magnitude")
    below = float(np.nextafter(answer.choice.latency_ms, 0))
    assert run(model, latency, below, criterion="magnitude", rounds=rounds)[-1].choice.latency_ms <= below


@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_round_keeps_to_the_constraints(selection):
    latency = TABLES["macs"]
    constraints = Constraints(multiples=STEPS, minimum={Unit.MLP: 9}, fix_embed_dim=8, protect=(1,))
    steps = run(
        build(ARCH), latency, budget_of(latency, 0.6), rounds=3, constraints=constraints, select=SELECTIONS[selection]
    )
    for step in steps:
        assert step.model.arch.embed_dim == 8
        assert step.model.arch.blocks[0].mlp_dim >= 9
        assert step.model.arch.blocks[1] == ARCH.blocks[1]


def test_the_weights_that_are_left_are_slices_of_the_original():
    model, latency = build(ARCH), TABLES["macs"]
    steps = run(model, latency, budget_of(latency, 0.4), rounds=3)
    kept = {group: np.arange(ARCH.embed_dim if group == EMBED else 99) for group in groups(ARCH)}
    for step in steps:
        chosen = step.saliency.keep(step.choice.sizes()).indices
        kept = {group: kept[group][chosen[group]] for group in groups(ARCH)}
    assert_same_state(steps[-1].model.state_dict(), shrink(model, Keep.of(ARCH, kept)).state_dict())
    assert any(len(kept[Group(unit, 1)]) < ARCH.blocks[1].size(unit) for unit in STEPS if unit is not Unit.EMBED)


def test_each_round_scores_what_is_left_on_its_own_batches():
    model, latency = build(ARCH), TABLES["macs"]
    left = model
    for step in run(model, latency, budget_of(latency, 0.3), rounds=3):
        expected = compute_saliency(left, batches(step.round), "nvit", cross_entropy)
        assert step.saliency.arch == left.arch
        assert all(np.array_equal(step.saliency.values[g], expected.values[g]) for g in groups(left.arch))
        left = step.model


@pytest.mark.parametrize(
    ("share", "says"), [(-0.01, "no architecture runs in"), (-9, "a positive number"), (1.01, "needs no search")]
)
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_an_impossible_budget_fails_before_anything_is_cut(selection, rounds, share, says):
    latency = TABLES["macs"]
    how = {
        "schedule": Schedule(rounds),
        "constraints": Constraints(multiples=STEPS),
        "select": SELECTIONS[selection],
    }
    steps = prune(build(ARCH), scored_by("nvit"), latency, budget_of(latency, share), **how)
    with pytest.raises(BudgetError, match=says):
        next(steps)


SHAKE = 0.05


def shaken(model, keep, round_index):
    """Stands for training: other weights, which depend on the round and on what there was."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(1000 * round_index + number))
            parameter.add_(SHAKE * noise.to(parameter))


def test_what_is_left_is_trained_on_after_every_round_but_the_last():
    model, latency, trained = build(ARCH), TABLES["macs"], []

    def recover(left, keep, round_index):
        assert left.arch == keep.architecture(trained[-1][1].arch if trained else ARCH)
        trained.append((round_index, left))
        shaken(left, keep, round_index)

    steps = run(model, latency, budget_of(latency, 0.3), rounds=3, recover=recover)
    assert [index for index, _ in trained] == [0, 1]
    assert [left for _, left in trained] == [step.model for step in steps[:2]]
    expected = compute_saliency(steps[0].model, batches(1), "nvit", cross_entropy)
    assert all(np.array_equal(steps[1].saliency.values[g], expected.values[g]) for g in groups(steps[0].model.arch))


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_run_that_goes_on_after_any_round_makes_what_it_would_have_made(stopped, smoothing):
    latency = TABLES["table"]
    how = {
        "constraints": Constraints(multiples=STEPS),
        "schedule": Schedule(4, 1, smoothing),
        "recover": shaken,
        "select": SELECTIONS["greedy"],
    }
    budget = budget_of(latency, 0.2)
    whole = list(prune(build(ARCH), scored_by("fisher"), latency, budget, **how))
    rest = list(prune(build(ARCH), scored_by("fisher"), latency, budget, after=whole[stopped], **how))
    assert [step.round for step in rest] == list(range(stopped + 1, 4))
    for step, expected in zip(rest, whole[stopped + 1 :], strict=True):
        assert step.choice == expected.choice
        assert_same_state(step.model.state_dict(), expected.model.state_dict())


def test_smoothing_mixes_rounds_by_unit():
    model, latency = build(ARCH), TABLES["macs"]
    steps = run(model, latency, budget_of(latency, 0.3), schedule=Schedule(2, 0, 0.75))
    fresh = compute_saliency(steps[0].model, batches(1), "nvit", cross_entropy)
    for group in groups(steps[0].model.arch):
        before = steps[0].saliency.values[group][steps[0].keep.indices[group]]
        np.testing.assert_allclose(steps[1].saliency.values[group], 0.75 * before + 0.25 * fresh.values[group])
