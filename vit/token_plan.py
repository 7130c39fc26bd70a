"""After which blocks tokens are dropped, and how many: what a file says of token pruning, without torch."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from vit.architecture import Architecture
from vit.errors import ArchitectureError

RATIO = 0.2
"""Rao et al. 2021 and oViT's Appendix F.2 drop a fifth each time."""


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """
    Attributes:
        after: numbers of the blocks, from 1, after which patch tokens are dropped; rising.
        ratio: fraction of the patch tokens that are left which is dropped each time, in (0, 1).

    Raises:
        ArchitectureError: anything else.
    """

    after: tuple[int, ...]
    ratio: float = RATIO

    def __post_init__(self) -> None:
        if type(self.ratio) is not float or not 0 < self.ratio < 1:
            raise ArchitectureError(
                f"the ratio of tokens to drop must be between 0 and 1, got {self.ratio!r:.40}", "ratio"
            )
        whole = isinstance(self.after, tuple) and all(type(index) is int and index >= 1 for index in self.after)
        if not whole or not self.after or list(self.after) != sorted(set(self.after)):
            raise ArchitectureError(
                f"tokens are dropped after blocks 1, 2, ... in rising order, got {self.after!r:.80}", "after"
            )

    @classmethod
    def usual(cls, arch: Architecture, ratio: float = RATIO) -> "TokenPlan":
        """After blocks 3, 6 and 9 of twelve, in proportion for other depths.

        Raises:
            ArchitectureError: one block, after which nothing could use fewer tokens.
        """
        if arch.depth < 2:
            raise ArchitectureError("token pruning needs a model of at least two blocks", "after")
        places = {min(max(round(arch.depth * quarter / 4), 1), arch.depth - 1) for quarter in (1, 2, 3)}
        return cls(tuple(sorted(places)), ratio)

    def check(self, arch: Architecture) -> None:
        """
        Raises:
            ArchitectureError: tokens that would be dropped after the last block or beyond.
        """
        if self.after[-1] >= arch.depth:
            raise ArchitectureError(
                f"tokens are dropped after block {self.after[-1]}, of {arch.depth} it must be below {arch.depth}",
                "after",
            )

    def shares(self) -> tuple[float, ...]:
        """Fraction of the patch tokens left after each stage."""
        return tuple((1 - self.ratio) ** stage for stage in range(1, len(self.after) + 1))

    def counts(self, patches: int) -> tuple[int, ...]:
        """Patch tokens left after each stage, at least one."""
        return tuple(max(1, int(patches * share)) for share in self.shares())

    def tokens(self, arch: Architecture) -> tuple[int, ...]:
        """Tokens that each block sees, prefix tokens included."""
        counts, seen = self.counts(arch.patches), list[int]()
        for index in range(arch.depth):
            stage = sum(after <= index for after in self.after)
            seen.append(arch.prefix_tokens + (counts[stage - 1] if stage else arch.patches))
        return tuple(seen)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TokenPlan":
        """
        Raises:
            ValueError: no such document.
        """
        document: Any = json.loads(text)
        if not isinstance(document, dict) or set(document) != {"after", "ratio"}:
            raise ArchitectureError(f"a token plan has after and ratio, got {document!r:.80}")
        after = document["after"]
        return cls(tuple(after) if isinstance(after, list) else after, document["ratio"])
