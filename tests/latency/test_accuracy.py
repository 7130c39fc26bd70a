"""Errors are shares of what was measured, and an order is an order."""

import numpy as np
import pytest

from latency.accuracy import Accuracy


def test_on_four_pairs_every_figure_is_that_of_the_definition():
    found = Accuracy.of([11.0, 19.0, 30.0, 40.0], [10.0, 20.0, 30.0, 50.0])
    errors = [0.1, 0.05, 0.0, 0.2]
    assert found.count == 4
    assert found.mape == pytest.approx(np.mean(errors))
    assert found.median == pytest.approx(np.median(errors))
    assert found.p95 == pytest.approx(np.percentile(errors, 95))
    assert found.worst == pytest.approx(0.2)
    assert found.bias == pytest.approx(np.median([0.1, -0.05, 0.0, -0.2]))
    assert found.rank_correlation == pytest.approx(1.0)
    low, high = found.interval
    np.testing.assert_allclose([low, high], np.percentile([10 / 11, 20 / 19, 1.0, 50 / 40], [5, 95]))


def test_the_interval_holds_nine_in_ten_of_what_was_measured():
    draw = np.random.default_rng(0)
    predicted = draw.uniform(1, 100, 2000)
    measured = predicted * draw.lognormal(0, 0.1, 2000)
    low, high = Accuracy.of(predicted, measured).interval
    assert np.mean((low * predicted <= measured) & (measured <= high * predicted)) == pytest.approx(0.9, abs=1e-3)


def test_a_reversed_order_correlates_to_minus_one_whatever_the_sizes():
    assert Accuracy.of([1, 10, 100], [9, 8, 7]).rank_correlation == pytest.approx(-1)


def test_two_pairs_have_no_rank_correlation_and_none_at_all_are_refused():
    assert Accuracy.of([1, 2], [1, 2]).rank_correlation is None
    with pytest.raises(ValueError, match="one measured time for each"):
        Accuracy.of([], [])
    with pytest.raises(ValueError, match="one measured time for each"):
        Accuracy.of([1.0, 2.0], [1.0])
