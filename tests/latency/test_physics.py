"""The physical model: never negative, exact where blocks follow it, and never paid for a unit that leaves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency.analytic import MacsModel
from latency.errors import TableError
from latency.estimate import saving_ms
from latency.physics import PhysicalModel, fit, fit_times, work
from tests.reference import GRID, mesh, random_table
from vit.cost import macs
from vit.groups import EMBED, groups, resize, size
from vit.presets import preset

SIZES = st.tuples(
    st.integers(1, 1024), st.integers(1, 16), st.integers(1, 96), st.integers(1, 96), st.integers(1, 4096)
)
TRUTH = PhysicalModel(
    197, {"qk_macs": 2e-3, "v_macs": 1e-3, "mlp_macs": 1.5e-3, "scores": 0.2, "stream": 0.4, "block": 0.3}
)


def points(count: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.stack([draw.integers(1, high, count) for high in (768, 13, 65, 65, 3073)], axis=1).astype(float)


@given(SIZES, st.integers(0, 4), st.integers(1, 500))
def test_no_term_falls_when_a_size_grows(sizes, axis, more):
    larger = np.array(sizes)
    larger[axis] += more
    for name, term in work(np.array([sizes, larger]), 197).items():
        assert term[1] >= term[0], name


def test_blocks_that_follow_the_model_are_found_exactly_from_few_points():
    few = points(40)
    found = fit(few, TRUTH.block_times(few), 197)
    everywhere = points(500, seed=1)
    np.testing.assert_allclose(found.block_times(everywhere), TRUTH.block_times(everywhere), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_on_noisy_times_no_coefficient_is_negative_and_no_unit_costs_less_than_nothing(seed):
    timed = points(60, seed)
    noisy = TRUTH.block_times(timed) * np.random.default_rng(seed).normal(1, 0.2, 60)
    found = fit(timed, noisy, 197)
    assert min(found.coefficients.values()) >= 0
    fewer = np.maximum(timed[:, None] - np.eye(5), 1)
    assert (found.block_times(timed)[:, None] >= found.block_times(fewer)).all()


def test_errors_count_relative_to_the_time_so_small_blocks_count_as_much_as_large_ones():
    """The least squares of relative errors, solved by hand for one term."""
    where, ms = np.array([[8.0, 1, 8, 8, 16], [800, 1, 8, 8, 16]]), np.array([1.0, 300.0])
    term = work(where, 5)["mlp_macs"]
    ratio = term / ms
    best = ratio.sum() / (ratio**2).sum()
    found = fit(where, ms, 5)
    errors = found.block_times(where) / ms - 1
    only_that_term = best * ratio - 1
    assert (errors**2).sum() <= (only_that_term**2).sum() + 1e-12


@pytest.mark.parametrize("times", [[], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_times_that_are_none_are_refused(times):
    with pytest.raises(TableError, match="positive times"):
        fit(points(len(times)), times, 197)


def test_a_negative_coefficient_is_refused():
    with pytest.raises(TableError, match="mlp is -1"):
        PhysicalModel(197, {"mlp": -1.0})


def test_the_part_outside_is_a_straight_line_that_never_falls():
    found = fit_times(points(30), TRUTH.block_times(points(30)), [100, 200, 300], [1.0, 2.0, 3.0], 197)
    np.testing.assert_allclose(found.outside_times([100, 250]), [1.0, 2.5])
    falling = fit_times(points(30), TRUTH.block_times(points(30)), [100, 200, 300], [3.0, 2.0, 1.0], 197)
    np.testing.assert_allclose(falling.outside_times([0, 300]), [2.0, 2.0])


# Savings --------------------------------------------------------------------------------------------------------------


def test_on_macs_a_saving_is_the_difference_of_two_models():
    arch = preset("deit-t")
    for group in [EMBED, *groups(arch)[1:5]]:
        saved = macs(arch) - macs(resize(arch, {group: size(arch, group) - 1}))
        assert saving_ms(MacsModel(arch), arch, group) == pytest.approx(saved / 1e6)


@pytest.mark.parametrize("seed", range(5))
def test_a_table_of_pure_noise_has_negative_steps_and_no_negative_saving(seed):
    table = random_table(seed=seed)
    assert min(np.diff(table.block_ms, axis=axis).min() for axis in range(5)) < 0
    times = table.monotone
    sizes = mesh(GRID)
    for step in np.eye(5):
        assert (times.block_times(sizes + step) >= times.block_times(sizes) - 1e-12).all()
    assert table.monotone is times, "fitted once"
