"""NViT's way to choose: rank chunks of units by saliency per millisecond saved, remove the lowest until it fits.

The ranking is made once, with the savings of the uncut model; the frontier weighs them again at every size. Kept as the
published baseline (Yang et al. 2023, poster).
"""

import itertools

import numpy as np

from latency.estimate import LatencyModel, check_tokens, estimate, saving_ms
from search.budget import check_budget, smallest_ms
from search.constraints import Constraints
from search.frontier import Choice
from search.saliency import Saliency
from vit.architecture import BLOCK_UNITS, Architecture
from vit.groups import EMBED, Group, groups, resize, size


def greedy_choice(
    saliency: Saliency,
    latency: LatencyModel,
    budget_ms: float,
    constraints: Constraints | None = None,
) -> Choice:
    """One ranking over all groups; the first architecture on the way down that meets the budget.

    Raises:
        ConstraintError: constraints that the model cannot meet.
        BudgetError: the budget is not met even when every group is at its smallest, or the whole model meets it.
    """
    check_tokens(latency, saliency.arch)
    constraints, arch = constraints or Constraints(), saliency.arch
    constraints.check(arch)
    full_ms = estimate(latency, arch).latency_ms
    # A group without any size that the table covers stays as it is.
    ladders = {group: constraints.sizes(arch, group, latency.bounds) or [size(arch, group)] for group in groups(arch)}
    # On a noisy table the smallest need not be the fastest: a budget below it is judged by what is reached.
    low = smallest_ms(latency, arch, constraints)
    check_budget(latency, budget_ms, min(low, budget_ms), full_ms, arch, constraints)
    chunks = []
    for together in _cut_together(arch, constraints):
        ladder = ladders[together[0]]
        if len(ladder) == 1:
            continue
        units = ladder[-1] - ladder[-2]
        saved_ms = sum(saving_ms(latency, arch, group, units) for group in together)
        saved_ms_per_unit = max(saved_ms / units, 1e-12)
        kept = np.sum([saliency.kept(group) for group in together], axis=0)
        for left, before in itertools.pairwise(ladder):
            loss_per_unit = (kept[before] - kept[left]) / (before - left)
            chunks.append((loss_per_unit / saved_ms_per_unit, str(together[0]), -left, together))
    sizes = {group: ladder[-1] for group, ladder in ladders.items()}
    for _, _, _, together in sorted(chunks, key=lambda chunk: chunk[:3]):
        if estimate(latency, resize(arch, sizes)).latency_ms <= budget_ms:
            break
        for group in together:
            ladders[group].pop()
            sizes[group] = ladders[group][-1]
    small = resize(arch, sizes)
    latency_ms = estimate(latency, small).latency_ms
    check_budget(latency, budget_ms, latency_ms, full_ms, arch, constraints)
    total_kept = sum(float(saliency.kept(group)[count]) for group, count in sizes.items())
    return Choice(small, latency_ms, budget_ms, total_kept / (saliency.total or 1.0), bound=None)


def _cut_together(arch: Architecture, constraints: Constraints) -> list[tuple[Group, ...]]:
    """Groups that keep equal sizes: each its own, or one unit of all blocks."""
    if not constraints.equal_blocks:
        return [(group,) for group in groups(arch)]
    return [(EMBED,), *(tuple(Group(unit, block) for block in range(arch.depth)) for unit in BLOCK_UNITS)]
