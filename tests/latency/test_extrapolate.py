"""Beyond the grid only when asked for, without a jump at its edge, and marked with an error that was found."""

import numpy as np
import pytest

from latency.errors import OutsideGridError, TableError
from latency.estimate import estimate
from latency.extrapolate import Extrapolated
from latency.grid import Grid
from tests.latency.test_physics import TRUTH
from tests.reference import mesh, table_of
from vit.presets import preset

GRID = Grid((64, 192, 384), (1, 3, 6), (16, 32, 64), (16, 32, 64), (64, 512, 1536))
DEIT_T, DEIT_B = preset("deit-t").replace(dist_token=False), preset("deit-b").replace(dist_token=False)


@pytest.fixture
def table():
    return table_of(TRUTH.block_times(mesh(GRID)), GRID, arch=DEIT_T, outside_ms=np.array([1.0, 2.0, 3.5]))


def test_inside_the_grid_it_is_the_table(table):
    inside = mesh(GRID).reshape(-1, 5)[::7] * 0.9 + 0.1 * np.array([384, 6, 64, 64, 1536])
    np.testing.assert_array_equal(Extrapolated(table).block_times(inside), table.block_times(inside))
    np.testing.assert_array_equal(Extrapolated(table).outside_times([64, 300]), table.outside_times([64, 300]))


def test_blocks_that_follow_the_physical_model_are_right_far_outside(table):
    far = np.array([[768.0, 12, 64, 64, 3072], [1024, 16, 64, 64, 4096], [8, 1, 8, 8, 16]])
    np.testing.assert_allclose(Extrapolated(table).block_times(far), TRUTH.block_times(far), rtol=1e-3)


def test_nothing_jumps_at_the_edge(table):
    edge = np.array([384.0, 6, 64, 64, 1536])
    model = Extrapolated(table)
    for axis in range(5):
        beyond = edge.copy()
        beyond[axis] += 1e-6
        np.testing.assert_allclose(model.block_times(beyond), model.block_times(edge), rtol=1e-3 if axis == 3 else 1e-6)


def test_it_is_asked_for_and_marked(table):
    with pytest.raises(OutsideGridError):
        estimate(table, DEIT_B)
    model = Extrapolated(table)
    found = estimate(model, DEIT_B)
    assert found.kind == "modelled"
    assert found.interval_ms is not None
    assert "beyond the grid" in model.provenance.method
    assert model.provenance.quality["extrapolation_mape"] == model.accuracy.mape


def test_its_error_is_that_of_planes_that_were_left_out(table):
    crooked = table.block_ms * np.where(np.arange(3) == 2, 1.4, 1.0)  # the largest MLP plane does not follow the rest
    wrong = table_of(crooked, GRID, arch=DEIT_T, outside_ms=table.outside_ms)
    assert Extrapolated(table).accuracy.mape < 0.01
    assert Extrapolated(wrong).accuracy.mape > 0.05


def test_a_table_of_two_planes_an_axis_cannot_be_extrapolated():
    small = Grid((64, 192), (1, 3), (16, 32), (16, 32), (64, 512))
    with pytest.raises(TableError, match="too few planes"):
        Extrapolated(table_of(TRUTH.block_times(mesh(small)), small, arch=DEIT_T))
