"""A model's latency is the sum over its blocks and the rest; the analytic target counts MACs exactly."""

import tracemalloc

import numpy as np
import pytest

from latency.analytic import MacsModel
from latency.errors import OutsideGridError, TargetError
from latency.estimate import estimate, estimate_many, model_times, points_of
from latency.grid import AXES
from tests.cases import CASES, CLASS_TOKEN, UNEQUAL
from tests.reference import monotone_table, random_table
from vit.architecture import BlockShape
from vit.cost import block_macs, head_macs, macs, stem_macs
from vit.presets import PRESETS


def some_archs(arch, count, seed=0):
    """Random sizes within the grid of the tests, equal depth."""
    draw = np.random.default_rng(seed)
    archs = []
    for _ in range(count):
        blocks = tuple(
            BlockShape(*(int(draw.integers(low, high + 1)) for low, high in ((1, 3), (2, 6), (2, 5), (4, 18))))
            for _ in range(3)
        )
        archs.append(arch.replace(embed_dim=int(draw.integers(4, 13)), blocks=blocks))
    return archs


@pytest.mark.parametrize("seed", range(3))
def test_a_models_latency_is_the_sum_over_its_blocks_and_the_rest(seed):
    table = random_table(seed, arch=UNEQUAL)
    for arch in [UNEQUAL, *some_archs(UNEQUAL, 5, seed)]:
        blocks = [
            float(table.block_times([arch.embed_dim, b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim])) for b in arch.blocks
        ]
        outside = float(table.outside_times(arch.embed_dim))
        found = estimate(table, arch)
        assert found.block_ms == tuple(blocks)
        assert found.outside_ms == outside
        np.testing.assert_allclose(found.latency_ms, sum(blocks) + outside)
        assert (found.target, found.kind, found.notes) == (table.target, "measured", ())


def test_many_models_at_once_take_as_long_as_one_by_one():
    for latency in (monotone_table(0, arch=UNEQUAL), MacsModel(UNEQUAL)):
        archs = some_archs(UNEQUAL, 20)
        times = model_times(latency, np.stack([points_of(arch) for arch in archs]))
        assert times.tolist() == [estimate(latency, arch).latency_ms for arch in archs]
        assert estimate_many(latency, archs) == [estimate(latency, arch) for arch in archs]


def sizes_within(bounds, count, depth, seed=0):
    """Whole sizes of random models, shape (count, depth, 5), one embed_dim a model."""
    low, high = np.array(list(bounds.values())).T
    sizes = np.random.default_rng(seed).integers(low, np.minimum(high, 100), (count, depth, 5), endpoint=True)
    sizes[:, :, 0] = sizes[:, :1, 0]
    return sizes


@pytest.mark.parametrize("latency", [random_table(0, arch=UNEQUAL), MacsModel(UNEQUAL)], ids=["table", "macs"])
@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 2500])
def test_a_huge_batch_takes_as_long_as_its_models_one_by_one(latency, count):
    sizes = sizes_within(latency.bounds, count, depth=2)
    one_by_one = [float(latency.block_times(model).sum() + latency.outside_times(model[0, 0])) for model in sizes]
    assert model_times(latency, sizes).tolist() == one_by_one


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_models_of_whole_numbers_take_as_long_as_of_floats(dtype):
    latency = random_table(0, arch=UNEQUAL)
    sizes = sizes_within(latency.bounds, 100, depth=12)
    expected = model_times(latency, sizes.astype(np.float64))
    assert np.array_equal(model_times(latency, sizes.astype(dtype)), expected)
    assert np.array_equal(model_times(latency, sizes.tolist()), expected)


def test_in_a_huge_batch_the_first_model_that_cannot_be_timed_is_refused():
    sizes = sizes_within(random_table(0).bounds, 5000, depth=2)
    sizes[3000, 1, 4], sizes[4000, 0, 1] = 19, 4
    with pytest.raises(OutsideGridError, match="mlp_dim=19 is outside"):
        model_times(random_table(0), sizes)


def test_a_huge_batch_of_small_integers_is_never_held_as_floats():
    latency = random_table(0)
    sizes = sizes_within(latency.bounds, 50_000, depth=12).astype(np.int16)
    model_times(latency, sizes[:1])  # compiled, and the table laid out
    tracemalloc.start()
    try:
        model_times(latency, sizes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < sizes.nbytes / 4


def test_points_of_a_model_are_its_sizes_in_the_order_of_the_axes():
    points = points_of(UNEQUAL)
    for row, block in zip(points, UNEQUAL.blocks, strict=True):
        named = dict(zip(AXES, row.tolist(), strict=True))
        assert named.pop("embed_dim") == UNEQUAL.embed_dim
        assert named == {name: getattr(block, name) for name in AXES[1:]}


def test_a_table_for_another_number_of_tokens_is_refused():
    table = random_table(0, arch=UNEQUAL)
    with pytest.raises(TargetError, match=r"made for 5 tokens, the architecture has 10; profile a table for 10 tokens"):
        estimate(table, UNEQUAL.replace(image_size=(24, 24)))


def test_a_size_beyond_the_table_is_refused():
    with pytest.raises(OutsideGridError, match="embed_dim=13 is outside"):
        estimate(random_table(0, arch=UNEQUAL), UNEQUAL.replace(embed_dim=13))


def test_a_note_says_where_the_architecture_differs_from_what_was_timed():
    table = random_table(0, arch=CLASS_TOKEN)
    (norm,) = estimate(table, CLASS_TOKEN.replace(norm="rms")).notes
    assert norm == "the table timed layer norm, the architecture has rms norm"
    (outside,) = estimate(table, CLASS_TOKEN.replace(num_classes=7)).notes
    assert "outside the blocks was timed for another image, patch, channel or class count" in outside
    (same_tokens,) = estimate(table, CLASS_TOKEN.replace(image_size=(32, 32), patch_size=(16, 16))).notes
    assert same_tokens == outside


@pytest.mark.parametrize("arch", [*PRESETS.values(), *CASES.values()], ids=[*PRESETS, *CASES])
def test_the_analytic_target_counts_a_models_macs_exactly(arch):
    model = MacsModel(arch)
    found = estimate(model, arch)
    np.testing.assert_allclose(found.latency_ms, macs(arch) / 1e6, rtol=1e-14)
    np.testing.assert_allclose(found.outside_ms, (stem_macs(arch) + head_macs(arch)) / 1e6, rtol=1e-14)
    for ms, shape in zip(found.block_ms, arch.blocks, strict=True):
        sizes = (shape.num_heads, shape.qk_dim, shape.v_dim, shape.mlp_dim)
        assert ms == block_macs(arch.tokens, arch.embed_dim, *sizes) / 1e6
    assert (found.kind, found.notes) == ("analytic", ())
    assert found.target.is_analytic


def test_the_analytic_target_counts_another_models_macs_of_the_same_geometry():
    model = MacsModel(UNEQUAL)
    for arch in some_archs(UNEQUAL, 10):
        np.testing.assert_allclose(estimate(model, arch).latency_ms, macs(arch) / 1e6, rtol=1e-14)


def test_the_analytic_target_answers_for_every_size_that_an_architecture_can_have():
    bounds = MacsModel(UNEQUAL).bounds
    assert bounds == dict.fromkeys(AXES, (1, 65_536))
    ends = np.array([[low for low, _ in bounds.values()], [high for _, high in bounds.values()]])
    assert np.isfinite(MacsModel(UNEQUAL).block_times(ends)).all()


def test_the_analytic_target_is_for_its_own_number_of_tokens():
    with pytest.raises(TargetError, match="tokens"):
        estimate(MacsModel(CLASS_TOKEN), CLASS_TOKEN.replace(dist_token=True))


def test_many_models_may_have_any_depths_and_none_is_no_estimate():
    latency = random_table(0, arch=UNEQUAL)
    archs = [UNEQUAL, UNEQUAL.replace(blocks=UNEQUAL.blocks[:1]), UNEQUAL.replace(blocks=UNEQUAL.blocks * 3)]
    for order in (archs, archs[::-1], archs[:1], []):
        assert estimate_many(latency, order) == [estimate(latency, arch) for arch in order]


def test_of_many_models_the_first_that_cannot_be_timed_is_refused():
    latency = random_table(0, arch=UNEQUAL)
    with pytest.raises(TargetError, match="tokens"):
        estimate_many(latency, [UNEQUAL, UNEQUAL.replace(reg_tokens=1)])
    with pytest.raises(OutsideGridError, match="embed_dim=13"):
        estimate_many(latency, [UNEQUAL, UNEQUAL.replace(embed_dim=13)])
