"""Levels reach every target exactly, by steps of the density that are as even as the targets allow."""

import itertools

import pytest

from sparsity.errors import SparsityError
from sparsity.schedule import ACDC, FIRST, PHASES, TARGETS, levels, regrown


@pytest.mark.parametrize("phases", [6, 7, 15, 40])
def test_levels_start_where_asked_rise_and_hold_every_target(phases):
    found = levels(TARGETS, 0.4, phases)
    assert len(found) == phases
    assert (found[0], found[-1]) == (0.4, TARGETS[-1])
    assert set(TARGETS) <= set(found)
    assert all(a < b for a, b in itertools.pairwise(found))


def test_between_two_targets_every_step_removes_the_same_fraction_of_what_is_left():
    found = levels((0.9,), 0.2, 9)
    kept = [(1 - b) / (1 - a) for a, b in itertools.pairwise(found)]
    assert kept == pytest.approx([kept[0]] * len(kept))


def test_no_way_to_share_out_the_phases_has_a_smaller_largest_step():
    def largest(found):
        return max((b - a) / (1 - a) for a, b in itertools.pairwise(found))

    def shared(counts):
        stops, found = (0.4, 0.5, 0.75, 0.9), [0.4]
        for start, stop, count in zip(stops, stops[1:], counts, strict=False):
            found += [1 - (1 - start) * ((1 - stop) / (1 - start)) ** (step / count) for step in range(1, count + 1)]
        return found

    ways = [counts for counts in itertools.product(range(1, 8), repeat=3) if sum(counts) == 8]
    assert largest(levels((0.5, 0.75, 0.9), 0.4, 9)) == pytest.approx(min(largest(shared(counts)) for counts in ways))


def test_the_papers_run_is_the_default():
    assert levels() == levels((0.5, 0.6, 0.75, 0.8, 0.9), 0.4, 15)
    assert (FIRST, PHASES) == (0.4, 300 // 20)


@pytest.mark.parametrize(
    ("targets", "first", "phases", "message"),
    [
        ((), 0.4, 5, "got none"),
        ((0.3,), 0.4, 5, "must rise from above the first sparsity 0.4"),
        ((0.6, 0.5), 0.4, 5, "must rise"),
        ((0.5, 1.0), 0.4, 5, "to less than 1"),
        ((0.5,), -0.1, 5, "must rise"),
        ((0.5, 0.6), 0.4, 2, "2 targets after 0.4 take at least 3 phases, got 2"),
    ],
)
def test_targets_that_cannot_be_reached_so_are_refused(targets, first, phases, message):
    with pytest.raises(SparsityError, match=message):
        levels(targets, first, phases)


def test_ac_dc_is_dense_and_sparse_in_turn_for_the_published_epochs():
    epochs = [round(600 * share) for share in ACDC]
    assert sum(epochs) == 600
    assert len(epochs) % 2 == 0, "it ends sparse"
    sparse, dense = epochs[1::2], epochs[0::2]
    assert (dense[0], dense[-1], sparse[-1]) == (150, 50, 75)
    assert (sparse[:-1], dense[1:-1]) == ([25] * 7, [25] * 6)


def test_exchanges_fall_from_the_most_to_none_along_a_cosine():
    shares = [regrown(phase, 11, 0.3) for phase in range(11)]
    assert (shares[0], shares[5], shares[-1]) == pytest.approx((0.3, 0.15, 0.0))
    assert all(a > b for a, b in itertools.pairwise(shares))
