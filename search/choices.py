"""What there is to choose from: every (H, QK, V, MLP) of every block within the constraints, and what each keeps.

Shapes: C choices of one block. A block here stands for one of the model's, or, where all are to be equal, for all of
them: then it keeps the saliency of all and takes the time of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from latency.estimate import LatencyModel
from search.constraints import Constraints
from search.errors import BudgetError
from search.saliency import Saliency
from vit.architecture import BLOCK_UNITS, Architecture, BlockShape
from vit.groups import EMBED, Group

Array = npt.NDArray[np.float64]
Sizes = npt.NDArray[np.int32]

_PART = 16_384
"""Choices that are timed at once: what the model computes on the way stays in the cache."""


@dataclass(frozen=True, eq=False)
class Choices:
    """
    Attributes:
        embeds: sizes of EMBED.
        shapes: of blocks that are chosen from alike, their sizes; shape (C, 4) each.
        shape_of: for each block, which of `shapes` it has.
        kept: for each block, the saliency that every choice keeps; shape (C,).
        kept_embed: saliency of EMBED that stays, by size.
        repeats: how many blocks of the model each block here stands for.
    """

    embeds: Sequence[int]
    shapes: Sequence[Sizes]
    shape_of: Sequence[int]
    kept: Sequence[Array]
    kept_embed: Array
    repeats: int

    @classmethod
    def of(
        cls, saliency: Saliency, bounds: Mapping[str, tuple[int, int]], constraints: Constraints, target: str
    ) -> Self:
        """
        Args:
            bounds: sizes that can be timed, per axis of `latency.grid.AXES`.
            target: whose bounds these are, for the error.

        Raises:
            ConstraintError: constraints that the model cannot meet.
            BudgetError: there is nothing to choose from.
        """
        arch = saliency.arch
        constraints.check(arch)
        embeds = constraints.sizes(arch, EMBED, bounds)
        members = [range(arch.depth)] if constraints.equal_blocks else [[index] for index in range(arch.depth)]
        axes = [
            tuple(tuple(constraints.sizes(arch, Group(unit, first), bounds)) for unit in BLOCK_UNITS)
            for first, *_ in members
        ]
        different = sorted(set(axes))
        if not embeds or not all(all(sizes) for sizes in different):
            asked = "".join(f"; with {text}" for text, _ in constraints.without())
            raise BudgetError(
                f"{target} covers no size that this model could be cut to "
                f"({', '.join(f'{n} {low} to {high}' for n, (low, high) in bounds.items())}{asked}); "
                "profile a grid for it"
            )
        shapes = [np.stack(np.meshgrid(*sizes, indexing="ij"), -1).reshape(-1, len(sizes)) for sizes in different]
        shape_of = [different.index(sizes) for sizes in axes]
        return cls(
            embeds,
            [shape.astype(np.int32) for shape in shapes],
            shape_of,
            [_kept(saliency, blocks, shapes[shape]) for blocks, shape in zip(members, shape_of, strict=True)],
            saliency.kept(EMBED),
            len(members[0]),
        )

    def times(self, latency: LatencyModel, embed_dim: int) -> list[Array]:
        """Milliseconds of every choice of each of `shapes`."""
        found = []
        for sizes in self.shapes:
            times = np.empty(len(sizes))
            points = np.full((_PART, 1 + len(BLOCK_UNITS)), embed_dim, dtype=np.float64)
            for start in range(0, len(sizes), _PART):
                part = sizes[start : start + _PART]
                points[: len(part), 1:] = part
                times[start : start + len(part)] = latency.block_times(points[: len(part)])
            found.append(self.repeats * times)
        return found

    def sizes(self, embed_dim: int, picked: npt.NDArray[np.integer]) -> Sizes:
        """EMBED, then H, QK, V and MLP of every block of the model, for the choice of every block; a row each.

        Args:
            picked: shape (rows, blocks).
        """
        blocks = [self.shapes[shape][picked[:, block]] for block, shape in enumerate(self.shape_of)]
        return np.column_stack([np.full(len(picked), embed_dim, np.int32), *blocks * self.repeats])


def architecture_of(arch: Architecture, sizes: Sizes) -> Architecture:
    """`arch` cut to one row of `Choices.sizes`."""
    blocks = tuple(BlockShape(*block) for block in sizes[1:].reshape(arch.depth, -1).tolist())
    return arch.replace(embed_dim=int(sizes[0]), blocks=blocks, softmax_scale=arch.scales)


def _kept(saliency: Saliency, blocks: Sequence[int], sizes: Sizes) -> Array:
    """Saliency kept by each choice, of all of these blocks together."""
    kept = np.zeros(len(sizes))
    for block in blocks:
        for column, unit in enumerate(BLOCK_UNITS):
            kept += saliency.kept(Group(unit, block))[sizes[:, column]]
    return kept
