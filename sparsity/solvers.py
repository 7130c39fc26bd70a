"""One layer's problem under one method: which of its units go first, and what the others become.

Every solver says, for each block, at what error its first, second, third ... unit goes, never decreasing; how many go
is decided over all blocks (`choice.py`). n blocks of size B, U units in each.
"""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from sparsity.obs import Elimination

Merge = Callable[[Tensor], Tensor]

MERGES: Mapping[str, Merge] = {
    "marginal": lambda gains: gains.cummax(dim=1).values,
    "cumulative": lambda gains: gains.cumsum(dim=1),
}
"""What a step's error is when blocks are compared, of what each step adds to the loss, (n, U).

`cumulative` is Algorithm 1's: everything that its block has lost so far. It stops early in blocks that lost much at
first. `marginal` asks what the next unit costs, as the sum over all blocks wants; where a later one costs less than an
earlier one they count as one.
"""


class Solver(Protocol):
    """
    Attributes:
        errors: shape (n, U); infinity for what is not known (yet), or may not go.
    """

    errors: Tensor

    def advance(self, until: Tensor) -> None:
        """Know the errors of so many units of each block, (n,), as far as that many may go."""

    @property
    def exhausted(self) -> Tensor:
        """Blocks of which all is known, (n,)."""

    def result(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Weights without so many units of each block (n,), and which stay; both (n, B)."""


class Greedy:
    """Unit by unit, each time with the others re-tuned: oViT."""

    def __init__(self, elimination: Elimination, merge: Merge) -> None:
        self._elimination, self._merge = elimination, merge
        self.errors = elimination.gains

    def advance(self, until: Tensor) -> None:
        self._elimination.advance(until)
        gains = self._elimination.gains
        known = gains.isfinite()
        self.errors = self._merge(gains.masked_fill(~known, 0.0)).masked_fill_(~known, math.inf)

    @property
    def exhausted(self) -> Tensor:
        return self._elimination.exhausted

    def result(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        return self._elimination.result(counts)


class Ranked:
    """By a score for each unit that does not depend on what else goes: everything but oViT."""

    def __init__(
        self,
        weights: Tensor,
        scores: Tensor,
        alive: Tensor,
        room: Tensor,
        update: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            weights: shape (n, B).
            scores: shape (n, U).
            alive: boolean, shape (n, U): units that can go.
            room: shape (n, G): how many units may go of each of G groups of neighbours.
            update: removed weights, boolean (n, B) -> what is added to all, (n, B). None: the others stay as they are.
        """
        self._weights, self._alive, self._update = weights, alive, update
        self._unit = weights.shape[1] // scores.shape[1]
        scores = scores.masked_fill(~alive, math.inf)
        grouped = scores.view(len(scores), room.shape[1], -1)
        rank = grouped.argsort(dim=2, stable=True).argsort(dim=2)
        scores = grouped.masked_fill(rank >= room[:, :, None], math.inf).view_as(scores)
        self.errors, self._order = scores.sort(dim=1, stable=True)

    def advance(self, until: Tensor) -> None:
        del until

    @property
    def exhausted(self) -> Tensor:
        return torch.ones(len(self._weights), dtype=torch.bool, device=self._weights.device)

    def result(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.arange(self._order.shape[1], device=counts.device) < counts[:, None]
        units = torch.zeros_like(self._alive).scatter_(1, self._order, made)
        removed = units.repeat_interleave(self._unit, dim=1)
        keep = self._alive.repeat_interleave(self._unit, dim=1) & ~removed
        weights = self._weights if self._update is None else self._weights + self._update(removed)
        return weights.masked_fill(~keep, 0.0), keep
