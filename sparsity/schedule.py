"""Sparsity over time: at which levels a run stops on its way, and what it does in each phase. Loads without torch."""

import itertools
import math
from collections.abc import Sequence

from sparsity.errors import SparsityError

TARGETS = (0.5, 0.6, 0.75, 0.8, 0.9)
FIRST = 0.4
PHASES = 15
"""oViT's gradual runs: 300 epochs, pruning every 20; 40 % first, and a checkpoint at each target (Section 4.3)."""


def levels(targets: Sequence[float] = TARGETS, first: float = FIRST, phases: int = PHASES) -> tuple[float, ...]:
    """The sparsity of each phase: from `first` to the last target, every target among them.

    Between two targets densities fall geometrically: each step removes the same fraction of what is left. Phases are
    shared out so that the largest step is as small as can be.

    Raises:
        SparsityError: targets that do not rise from above `first` to below 1, or fewer phases than targets.
    """
    stops = (first, *targets)
    if not targets or any(a >= b for a, b in itertools.pairwise(stops)) or not first >= 0 or stops[-1] >= 1:
        raise SparsityError(
            f"targets must rise from above the first sparsity {first:g} to less than 1, got "
            f"{', '.join(f'{target:g}' for target in targets) or 'none'}"
        )
    if phases < len(stops):
        raise SparsityError(f"{len(targets)} targets after {first:g} take at least {len(stops)} phases, got {phases}")
    falls = [math.log((1 - a) / (1 - b)) for a, b in itertools.pairwise(stops)]
    steps = [1] * len(falls)
    for _ in range(phases - len(stops)):
        widest = max(range(len(falls)), key=lambda index: falls[index] / steps[index])
        steps[widest] += 1
    found = [first]
    for start, stop, count in zip(stops, stops[1:], steps, strict=False):
        densities = [(1 - start) * ((1 - stop) / (1 - start)) ** (step / count) for step in range(1, count)]
        found += [1 - density for density in densities] + [stop]
    return tuple(found)


ACDC = tuple(epochs / 600 for epochs in (150, *[25] * 13, 50, 75))
"""AC/DC's phases as shares of the whole length, dense and sparse in turn, a dense one first (Peste et al. 2021).

oViT's Appendix J: of 600 epochs dense to 150, then 7 sparse and 6 dense phases of 25, 50 dense and 75 sparse ones."""


def regrown(phase: int, phases: int, most: float = 0.3) -> float:
    """Fraction of the weights that are left to be exchanged: a cosine from `most` to none (Evci et al. 2020, RigL)."""
    return most / 2 * (1 + math.cos(math.pi * phase / max(phases - 1, 1)))
