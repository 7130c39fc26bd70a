"""Rounds share the latency that has to go; defaults grow with the model."""

import numpy as np
import pytest

from search.errors import BudgetError
from search.schedule import LARGEST_CUT, Schedule, default_schedule
from vit.presets import PRESETS


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_every_round_cuts_an_equal_share_and_the_last_ends_at_the_budget(rounds):
    budgets = Schedule(rounds).budgets(20.0, 5.0)
    assert budgets[-1] == 5.0
    np.testing.assert_allclose(-np.diff([20.0, *budgets]), 15 / rounds)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("rounds", 0, "rounds must be at least 1, got 0"),
        ("interval", -1, "training steps between rounds must be at least 0, got -1"),
        ("smoothing", 1.0, "smoothing must be from 0 to below 1, got 1.0"),
        ("smoothing", -0.1, "smoothing must be"),
    ],
)
def test_what_is_no_schedule_is_refused(field, value, says):
    with pytest.raises(BudgetError, match=says):
        Schedule(**{field: value})


@pytest.mark.parametrize("share", [0.05, 0.3, 0.54, 0.95, 0.999, 1.0])
def test_by_default_no_round_cuts_more_than_the_largest_cut_and_none_is_wasted(share):
    rounds = default_schedule(PRESETS["deit-s"], share).rounds
    assert (1 - share) / rounds <= LARGEST_CUT + 1e-9
    assert rounds == 1 or (1 - share) / (rounds - 1) > LARGEST_CUT


def test_by_default_a_deit_b_trains_as_long_between_rounds_as_nvit_and_smaller_models_shorter():
    intervals = [default_schedule(PRESETS[name], 0.5).interval for name in ("deit-b", "deit-s", "deit-t")]
    assert intervals == [100, 50, 26]
