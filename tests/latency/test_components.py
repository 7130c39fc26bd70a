"""The parts of a block add up to it: exact MACs, a device's closed form, or differences of a table's whole blocks."""

from dataclasses import replace

import numpy as np
import pytest

from latency.analytic import MacsModel
from latency.components import differences
from latency.devices import EXECUTIONS, calibrations, device_model, table_of
from latency.estimate import components_of, estimate, estimate_many, points_of
from latency.grid import Grid
from tests.cases import UNEQUAL
from tests.reference import multilinear, random_table
from tests.tables import GRID, mesh
from tests.tables import table_of as table
from vit.presets import preset

DEIT = preset("deit-s")
NAMES = sorted(calibrations())


def assert_adds_up(found, block_ms):
    np.testing.assert_allclose(found.attn_ms + found.mlp_ms + found.rest_ms, block_ms)
    if found.qk_ms is not None:
        np.testing.assert_allclose(found.qk_ms + found.v_ms + found.products_ms, found.attn_ms)


@pytest.mark.parametrize("arch", [UNEQUAL, DEIT], ids=["small", "deit-s"])
def test_macs_of_the_parts_are_counted_one_by_one(arch):
    found = components_of(MacsModel(arch), points_of(arch))
    n, e = arch.tokens, arch.embed_dim
    for i, b in enumerate(arch.blocks):
        assert found.qk_ms[i] * 1e6 == pytest.approx(2 * n * e * b.num_heads * b.qk_dim)
        assert found.v_ms[i] * 1e6 == pytest.approx(2 * n * e * b.num_heads * b.v_dim)
        assert found.products_ms[i] * 1e6 == pytest.approx(n * n * b.num_heads * (b.qk_dim + b.v_dim))
        assert found.mlp_ms[i] * 1e6 == pytest.approx(2 * n * e * b.mlp_dim)
    assert found.basis == "exact"
    assert not found.rest_ms.any()
    assert_adds_up(found, MacsModel(arch).block_times(points_of(arch)))


def by_hand(name, batch, tokens, e, h, qk, v, mlp):
    """ms of the parts of a block of a plain model, term by term, as `devices.Execution` counts bytes."""
    calibration = calibrations()[name]
    c, run = calibration.coefficients, EXECUTIONS[calibration.execution]
    pairs, widths = tokens**2, qk + v
    if run.fused:
        pairs, widths = tokens * 128 * -(-tokens // 128), 32 * (-(-qk // 32) + -(-v // 32))
    gemm, traffic = 2 * tokens * e * c["gemm"] / 1e9, tokens * c["traffic"] / 1e6
    return {
        "qk_ms": batch * h * qk * (gemm + run.head_bytes * traffic),
        "v_ms": batch * h * v * (gemm + run.head_bytes * traffic),
        "products_ms": batch
        * (pairs * h * widths / 1e9 * c["attention"] + tokens**2 * h * run.score_bytes / 1e6 * c["softmax"]),
        "mlp_ms": batch * mlp * (gemm + run.mlp_bytes * traffic),
        "rest_ms": run.block_ms
        + batch
        * (run.embed_bytes * e * traffic + tokens / 1e3 * c["tokens"] + 16 * tokens * e / 1e6 * c["no_pre_norm"]),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_modelled_device_splits_by_the_macs_and_bytes_of_each_part(name):
    model = device_model(name, DEIT, batch=256)
    points = [(384, 6, 64, 64, 1536), (300, 5, 40, 24, 700), (768, 12, 64, 64, 3072)]
    found = components_of(model, points)
    assert found.basis == "modelled"
    assert_adds_up(found, model.block_times(points))
    for i, sizes in enumerate(points):
        for part, ms in by_hand(name, 256, 197, *sizes).items():
            assert getattr(found, part)[i] == pytest.approx(ms), part


def test_a_block_that_waits_for_its_launch_waits_in_the_rest():
    model = device_model("v100-eager-fp32", DEIT, batch=1)
    points = [(64, 1, 8, 8, 16)]
    found = components_of(model, points)
    parts = by_hand("v100-eager-fp32", 1, 197, *points[0])
    assert found.mlp_ms[0] == pytest.approx(parts["mlp_ms"])
    assert found.rest_ms[0] > parts["rest_ms"]
    assert_adds_up(found, EXECUTIONS["fp32"].launch_ms)


@pytest.mark.parametrize("seed", range(3))
def test_a_table_splits_by_what_each_branch_adds_to_its_smallest_block(seed):
    truth = multilinear(seed)
    made = table(truth(mesh(GRID)), arch=UNEQUAL)
    points = points_of(UNEQUAL)
    found = components_of(made, points)
    for i, (e, h, qk, v, mlp) in enumerate(points):
        whole, no_mlp, neither = (
            truth(np.array(sizes)) for sizes in ((e, h, qk, v, mlp), (e, h, qk, v, 4), (e, 1, 2, 2, 4))
        )
        assert found.mlp_ms[i] == pytest.approx(whole - no_mlp)
        assert found.attn_ms[i] == pytest.approx(no_mlp - neither)
        assert found.rest_ms[i] == pytest.approx(neither)
    assert found.basis == "differences"
    assert "estimated split" in found.method
    assert "H 1, QK 2, V 2 and MLP 4" in found.method
    assert found.qk_ms is None


def test_differences_of_a_modelled_table_are_the_parts_of_its_device_less_those_of_its_smallest_block():
    model = device_model("rtx-4090-eager-pt2.9-amp", DEIT, batch=256)
    grid = Grid((192, 384), (1, 6), (8, 32, 64), (8, 32, 64), (16, 768, 1536))
    points = [(384, 6, 64, 64, 1536), (192, 6, 32, 64, 768)]
    small = [(e, 1, 8, 8, 16) for e, *_ in points]
    found = components_of(table_of(model, grid), points)
    exact, least = components_of(model, points), components_of(model, small)
    np.testing.assert_allclose(found.mlp_ms, exact.mlp_ms - least.mlp_ms)
    np.testing.assert_allclose(found.attn_ms, exact.attn_ms - least.attn_ms)
    np.testing.assert_allclose(found.rest_ms, model.block_times(small))


@pytest.mark.parametrize("seed", range(3))
def test_differences_of_noise_add_up_too(seed):
    made = random_table(seed, arch=UNEQUAL)
    assert_adds_up(components_of(made, points_of(UNEQUAL)), made.block_times(points_of(UNEQUAL)))


@pytest.mark.parametrize("axes", [{"mlp_dim": (18,)}, {"num_heads": (2,), "qk_dim": (4,), "v_dim": (5,)}])
def test_a_table_with_one_size_of_a_branch_knows_no_parts(axes):
    grid = replace(GRID, **axes)
    points = [[grid.embed_dim[0], *(axis[-1] for axis in grid.axes[1:])]]
    assert differences(random_table(0, grid), points) is None


@pytest.mark.parametrize("latency", [random_table(0, arch=UNEQUAL), MacsModel(UNEQUAL)], ids=["table", "macs"])
def test_many_models_have_the_parts_of_each_one(latency):
    archs = [UNEQUAL, UNEQUAL.replace(blocks=UNEQUAL.blocks[:1]), UNEQUAL.replace(embed_dim=8)]
    for arch, found in zip(archs, estimate_many(latency, archs, components=True), strict=True):
        alone = components_of(latency, points_of(arch))
        np.testing.assert_allclose(found.components.attn_ms, alone.attn_ms)
        np.testing.assert_allclose(found.components.mlp_ms, alone.mlp_ms)
        np.testing.assert_allclose(found.components.rest_ms, alone.rest_ms)
        assert len(found.components.attn_ms) == arch.depth
    assert estimate_many(latency, archs)[0].components is None
    assert estimate(latency, UNEQUAL).components is None
