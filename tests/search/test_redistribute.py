"""ReViT: the released numbers, their shape at other depths, and the widest that fits."""

import pytest

from latency.analytic import MacsModel
from latency.estimate import estimate
from latency.grid import Grid
from search.errors import BudgetError
from search.redistribute import redistribute, revit, revit_blocks
from tests.reference import mesh, table_of
from vit.architecture import BlockShape
from vit.errors import ArchitectureError
from vit.presets import preset

TEMPLATE = preset("deit-b-distilled")


@pytest.mark.parametrize(("name", "embed_dim"), [("revit-t", 176), ("revit-s", 384)])
def test_the_rule_gives_the_released_models(name, embed_dim):
    assert revit(embed_dim) == preset(name)


@pytest.mark.parametrize("embed_dim", [104, 176, 192, 256, 384, 512, 768, 1024])
def test_twelve_blocks_are_the_released_lists(embed_dim):
    r, q = round(0.005 * embed_dim), round(0.05 * embed_dim / 8)
    blocks = revit_blocks(embed_dim)
    assert [b.num_heads for b in blocks] == [10, 2 * r, 2 * r] + [4 * r] * 6 + [2 * r, 2 * r, 10]
    assert [b.qk_dim for b in blocks] == [16 * q, 8 * q, 8 * q] + [16 * q] * 6 + [8 * q, 8 * q, 16 * q]
    assert [b.v_dim for b in blocks] == [64] * 12
    assert [b.mlp_dim for b in blocks] == [3 * embed_dim] * 3 + [6 * embed_dim] * 6 + [3 * embed_dim] * 3


@pytest.mark.parametrize("depth", range(6, 41))
def test_any_depth_is_symmetric_and_goes_less_more_less(depth):
    blocks = revit_blocks(384, depth)
    assert len(blocks) == depth
    assert blocks == blocks[::-1]
    mlp = [block.mlp_dim for block in blocks]
    outer = mlp.index(6 * 384)
    assert 1 <= outer < depth / 2
    assert mlp == [3 * 384] * outer + [6 * 384] * (depth - 2 * outer) + [3 * 384] * outer
    assert abs(outer - depth / 4) <= 0.5
    inner = blocks[1:-1]  # the outermost blocks are fixed at ten heads
    heads, qk = [b.num_heads for b in inner], [b.qk_dim for b in inner]
    assert heads == [4] * (outer - 1) + [8] * (depth - 2 * outer) + [4] * (outer - 1)
    assert qk == [16] * (outer - 1) + [32] * (depth - 2 * outer) + [16] * (outer - 1)


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_too_few_blocks_are_refused(depth):
    with pytest.raises(ArchitectureError, match=f"ReViT needs at least 6 blocks, got {depth}"):
        revit(384, depth=depth)


@pytest.mark.parametrize("embed_dim", [0, 8, 100])
def test_a_width_that_leaves_no_head_is_refused(embed_dim):
    with pytest.raises(ArchitectureError, match=f"ReViT needs embed_dim of at least 101, got {embed_dim}"):
        revit(embed_dim)


def test_the_template_gives_everything_but_the_sizes():
    template = preset("deit-s").replace(num_classes=10, norm="rms", softmax_scale=(0.3,) * 12)
    assert revit(384, template) == template.replace(embed_dim=384, blocks=preset("revit-s").blocks, softmax_scale=None)


def coarse_table():
    """Covers ReViT up to 512 channels, exactly like MACs on its grid."""
    grid = Grid((64, 256, 512), (1, 16), (8, 64), (8, 64), (16, 1024, 3072))
    return table_of(MacsModel(TEMPLATE).block_times(mesh(grid)), grid, arch=TEMPLATE)


@pytest.mark.parametrize("depth", [6, 12, 15])
@pytest.mark.parametrize("make", [coarse_table, lambda: MacsModel(TEMPLATE)], ids=["table", "macs"])
def test_it_is_the_widest_that_fits_in_steps_of_eight_channels(make, depth):
    latency = make()
    widest = 512 if "embed_dim" in latency.bounds and latency.bounds["embed_dim"][1] == 512 else 4096
    timed = {e: estimate(latency, revit(e, depth=depth)).latency_ms for e in range(104, widest + 1, 8)}
    narrow, wide = timed[104], timed[widest]
    for budget in (narrow, narrow * 1.01, 2 * narrow, (narrow + wide) / 2, wide, 2 * wide, float("inf")):
        expected = max(e for e, ms in timed.items() if ms <= budget)
        assert redistribute(latency, budget, depth=depth) == revit(expected, depth=depth)


@pytest.mark.parametrize("share", [0.99, 0.0, -1.0, float("nan")])
def test_a_budget_below_the_narrowest_is_refused_with_the_ends(share):
    latency = coarse_table()
    low, high = (estimate(latency, revit(e)).latency_ms for e in (104, 512))
    with pytest.raises(BudgetError, match="no ReViT of 12 blocks runs in") as caught:
        redistribute(latency, share * low)
    assert f"ask for {low:.4g} to {high:.4g}" in str(caught.value)


def test_a_table_without_ten_heads_covers_no_revit():
    grid = Grid((64, 512), (1, 9), (8, 64), (8, 64), (16, 3072))
    latency = table_of(MacsModel(TEMPLATE).block_times(mesh(grid)), grid, arch=TEMPLATE)
    with pytest.raises(BudgetError, match="covers no ReViT of 12 blocks; its table must reach 10 heads, V 64"):
        redistribute(latency, 1e9)


def test_widths_whose_inner_sizes_the_table_lacks_are_left_out():
    grid = Grid((64, 512), (1, 16), (8, 64), (8, 64), (16, 6 * 200))
    latency = table_of(MacsModel(TEMPLATE).block_times(mesh(grid)), grid, arch=TEMPLATE)
    assert redistribute(latency, 1e9).embed_dim == 200
    assert BlockShape(4, 16, 64, 1200) in redistribute(latency, 1e9).blocks
