"""Profiles: the released and the printed rule, one's own, other depths, and what cannot be a profile."""

import json
import math

import pytest

from latency.analytic import MacsModel
from latency.estimate import estimate
from latency.grid import Grid
from search.errors import BudgetError, ProfileError
from search.profiles import (
    DEIT,
    LEAST_DEPTH,
    NVIDIA,
    POSTER,
    PROFILES,
    SIZES,
    Profile,
    by_lines,
    by_runs,
    own_profile,
    profile_named,
)
from search.redistribute import STEP, redistribute_like, redistribute_within, revit, widths
from tests.reference import mesh, table_of
from vit.cost import macs, params
from vit.errors import ArchitectureError, UnknownNameError
from vit.presets import preset

TEMPLATE = preset("deit-b-distilled")


@pytest.mark.parametrize("embed_dim", range(101, 1400, 37))
def test_nvidia_is_the_released_code(embed_dim):
    r, q = round(0.005 * embed_dim), round(0.05 * embed_dim / 8)
    blocks = NVIDIA.blocks(embed_dim, 12)
    assert [b.num_heads for b in blocks] == [10, 2 * r, 2 * r] + [4 * r] * 6 + [2 * r, 2 * r, 10]
    assert [b.qk_dim for b in blocks] == [16 * q, 8 * q, 8 * q] + [16 * q] * 6 + [8 * q, 8 * q, 16 * q]
    assert [b.mlp_dim for b in blocks] == [3 * embed_dim] * 3 + [6 * embed_dim] * 6 + [3 * embed_dim] * 3


@pytest.mark.parametrize("embed_dim", [100, 176, 200, 384, 768])
def test_poster_is_the_printed_formula(embed_dim):
    for index, block in enumerate(POSTER.blocks(embed_dim, 12)):
        eps = 2 if 3 <= index < 9 else 1
        assert block.num_heads == eps * round(embed_dim / 100)
        assert block.qk_dim == eps * round(embed_dim / 20)
        assert (block.v_dim, block.mlp_dim) == (64, eps * 3 * embed_dim)


@pytest.mark.parametrize("name", ["deit-t", "deit-s", "deit-b"])
def test_deit_is_deit(name):
    arch = preset(name)
    assert revit(arch.embed_dim, arch, 12, DEIT) == arch


def test_the_two_rules_differ_where_the_released_code_rounds_and_fixes_the_ends():
    nvidia, poster = NVIDIA.blocks(384, 12), POSTER.blocks(384, 12)
    assert nvidia[0].num_heads == 10 != poster[0].num_heads
    assert [a == b for a, b in zip(nvidia, poster, strict=True)].count(
        True
    ) == 0  # 3.84 heads: 2 x 2 and 4; QK 16 and 19
    assert {b.qk_dim for b in poster} == {19, 38}


def test_own_epsilons_and_multipliers():
    eps = [0.5, 1, 1, 1.5, 2, 2, 2, 2, 1.5, 1, 1, 0.5]
    profile = own_profile("mine", {"mlp_dim": eps, "num_heads": [1]}, {"mlp_dim": 1.5, "qk_dim": 2.0})
    blocks = profile.blocks(200, 12)
    assert [b.mlp_dim for b in blocks] == [round(factor * 900) for factor in eps]
    assert {b.num_heads for b in blocks} == {2}  # no block apart any more
    assert blocks[4].qk_dim == 2 * 8 * round(0.1 * 200 / 8)


@pytest.mark.parametrize("depth", range(6, 49))
def test_runs_keep_their_share_of_any_depth_and_both_ends_alike(depth):
    eps = by_runs((1.0,) * 3 + (2.0,) * 6 + (1.0,) * 3, depth)
    assert len(eps) == depth
    assert eps == eps[::-1]
    assert abs(eps.index(2.0) - depth / 4) <= 0.5


@pytest.mark.parametrize("depth", [6, 12, 17, 24])
def test_lines_give_back_a_straight_line_and_the_same_depth(depth):
    line = tuple(1.0 + 0.1 * index for index in range(12))
    found = by_lines(line, depth)
    inner = [(i, v) for i, v in enumerate(found) if 0.5 <= (i + 0.5) / depth * 12 <= 11.5]
    for index, value in inner:
        assert value == pytest.approx(1.0 + 0.1 * ((index + 0.5) / depth * 12 - 0.5))
    assert by_lines(line, 12) == pytest.approx(line)
    assert max(found) <= max(line) + 1e-12
    assert min(found) >= min(line)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_a_profile_survives_json(profile):
    assert Profile.from_json(profile.to_json()) == profile


def test_eps_may_be_one_number():
    document = {"name": "flat", **{size: {"scale": 2, "power": 1, "eps": 1.5} for size in SIZES}}
    assert Profile.from_dict(document).blocks(10, 6)[3].mlp_dim == 30


def changed(**changes):
    """A whole document with fields of its MLP rule changed."""
    document = json.loads(NVIDIA.to_json()) | {"name": "mine"}
    document["mlp_dim"] |= changes
    return document


@pytest.mark.parametrize(
    ("document", "field", "says"),
    [
        ([], None, "a profile is a JSON object, got list"),
        ({"name": "x"}, "num_heads", "needs the rule num_heads"),
        (changed(eps=[1, 1, 0, 1, 1, 1]), "mlp_dim.eps[2]", "eps[2] must be above 0, got 0"),
        (
            changed(eps=[1, 2, 1]),
            "mlp_dim.eps",
            f"eps has 3 blocks; give one number for all blocks, or at least {LEAST_DEPTH}",
        ),
        (changed(eps=[]), "mlp_dim.eps", "a number for every block"),
        (changed(eps=[1] * 8), "eps", "of the same number of blocks, got num_heads 12, qk_dim 12, mlp_dim 8"),
        (changed(eps="two"), "mlp_dim.eps[0]", "must be a number, got 'two'"),
        (changed(scale=-1), "mlp_dim.scale", "scale must be above 0"),
        (changed(scale=math.nan), "mlp_dim.scale", "must be a number"),
        (changed(power=9), "mlp_dim.power", "power from -3 to 3"),
        (changed(step=0), "mlp_dim.step", "step must be a whole number from 1"),
        (changed(scal=1), "mlp_dim.scal", "has no field 'scal'; its fields are scale, power"),
        (changed() | {"depht": 3}, "depht", "a profile has no field 'depht'"),
        (changed() | {"name": "../x"}, "name", "small letters"),
        (changed() | {"stretch": "rubber"}, "stretch", "must be one of runs, lines"),
        (changed() | {"embed_range": [9, 3]}, "embed_range", "[narrowest, widest]"),
    ],
)
def test_what_is_no_profile_is_refused_by_the_field(document, field, says):
    with pytest.raises(ProfileError) as caught:
        Profile.from_dict(document)
    assert says in str(caught.value)
    assert caught.value.field == field


def test_names_are_looked_up_among_ours_and_the_users():
    mine = own_profile("mine", {})
    assert profile_named("mine", {"mine": mine}) is mine
    assert profile_named("nvidia", {"nvidia": mine}) is NVIDIA
    with pytest.raises(UnknownNameError, match="unknown profile 'theirs'; known: mine, nvidia, poster, deit"):
        profile_named("theirs", {"mine": mine})


def test_a_width_too_small_for_the_rule_says_the_least():
    profile = own_profile("mine", {}, {"num_heads": 0.1})
    least = profile.least_embed_dim(12)
    assert profile.blocks(least, 12)
    with pytest.raises(
        ArchitectureError, match=f"the profile mine needs embed_dim of at least {least}, got {least - 1}"
    ):
        profile.blocks(least - 1, 12)


# --- budgets -----------------------------------------------------------------------------------------------------


def crossed_table():
    """Where MACs rise with the width, time here rises with the number of heads alone."""
    grid = Grid((64, 512), (1, 16), (8, 64), (8, 64), (16, 3072))
    points = mesh(grid)
    return table_of(1 + 0.5 * points[..., 1], grid, arch=TEMPLATE)


@pytest.mark.parametrize("profile", [NVIDIA, POSTER], ids=lambda profile: profile.name)
def test_several_targets_are_all_met_by_the_widest_that_meets_each(profile):
    both = [MacsModel(TEMPLATE), crossed_table()]
    every = widths(both, TEMPLATE, 12, profile)
    for share_a, share_b in [(0.3, 0.9), (0.9, 0.5), (0.5, 0.5)]:
        ends = [(every[0][1][index], every[-1][1][index]) for index in (0, 1)]
        budgets = [low + share * (high - low) for share, (low, high) in zip((share_a, share_b), ends, strict=True)]
        expected = max(
            arch.embed_dim for arch, ms in every if all(one <= most for one, most in zip(ms, budgets, strict=True))
        )
        found = redistribute_within(list(zip(both, budgets, strict=True)), TEMPLATE, 12, profile)
        assert found == revit(expected, TEMPLATE, 12, profile)


def test_budgets_that_nothing_meets_name_the_nearest_of_the_target_that_is_in_the_way():
    both = [MacsModel(TEMPLATE), crossed_table()]
    every = widths(both, TEMPLATE)
    least = every[0][1]
    with pytest.raises(BudgetError) as caught:
        redistribute_within([(both[0], 1.01 * least[0]), (both[1], 0.5 * least[1])], TEMPLATE)
    assert f"the nearest above takes {least[1]:.4g} (EMB {every[0][0].embed_dim})" in str(caught.value)
    assert f"{0.5 * least[1]:.4g} on {both[1].target.slug}" in str(caught.value)


@pytest.mark.parametrize("name", ["deit-s", "deit-b"])
def test_an_architecture_is_redistributed_at_its_latency(name):
    arch = preset(name)
    latency = MacsModel(arch)
    found = redistribute_like(arch, [latency])
    assert found.after.tokens == arch.tokens
    assert found.ms_before == (estimate(latency, arch).latency_ms,)
    assert found.ms_after[0] <= found.ms_before[0] < found.wider[1][0]
    assert found.wider[0].embed_dim == found.after.embed_dim + STEP
    assert found.after == revit(found.after.embed_dim, arch)
    costs = {what: (before, after) for what, before, after in found.costs()}
    assert costs["macs"] == (macs(arch), macs(found.after))
    assert costs["params"] == (params(arch), params(found.after))
    assert costs["latency on macs"] == (found.ms_before[0], found.ms_after[0])


def test_an_architecture_faster_than_any_revit_is_refused_with_the_nearest():
    arch = preset("deit-t").replace(blocks=preset("deit-t").blocks[:6])
    small = arch.replace(embed_dim=64, blocks=DEIT.blocks(64, 6))
    with pytest.raises(BudgetError, match=r"the nearest above takes .* \(EMB 104\), below there is none"):
        redistribute_like(small, [MacsModel(small)])
