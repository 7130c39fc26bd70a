"""Interpolation equals SciPy's, is exact where it can be, and never answers outside the grid."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import RegularGridInterpolator

from latency.errors import OutsideGridError
from latency.grid import AXES, Grid
from latency.interpolate import interpolate
from tests.reference import GRID, mesh, multilinear, random_table, table_of

LOW = [axis[0] for axis in GRID.axes]
HIGH = [axis[-1] for axis in GRID.axes]


@st.composite
def problems(draw, least=2):
    """A random grid, a value for each of its points, and points inside it."""
    axis = st.lists(st.integers(1, 4096), min_size=least, max_size=5, unique=True).map(sorted).map(tuple)
    grid = Grid(*(draw(axis) for _ in AXES))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).uniform(0.01, 100.0, grid.shape)
    shares = draw(arrays(np.float64, (draw(st.integers(1, 6)), 5), elements=st.floats(0, 1)))
    low, high = (np.array([axis[end] for axis in grid.axes], float) for end in (0, -1))
    return grid, values, np.clip(low + shares * (high - low), low, high)


@settings(deadline=None, max_examples=200)
@given(problems())
def test_it_equals_scipy_on_any_grid(problem):
    grid, values, points = problem
    expected = RegularGridInterpolator(grid.axes, values)(points)
    np.testing.assert_allclose(interpolate(grid, values, points), expected, rtol=1e-11)


@settings(deadline=None, max_examples=100)
@given(problems(least=1))
def test_an_axis_of_one_size_is_left_out_of_the_interpolation(problem):
    grid, values, points = problem
    long = [a for a in range(5) if len(grid.axes[a]) > 1]
    expected = values.reshape(-1)[:1].repeat(len(points))
    if long:
        axes = [grid.axes[a] for a in long]
        expected = RegularGridInterpolator(axes, values.squeeze())(points[:, long])
    np.testing.assert_allclose(interpolate(grid, values, points), expected, rtol=1e-11)


def test_it_is_exact_on_every_grid_point():
    values = np.random.default_rng(0).uniform(size=GRID.shape)
    assert np.array_equal(interpolate(GRID, values, mesh(GRID)), values)


@pytest.mark.parametrize("axis", range(5))
@pytest.mark.parametrize("towards", [-np.inf, np.inf])
def test_sizes_next_to_a_grid_point_lie_in_the_cell_on_their_side(axis, towards):
    values = np.random.default_rng(0).uniform(size=GRID.shape)
    sizes = np.nextafter(np.array(GRID.axes[axis], float), towards).clip(LOW[axis], HIGH[axis])
    points = np.repeat(np.mean([LOW, HIGH], axis=0)[None], len(sizes), axis=0)
    points[:, axis] = sizes
    expected = RegularGridInterpolator(GRID.axes, values)(points)
    np.testing.assert_allclose(interpolate(GRID, values, points), expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint8, np.float32])
def test_whole_numbers_of_any_type_take_as_long_as_floats(dtype):
    table = random_table(0)
    sizes = np.random.default_rng(0).integers(LOW, HIGH, (200, 3, 5), endpoint=True)
    expected = table.block_times(sizes.astype(np.float64))
    assert np.array_equal(table.block_times(sizes.astype(dtype)), expected)
    assert np.array_equal(table.block_times(sizes.tolist()), expected)


def test_the_widest_axes_that_a_grid_can_have_are_answered_for():
    grid = Grid(*((1, 65_536),) * 5)
    function = multilinear(0)
    points = np.random.default_rng(0).uniform(1, 65_536, (50, 5))
    np.testing.assert_allclose(interpolate(grid, function(mesh(grid)), points), function(points))


def test_a_table_with_other_times_does_not_answer_with_the_old_ones():
    table = random_table(0)
    points = np.random.default_rng(0).uniform(LOW, HIGH, (50, 5))
    before = table.block_times(points)
    twice = dataclasses.replace(table, block_ms=2 * table.block_ms)
    assert np.array_equal(twice.block_times(points), 2 * before)


@pytest.mark.parametrize("seed", range(3))
def test_it_reproduces_a_function_that_is_linear_in_every_size(seed):
    function = multilinear(seed)
    points = np.random.default_rng(seed).uniform(LOW, HIGH, (500, 5))
    np.testing.assert_allclose(interpolate(GRID, function(mesh(GRID)), points), function(points))


def test_the_order_of_values_in_memory_does_not_matter():
    values = np.random.default_rng(0).uniform(size=GRID.shape)
    points = np.random.default_rng(1).uniform(LOW, HIGH, (50, 5))
    expected = interpolate(GRID, values, points)
    assert np.array_equal(interpolate(GRID, np.asfortranarray(values), points), expected)
    assert np.array_equal(table_of(np.asfortranarray(values)).block_times(points), expected)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (2, 3), (2, 0, 3), (4, 3, 2)])
def test_points_of_any_shape_give_times_of_that_shape(shape):
    table = random_table(0)
    points = np.random.default_rng(0).uniform(LOW, HIGH, (*shape, 5))
    times = table.block_times(points)
    assert times.shape == shape
    assert np.array_equal(times.ravel(), table.block_times(points.reshape(-1, 5)))


def test_points_that_lie_apart_in_memory_are_read_as_they_are():
    table = random_table(0)
    points = np.random.default_rng(0).uniform(LOW, HIGH, (40, 5))
    strided = np.repeat(points, 2, axis=0)[::2]
    assert not strided.flags.contiguous
    assert np.array_equal(table.block_times(strided), table.block_times(points))
    assert np.array_equal(table.block_times(np.asfortranarray(points)), table.block_times(points))


@pytest.mark.parametrize("axis", range(5))
@pytest.mark.parametrize("size", ["below", "above", "nan", "inf", "-inf"])
def test_a_size_outside_names_axis_size_range_table_and_what_to_do(axis, size):
    table = random_table(0)
    outside = {"below": LOW[axis] - 0.5, "above": HIGH[axis] + 0.5}.get(size)
    points = np.array([LOW, HIGH, LOW], float)
    points[1, axis] = float(size) if outside is None else outside
    with pytest.raises(OutsideGridError) as caught:
        table.block_times(points)
    assert caught.value.axis == AXES[axis]
    assert str(caught.value) == (
        f"{AXES[axis]}={points[1, axis]:g} is outside [{LOW[axis]}, {HIGH[axis]}], the range profiled in "
        "testbed-eager-fp32-b2-n5; profile a wider grid or bound the search"
    )


@pytest.mark.parametrize("size", [3.9, 12.1, float("nan")])
def test_the_part_outside_the_blocks_has_the_same_range_of_embed_dim(size):
    with pytest.raises(OutsideGridError, match=rf"embed_dim={size:g} is outside \[4, 12\].*testbed.*profile"):
        random_table(0).outside_times([4, size])


def test_the_part_outside_the_blocks_is_linear_between_its_points():
    table = table_of(np.ones(GRID.shape), outside_ms=np.array([1.0, 2.0, 6.0]))
    assert table.outside_times([4, 6, 8, 9, 12]).tolist() == [1.0, 1.5, 2.0, 3.0, 6.0]
    assert float(table.outside_times(10)) == 4.0


def test_both_ends_of_every_axis_belong_to_the_grid():
    table = random_table(0)
    for corner in itertools.product(*zip(LOW, HIGH, strict=True)):
        assert table.block_times(corner) > 0
