"""Constraints hold for every answer, leave the best of what they allow, and name themselves where nothing is left."""

import json
from dataclasses import replace

import numpy as np
import pytest

from latency.analytic import MacsModel
from latency.estimate import estimate
from latency.grid import Grid
from search.constraints import DEFAULT_MULTIPLES, Constraints, sizes_to_try
from search.errors import BudgetError, ConstraintError
from search.frontier import Frontier
from search.greedy import greedy_choice
from search.planes import TOLERANCE
from tests.cases import CLASS_TOKEN
from tests.reference import (
    every_architecture,
    monotone_table,
    random_saliency,
    random_table,
    sizes_in_steps,
    slow_kept,
)
from vit.architecture import BlockShape, Unit

UNEQUAL = CLASS_TOKEN.replace(embed_dim=12, blocks=(BlockShape(2, 4, 5, 16), BlockShape(3, 6, 2, 18)))
EQUAL = CLASS_TOKEN.replace(embed_dim=12, blocks=(BlockShape(2, 6, 5, 18),) * 2)
STEPS = {Unit.EMBED: 4, Unit.HEAD: 1, Unit.QK: 2, Unit.V: 2, Unit.MLP: 8}
TABLES = {
    "random": random_table,
    "monotone": monotone_table,
    "macs": lambda seed, arch: MacsModel(arch),
}

CASES = {
    "minimum": (UNEQUAL, {"minimum": {Unit.MLP: 9, Unit.EMBED: 5}}, lambda a: a.embed_dim > 4 and all_of(a, 9)),
    "whole EMBED": (UNEQUAL, {"fix_embed_dim": "whole"}, lambda a: a.embed_dim == 12),
    "one EMBED": (UNEQUAL, {"fix_embed_dim": 8}, lambda a: a.embed_dim == 8),
    "protected first": (UNEQUAL, {"protect": (0,)}, lambda a: a.blocks[0] == UNEQUAL.blocks[0]),
    "protected last": (UNEQUAL, {"protect": [1]}, lambda a: a.blocks[1] == UNEQUAL.blocks[1]),
    "all protected": (UNEQUAL, {"protect": (1, 0, 1)}, lambda a: a.blocks == UNEQUAL.blocks),
    "a protected size": (UNEQUAL, {"protect_sizes": ("qk_dim",)}, lambda a: [b.qk_dim for b in a.blocks] == [4, 6]),
    "a size of a block": (UNEQUAL, {"protect_sizes": ("1.mlp_dim",)}, lambda a: a.blocks[1].mlp_dim == 18),
    "protected EMBED": (UNEQUAL, {"protect_sizes": ("embed_dim",)}, lambda a: a.embed_dim == 12),
    "equal blocks": (EQUAL, {"equal_blocks": True}, lambda a: a.blocks[0] == a.blocks[1]),
    "several": (
        EQUAL,
        {"equal_blocks": True, "fix_embed_dim": 8, "minimum": {Unit.HEAD: 2}},
        lambda a: a.blocks[0] == a.blocks[1] and a.embed_dim == 8 and a.blocks[0].num_heads == 2,
    ),
}


def all_of(arch, mlp_dim):
    return all(block.mlp_dim >= mlp_dim for block in arch.blocks)


def allowed_ones(arch, latency, saliency, allowed):
    """(ms, share kept) of every architecture that is allowed."""
    found = [
        (estimate(latency, small).latency_ms, slow_kept(saliency, sizes) / saliency.total)
        for sizes, small in every_architecture(arch, latency, STEPS)
        if allowed(small)
    ]
    return np.array(found).T


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("case", CASES)
def test_the_frontier_keeps_to_them_and_finds_the_best_that_they_allow(case, kind):
    arch, given, allowed = CASES[case]
    saliency, latency = random_saliency(arch, 3), TABLES[kind](3, arch=arch)
    frontier = Frontier(saliency, latency, Constraints(multiples=STEPS, **given))
    ms, kept = allowed_ones(arch, latency, saliency, allowed)
    assert frontier.smallest_ms == pytest.approx(ms.min())
    for budget in np.linspace(frontier.smallest_ms, frontier.full_ms, 15):
        choice = frontier.best(min(budget, frontier.full_ms))
        optimum = kept[ms <= budget * (1 + 1e-12)].max()
        assert allowed(choice.arch)
        assert choice.latency_ms <= budget
        assert choice.kept <= optimum + 1e-12
        assert optimum <= choice.bound + 1e-12
        assert choice.gap <= (1e-12 if given.get("equal_blocks") else TOLERANCE)


@pytest.mark.parametrize("kind", ["monotone", "macs"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_keeps_to_them(case, kind):
    arch, given, allowed = CASES[case]
    saliency, latency = random_saliency(arch, 3), TABLES[kind](3, arch=arch)
    constraints = Constraints(multiples=STEPS, **given)
    ms, _ = allowed_ones(arch, latency, saliency, allowed)
    for budget in np.linspace(ms.min() * (1 + 1e-12), ms.max(), 8):
        choice = greedy_choice(saliency, latency, min(budget, estimate(latency, arch).latency_ms), constraints)
        assert allowed(choice.arch)
        assert choice.latency_ms <= budget
        assert choice.kept <= Frontier(saliency, latency, constraints).best(choice.latency_ms).bound + 1e-12


@pytest.mark.parametrize("largest", range(1, 40))
@pytest.mark.parametrize(("step", "bounds"), [(1, (1, 99)), (8, (1, 99)), (8, (10, 30)), (5, (7, 7)), (64, (1, 99))])
def test_sizes_to_try_are_multiples_of_the_step_and_the_whole_within_the_bounds(largest, step, bounds):
    assert sizes_to_try(largest, step, bounds) == sizes_in_steps(largest, step, *bounds)


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"multiples": {Unit.MLP: 0}}, "multiples", "multiples of mlp_dim is a whole number from 1 to 65536, got 0"),
        ({"multiples": {"mlp_dim": 8}}, "multiples", r"given per unit \(embed, head, qk, v, mlp\), got 'mlp_dim'"),
        ({"minimum": {Unit.QK: 2.5}}, "minimum", "minimum of qk_dim is a whole number .*, got 2.5"),
        ({"minimum": {Unit.QK: True}}, "minimum", "got True"),
        ({"fix_embed_dim": "half"}, "fix_embed_dim", "fix_embed_dim is 'whole' or a whole number .*, got 'half'"),
        ({"fix_embed_dim": 0}, "fix_embed_dim", "got 0"),
        ({"fix_embed_dim": 8, "minimum": {Unit.EMBED: 9}}, "fix_embed_dim", "8 is below the minimum embed_dim 9"),
        ({"equal_blocks": 1}, "equal_blocks", "true or false, got 1"),
        ({"protect": (0, -1)}, "protect", r"counted from 0, got \[0, -1\]"),
        ({"protect": (0.5,)}, "protect", r"got \[0.5\]"),
        ({"protect": (0,), "equal_blocks": True}, "protect", "equal_blocks and protect contradict each other"),
        ({"protect_sizes": ("first",)}, "protect_sizes", "names of sizes, embed_dim, .* as 3.mlp_dim, got 'first'"),
        ({"protect_sizes": ("0.embed_dim",)}, "protect_sizes", "got '0.embed_dim'"),
        ({"protect_sizes": ("-1.qk_dim",)}, "protect_sizes", "got '-1.qk_dim'"),
        ({"protect_sizes": (3,)}, "protect_sizes", "got 3"),
        ({"protect_sizes": ("0.v_dim",), "equal_blocks": True}, "protect_sizes", "contradict each other"),
    ],
)
def test_constraints_that_cannot_be_meant_are_refused(given, field, says):
    with pytest.raises(ConstraintError, match=says) as caught:
        Constraints(**given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"minimum": {Unit.MLP: 17}}, "minimum", r"minimum mlp_dim 17 is more than the model has \(blocks.0.mlp: 16\)"),
        ({"fix_embed_dim": 13}, "fix_embed_dim", "13 is more than the model's embed_dim 12"),
        ({"equal_blocks": True}, "equal_blocks", "block 1 has other sizes than block 0"),
        ({"protect": (2,)}, "protect", "no block 2 to protect; the model's are 0 to 1"),
        ({"protect_sizes": ("2.v_dim",)}, "protect_sizes", "no 2.v_dim to protect; the model's blocks are 0 to 1"),
    ],
)
@pytest.mark.parametrize("search", [Frontier, greedy_choice])
def test_constraints_that_the_model_cannot_meet_are_refused(given, field, says, search):
    saliency, latency = random_saliency(UNEQUAL, 0), MacsModel(UNEQUAL)
    with pytest.raises(ConstraintError, match=says) as caught:
        search(saliency, latency, *([1.0] if search is greedy_choice else []), constraints=Constraints(**given))
    assert caught.value.field == field


def refusal(budget_share, **given):
    """What is said of a budget, as a share of what the smallest of all takes to the smallest that is allowed."""
    latency = monotone_table(0, arch=UNEQUAL)
    free = Frontier(random_saliency(UNEQUAL, 0), latency, Constraints(multiples=STEPS))
    frontier = Frontier(random_saliency(UNEQUAL, 0), latency, Constraints(multiples=STEPS, **given))
    with pytest.raises(BudgetError) as caught:
        frontier.best(free.smallest_ms + budget_share * (frontier.smallest_ms - free.smallest_ms))
    return str(caught.value), f"{free.smallest_ms:.4g}", f"{frontier.smallest_ms:.4g}"


def test_a_budget_that_a_constraint_excludes_is_refused_with_its_name():
    said, free, low = refusal(0.9, minimum={Unit.MLP: 9})
    assert f"with minimum mlp_dim 9 the smallest takes {low} ms ({free} without minimum mlp_dim 9)" in said
    said, free, low = refusal(0.9, protect=(0,))
    assert f"with protected blocks 0 the smallest takes {low} ms ({free} without protected blocks 0)" in said
    said, free, low = refusal(0.9, protect_sizes=("mlp_dim",))
    assert f"with protected mlp_dim the smallest takes {low} ms ({free} without protected mlp_dim)" in said


def test_of_several_constraints_those_are_named_that_stand_in_the_way():
    said, *_ = refusal(0.9, minimum={Unit.MLP: 9, Unit.HEAD: 1})
    assert "num_heads" not in said
    said, free, low = refusal(0.01, minimum={Unit.MLP: 9}, fix_embed_dim="whole")
    together = "with minimum mlp_dim 9 and fixed embed_dim the smallest takes"
    assert f"{together} {low} ms ({free} without all of them)" in said


def test_a_budget_that_no_constraint_excludes_is_refused_as_without_them():
    said, *_ = refusal(-0.1, protect=(0,))
    assert "the smallest that the table covers takes" in said
    assert "without" not in said


def test_a_table_that_covers_nothing_that_is_allowed_is_refused_with_the_constraints():
    latency = random_table(0, Grid((4, 12), (1, 3), (2, 6), (2, 5), (4, 8)), arch=UNEQUAL)
    with pytest.raises(BudgetError, match=r"mlp_dim 4 to 8.*; with minimum mlp_dim 10\); profile a grid"):
        Frontier(random_saliency(UNEQUAL, 0), latency, Constraints(multiples=STEPS, minimum={Unit.MLP: 10}))


@pytest.mark.parametrize("case", CASES)
def test_they_survive_json(case):
    constraints = Constraints(multiples=STEPS, **CASES[case][1])
    assert Constraints.from_dict(json.loads(json.dumps(constraints.to_dict()))) == constraints


def test_what_is_not_named_is_not_constrained():
    assert Constraints.from_dict({}) == Constraints() == Constraints(multiples=dict(DEFAULT_MULTIPLES))
    assert replace(Constraints(), protect=(3, 1, 3)).protect == (1, 3)


@pytest.mark.parametrize(
    ("document", "says"),
    [({"min": {}}, "unknown constraint 'min'; known: multiples"), ({"minimum": {"mlp": 8}}, "minimum has the fields")],
)
def test_unknown_fields_are_refused(document, says):
    with pytest.raises(ConstraintError, match=says):
        Constraints.from_dict(document)
