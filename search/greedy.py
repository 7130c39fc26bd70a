"""NViT's way to choose: rank chunks of units by saliency per millisecond saved, remove the lowest until it fits.

The ranking is made once, with the savings of the uncut model; the frontier weighs them again at every size. Kept as the
published baseline (Yang et al. 2023, poster).
"""

import itertools
from collections.abc import Mapping

from latency.estimate import LatencyModel, check_tokens, estimate, saving_ms
from search.budget import check_budget
from search.frontier import DEFAULT_MULTIPLES, Choice, sizes_to_try
from search.saliency import Saliency
from vit.architecture import SIZE_FIELD, Unit
from vit.groups import groups, resize, size


def greedy_choice(
    saliency: Saliency,
    latency: LatencyModel,
    budget_ms: float,
    multiples: Mapping[Unit, int] | None = None,
) -> Choice:
    """One ranking over all groups; the first architecture on the way down that meets the budget.

    Raises:
        BudgetError: the budget is not met even when every group is at its smallest, or the whole model meets it.
    """
    check_tokens(latency, saliency.arch)
    steps = {**DEFAULT_MULTIPLES, **(multiples or {})}
    arch = saliency.arch
    sizes = {group: size(arch, group) for group in groups(arch)}
    full_ms = estimate(latency, arch).latency_ms
    smaller = {
        group: sizes_to_try(count, steps[group.unit], latency.bounds[SIZE_FIELD[group.unit]])[:-1]
        for group, count in sizes.items()
    }
    smallest = resize(arch, {group: ladder[0] for group, ladder in smaller.items() if ladder})
    # On a noisy table the smallest need not be the fastest: a budget below it is judged by what is reached.
    check_budget(latency, budget_ms, min(estimate(latency, smallest).latency_ms, budget_ms), full_ms)
    chunks = []
    for group, ladder in smaller.items():
        if not ladder:
            continue
        units = sizes[group] - ladder[-1]
        saved_ms_per_unit = max(saving_ms(latency, arch, group, units) / units, 1e-12)
        kept = saliency.kept(group)
        for left, before in itertools.pairwise([*ladder, sizes[group]]):
            loss_per_unit = (kept[before] - kept[left]) / (before - left)
            chunks.append((loss_per_unit / saved_ms_per_unit, str(group), -left, group))
    for _, _, _, group in sorted(chunks, key=lambda chunk: chunk[:3]):
        if estimate(latency, resize(arch, sizes)).latency_ms <= budget_ms:
            break
        sizes[group] = smaller[group].pop()
    small = resize(arch, sizes)
    latency_ms = estimate(latency, small).latency_ms
    check_budget(latency, budget_ms, latency_ms, full_ms)
    total_kept = sum(float(saliency.kept(group)[count]) for group, count in sizes.items())
    return Choice(small, latency_ms, budget_ms, total_kept / (saliency.total or 1.0), bound=None)
