"""A few points tell the rest, and what is said of the error was found on points that were left out."""

import numpy as np
import pytest

from latency.surrogate import fit_surrogate, held_out
from tests.latency.test_physics import TRUTH, points


def crooked(where: np.ndarray) -> np.ndarray:
    """Blocks that a sum of work alone is up to 30 % wrong about, smoothly."""
    return TRUTH.block_times(where) * (1 + 0.3 * np.sin(0.7 * np.log2(where[:, 0]) + 0.3 * np.log2(where[:, 4])))


def mape(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(predicted / truth - 1).mean())


def test_what_the_physics_misses_is_learnt_where_it_is_smooth():
    timed, others = points(150), points(400, seed=1)
    found = fit_surrogate(timed, crooked(timed), 197)
    assert mape(found.block_times(others), crooked(others)) < 0.5 * mape(
        found.physics.block_times(others), crooked(others)
    )


def test_noise_is_averaged_and_not_followed():
    timed = points(200)
    noisy = TRUTH.block_times(timed) * np.random.default_rng(0).normal(1, 0.05, 200)
    found = fit_surrogate(timed, noisy, 197)
    assert mape(found.block_times(timed), TRUTH.block_times(timed)) < 0.5 * mape(noisy, TRUTH.block_times(timed))


def test_any_shape_of_points_is_answered():
    timed = points(40)
    found = fit_surrogate(timed, crooked(timed), 197)
    many = points(12, seed=2)
    np.testing.assert_allclose(found.block_times(many.reshape(3, 4, 5)).ravel(), found.block_times(many))


def test_the_held_out_error_is_that_of_points_that_were_not_timed():
    timed, others = points(120), points(1000, seed=3)
    said = held_out(timed, crooked(timed), 197).mape
    found = mape(fit_surrogate(timed, crooked(timed), 197).block_times(others), crooked(others))
    assert said == pytest.approx(found, rel=0.6)


def test_an_error_in_one_point_is_seen_when_it_is_left_out_and_not_explained_away():
    timed = points(120)
    ms = TRUTH.block_times(timed)
    ms[17] *= 3
    assert held_out(timed, ms, 197).worst > 0.5
