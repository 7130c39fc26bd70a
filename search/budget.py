"""What a budget may be."""

import math

from latency.estimate import LatencyModel, estimate
from search.constraints import Constraints
from search.errors import BudgetError
from vit.architecture import Architecture
from vit.groups import groups, resize

ROUNDING = 1e-12
"""Sums of the same latencies in another order differ by less than this share."""


def check_budget(
    latency: LatencyModel, budget_ms: float, low: float, high: float, arch: Architecture, constraints: Constraints
) -> None:
    """
    Args:
        low, high: latency of the smallest architecture and of the whole model.
        arch, constraints: what is cut, and what it may be cut to.

    Raises:
        BudgetError: no positive number, below `low`, or above `high`; says what can be asked for, and which of the
            constraints are in the way.
    """
    unit = "M MACs" if latency.target.is_analytic else "ms"
    if not budget_ms > 0 or not math.isfinite(budget_ms):
        raise BudgetError(f"a budget is a positive number of {unit}, got {budget_ms}")
    if budget_ms < low:
        raise BudgetError(
            f"no architecture runs in {budget_ms:.4g} {unit} on {latency.target.slug}: "
            f"{_smallest(latency, budget_ms, low, arch, constraints)}; ask for {low:.4g} to {high:.4g}"
        )
    if budget_ms > high * (1 + ROUNDING):
        raise BudgetError(
            f"the whole model runs in {high:.4g} {unit} on {latency.target.slug}, so a budget of "
            f"{budget_ms:.4g} {unit} needs no search; ask for {low:.4g} to {high:.4g}"
        )


def _smallest(latency: LatencyModel, budget_ms: float, low: float, arch: Architecture, constraints: Constraints) -> str:
    """What the smallest takes, and what it would take without the constraints that keep it from the budget."""
    unit = "M MACs" if latency.target.is_analytic else "ms"
    each = {text: smallest_ms(latency, arch, others) for text, others in constraints.without()}
    binding = {text: ms for text, ms in each.items() if ms <= budget_ms}
    if binding:
        without = ", or ".join(f"{ms:.4g} without {text}" for text, ms in binding.items())
        return f"with {' and '.join(binding)} the smallest takes {low:.4g} {unit} ({without})"
    if each and (least := smallest_ms(latency, arch, constraints.lifted())) <= budget_ms:
        return f"with {' and '.join(each)} the smallest takes {low:.4g} {unit} ({least:.4g} without all of them)"
    return f"the smallest that the table covers takes {low:.4g} {unit}"


def smallest_ms(latency: LatencyModel, arch: Architecture, constraints: Constraints) -> float:
    """Latency with every group at its smallest; infinite where the table does not cover it."""
    sizes = {group: constraints.sizes(arch, group, latency.bounds) for group in groups(arch)}
    if not all(sizes.values()):
        return math.inf
    return estimate(latency, resize(arch, {group: least[0] for group, least in sizes.items()})).latency_ms
