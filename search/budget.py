"""What a budget may be."""

import math

from latency.estimate import LatencyModel
from search.errors import BudgetError

ROUNDING = 1e-12
"""Sums of the same latencies in another order differ by less than this share."""


def check_budget(latency: LatencyModel, budget_ms: float, low: float, high: float) -> None:
    """
    Args:
        low, high: latency of the smallest architecture and of the whole model.

    Raises:
        BudgetError: no positive number, below `low`, or above `high`; says what can be asked for.
    """
    unit = "M MACs" if latency.target.is_analytic else "ms"
    if not budget_ms > 0 or not math.isfinite(budget_ms):
        raise BudgetError(f"a budget is a positive number of {unit}, got {budget_ms}")
    if budget_ms < low:
        raise BudgetError(
            f"no architecture runs in {budget_ms:.4g} {unit} on {latency.target.slug}: "
            f"the smallest that the table covers takes {low:.4g} {unit}; ask for {low:.4g} to {high:.4g}"
        )
    if budget_ms > high * (1 + ROUNDING):
        raise BudgetError(
            f"the whole model runs in {high:.4g} {unit} on {latency.target.slug}, so a budget of "
            f"{budget_ms:.4g} {unit} needs no search; ask for {low:.4g} to {high:.4g}"
        )
