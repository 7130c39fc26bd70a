"""NViT's way to choose: rank chunks of units by saliency less what their latency is worth, remove the lowest first.

    rank of a chunk = share of the model's saliency - η · share of the model's latency that it saves

(Yang et al. 2023, poster: latency-aware regularisation). As shares, η means the same for any scale of the loss, any
unit of time and any model; NViT's 5e-4 is of a loss scaled by 1e5 and of seconds. Left open, η is found: ranked by
saliency per millisecond, the chunks that leave are exactly those whose rank is negative at one η, the Lagrange
multiplier of the budget: as far as savings add up, no other η meets it at less saliency (but for the last chunk).

The ranking is made once, with the savings of the uncut model; the frontier weighs them again at every size.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latency.estimate import LatencyModel, check_tokens, estimate, saving_ms
from search.budget import check_budget, smallest_ms
from search.constraints import Constraints
from search.errors import BudgetError
from search.frontier import Choice
from search.saliency import Saliency
from vit.architecture import BLOCK_UNITS, Architecture
from vit.groups import EMBED, Group, groups, resize, size

LEAST_SAVING = 1e-12
"""Share of the latency that every chunk saves at least, so that ratios are finite."""


@dataclass(frozen=True, slots=True)
class GreedyChoice(Choice):
    """
    Attributes:
        removed: group and how many of its units were left, chunk by chunk in the order in which they went.
        eta: the η given, or the one found: above it every chunk that went had a negative rank.
    """

    removed: tuple[tuple[Group, int], ...]
    eta: float


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Units that leave together: the least salient that are left of a group.

    Attributes:
        groups: the group, or under `equal_blocks` those that are cut alike.
        before, left: units of each, with the chunk and without.
        loss, saved: shares of the model's saliency and latency, per unit.
    """

    groups: tuple[Group, ...]
    before: int
    left: int
    loss: float
    saved: float

    def rank(self, eta: float | None) -> float:
        """Per unit, so that chunks of any size compare; without η per share of latency."""
        return self.loss / self.saved if eta is None else self.loss - eta * self.saved


def greedy_choice(
    saliency: Saliency,
    latency: LatencyModel,
    budget_ms: float,
    constraints: Constraints | None = None,
    *,
    eta: float | None = None,
) -> GreedyChoice:
    """One ranking over all groups; the first architecture on the way down that meets the budget.

    What then fits again is given back, the most salient first: a large chunk may have saved more than was asked for.

    Args:
        eta: weight of latency against saliency, both as shares of the uncut model's; found if None.

    Raises:
        ConstraintError: constraints that the model cannot meet.
        BudgetError: the budget is not met even when every group is at its smallest, or the whole model meets it; η is
            negative or not finite.
    """
    if eta is not None and not (math.isfinite(eta) and eta >= 0):
        raise BudgetError(f"eta must be a number from 0, got {eta}; leave it out to have it found")
    check_tokens(latency, saliency.arch)
    constraints, arch = constraints or Constraints(), saliency.arch
    constraints.check(arch)
    full_ms = estimate(latency, arch).latency_ms
    # A group without any size that the table covers stays as it is.
    ladders = {group: constraints.sizes(arch, group, latency.bounds) or [size(arch, group)] for group in groups(arch)}
    # On a noisy table the smallest need not be the fastest: a budget below it is judged by what is reached.
    low = smallest_ms(latency, arch, constraints)
    check_budget(latency, budget_ms, min(low, budget_ms), full_ms, arch, constraints)
    chunks = [
        chunk
        for together in _cut_together(arch, constraints)
        for chunk in _chunks(saliency, latency, full_ms, together, ladders[together[0]])
    ]
    chunks.sort(key=lambda chunk: (chunk.rank(eta), str(chunk.groups[0]), -chunk.left))
    sizes = {group: ladder[-1] for group, ladder in ladders.items()}

    def ms(changed: dict[Group, int]) -> float:
        return estimate(latency, resize(arch, sizes | changed)).latency_ms

    removed: list[_Chunk] = []
    for chunk in chunks:
        if ms({}) <= budget_ms:
            break
        sizes |= dict.fromkeys(chunk.groups, chunk.left)
        removed.append(chunk)
    found = max((chunk.loss / chunk.saved for chunk in removed), default=0.0) if eta is None else eta
    for chunk in sorted(removed, key=lambda chunk: -chunk.loss):
        back = dict.fromkeys(chunk.groups, chunk.before)
        if sizes[chunk.groups[0]] == chunk.left and ms(back) <= budget_ms:
            sizes |= back
            removed.remove(chunk)
    small = resize(arch, sizes)
    latency_ms = estimate(latency, small).latency_ms
    check_budget(latency, budget_ms, latency_ms, full_ms, arch, constraints)
    return GreedyChoice(
        small,
        latency_ms,
        budget_ms,
        kept=sum(float(saliency.kept(group)[count]) for group, count in sizes.items()) / (saliency.total or 1.0),
        bound=None,
        removed=tuple((group, chunk.left) for chunk in removed for group in chunk.groups),
        eta=found,
    )


def _chunks(
    saliency: Saliency, latency: LatencyModel, full_ms: float, together: tuple[Group, ...], ladder: list[int]
) -> Iterator[_Chunk]:
    if len(ladder) == 1:
        return
    units = ladder[-1] - ladder[-2]
    saved_ms = sum(saving_ms(latency, saliency.arch, group, units) for group in together) / units
    kept = np.sum([saliency.kept(group) for group in together], axis=0) / (saliency.total or 1.0)
    loss = 0.0
    for before, left in itertools.pairwise(reversed(ladder)):
        # Units go in the order of their saliency: what rounding makes of equal ones may not change the order of chunks.
        loss = max(float(kept[before] - kept[left]) / (before - left), loss)
        yield _Chunk(together, before, left, loss, max(saved_ms / full_ms, LEAST_SAVING))


def _cut_together(arch: Architecture, constraints: Constraints) -> list[tuple[Group, ...]]:
    """Groups that keep equal sizes: each its own, or one unit of all blocks."""
    if not constraints.equal_blocks:
        return [(group,) for group in groups(arch)]
    return [(EMBED,), *(tuple(Group(unit, block) for block in range(arch.depth)) for unit in BLOCK_UNITS)]
