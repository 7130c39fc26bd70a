"""Median and spread of a sample have closed forms."""

import numpy as np
import pytest

from latency.measurement import STABLE, Measurement


@pytest.mark.parametrize(
    ("samples", "median", "iqr"),
    [
        ([3.0], 3.0, 0.0),
        ([1.0, 2.0], 1.5, 0.5),
        ([5.0, 1.0, 3.0], 3.0, 2.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 2.0),
        ([1.0, 2.0, 3.0, 1000.0], 2.5, 250.5),
    ],
)
def test_median_and_interquartile_range_of_a_few_numbers(samples, median, iqr):
    measurement = Measurement.of(samples)
    assert measurement.median_ms == median
    assert measurement.iqr_ms == pytest.approx(iqr)


@pytest.mark.parametrize("count", [5, 9, 101])
def test_of_equal_steps_the_interquartile_range_is_half_the_range(count):
    steps = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    measurement = Measurement.of(steps)
    assert measurement.median_ms == (count + 1) / 2
    assert measurement.iqr_ms == (count - 1) / 2


def test_samples_keep_their_order():
    assert Measurement.of([3, 1, 2]).samples_ms == (3.0, 1.0, 2.0)


@pytest.mark.parametrize(("half_range", "stable"), [(STABLE - 0.001, True), (STABLE + 0.001, False)])
def test_a_measurement_is_stable_up_to_a_tenth_of_its_median(half_range, stable):
    assert (
        Measurement.of([1 - half_range, 1 - half_range / 2, 1, 1 + half_range / 2, 1 + half_range]).is_stable is stable
    )


@pytest.mark.parametrize("samples", [[], [0.0], [1.0, -1.0], [float("nan")], [float("inf")]])
def test_samples_that_are_no_positive_numbers_are_refused(samples):
    with pytest.raises(ValueError, match="samples are positive milliseconds, at least one"):
        Measurement.of(samples)
