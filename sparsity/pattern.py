"""Which zeros a kernel can use, and a weight laid out so that its pattern's groups are neighbours.

Fisher blocks are cut from that layout, so that no group is divided between two of them.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity.errors import PatternError


@dataclass(frozen=True, slots=True)
class Pattern:
    """
    Attributes:
        rows, cols: weights that go together: of so many neighbouring output channels and input channels.
        keep, of: of every `of` neighbouring input channels just `keep` stay; 0: any number.
    """

    rows: int = 1
    cols: int = 1
    keep: int = 0
    of: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.cols) < 1:
            raise PatternError(f"a tile has at least one row and one column, got {self.rows}x{self.cols}")
        if (self.keep, self.of) != (0, 0) and not 0 < self.keep < self.of:
            raise PatternError(f"N:M keeps N of M with 0 < N < M, got {self.keep}:{self.of}")
        if self.of and self.unit > 1:
            raise PatternError("a pattern is either N:M or made of tiles, not both")

    @property
    def unit(self) -> int:
        """Weights that go together."""
        return self.rows * self.cols

    @property
    def sparsity(self) -> float | None:
        """The sparsity that an N:M pattern fixes."""
        return 1 - self.keep / self.of if self.of else None

    @property
    def is_free(self) -> bool:
        """Whether every weight may go."""
        return self.unit == 1 and not self.of

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return "unstructured" if self.is_free else f"{self.rows}x{self.cols}"

    @classmethod
    def named(cls, text: str) -> "Pattern":
        """`unstructured`, `2:4`, `1x8`, `4x1`.

        Raises:
            PatternError: none of these.
        """
        if text == "unstructured":
            return cls()
        if found := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text):
            return cls(keep=int(found[1]), of=int(found[2]))
        if found := re.fullmatch(r"(\d{1,4})x(\d{1,4})", text):
            return cls(rows=int(found[1]), cols=int(found[2]))
        raise PatternError(f"unknown pattern {text!r:.40}; known: unstructured, N:M (2:4), ROWSxCOLS (1x8, 4x1)")


UNSTRUCTURED = Pattern()


@dataclass(frozen=True, slots=True)
class Layout:
    """A weight as n blocks of B, padded with zeros at the end.

    Attributes:
        name: of the parameter, for errors.
        shape: of the weight: output channels, input channels, and a kernel's extent if it has one.

    Raises:
        PatternError: the pattern does not divide the weight's channels, or the blocks.
    """

    name: str
    shape: tuple[int, ...]
    pattern: Pattern
    block_size: int

    def __post_init__(self) -> None:
        pattern, (outputs, inputs) = self.pattern, self.shape[:2]
        for what, size, part in (
            ("output channels", outputs, pattern.rows),
            ("input channels", inputs, pattern.of or pattern.cols),
        ):
            if size % part:
                raise PatternError(
                    f"{self.name} has {size} {what}, which the pattern {pattern} does not divide by {part}; "
                    "exclude this layer, or choose another pattern"
                )
        if self.block_size < 1 or self.block_size % (pattern.of or pattern.unit):
            raise PatternError(
                f"Fisher blocks of {self.block_size} cannot hold whole groups of the pattern {pattern}; "
                f"take a multiple of {pattern.of or pattern.unit}"
            )

    @property
    def size(self) -> int:
        """Weights."""
        return int(torch.Size(self.shape).numel())

    @property
    def count(self) -> int:
        """Blocks."""
        return -(-self.size // self.block_size)

    def blocks(self, weight: Tensor) -> Tensor:
        """Shape (n, B); the weight's own memory where it is laid out like that already."""
        flat = weight.reshape(-1) if self.pattern.is_free else self._matrix(weight)
        if self.size == self.count * self.block_size:
            return flat.view(self.count, self.block_size)
        made = flat.new_zeros(self.count * self.block_size)
        made[: self.size] = flat
        return made.view(self.count, self.block_size)

    def weight(self, blocks: Tensor) -> Tensor:
        """The inverse of `blocks`."""
        flat = blocks.reshape(-1)[: self.size]
        if self.pattern.is_free:
            return flat.view(self.shape)
        outputs, inputs, *kernel = self.shape
        rows, cols = self.pattern.rows, self.pattern.cols
        tiles = flat.view(outputs // rows, -1, rows, cols).transpose(1, 2)
        return tiles.reshape(outputs, *kernel, inputs).movedim(-1, 1)

    def _matrix(self, weight: Tensor) -> Tensor:
        """Input channels last, one tile after the other."""
        outputs, rows, cols = self.shape[0], self.pattern.rows, self.pattern.cols
        matrix = weight.movedim(1, -1).reshape(outputs // rows, rows, -1, cols)
        return matrix.transpose(1, 2).reshape(-1)
