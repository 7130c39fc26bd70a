"""What the catalogue holds and is asked: entries, accuracies with their evidence, filters, dominance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vit.architecture import Architecture
from vit.cost import macs, params
from vit.errors import VitfitError

KINDS = ("preset", "published", "told", "frontier", "redistributed", "compressed", "pruned", "trained", "study")
"""How an architecture came about."""

EVIDENCE = ("measured", "published")

MOST = 1_000
"""Answers to one question."""


class CatalogueError(VitfitError, ValueError):
    """An entry or a question that is none. `field` names the culprit."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class DatabaseError(VitfitError, RuntimeError):
    """A database that cannot be reached, or that is older or newer than this code."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One figure. Where nothing is known there is none; a figure is never made up.

    Attributes:
        data: name of the data set; its fingerprint is in the lineage of what was made with it.
        value: top-1 in [0, 1].
        evidence: `measured` here, or `published` by others.
        recipe: how it was trained, or the source's words.
        seeds: that `value` is the mean of; empty: not published.
        images: how many it was measured on.
    """

    data: str
    value: float
    evidence: str
    recipe: str
    seeds: tuple[int, ...] = ()
    images: int | None = None

    def __post_init__(self) -> None:
        if not self.data or not isinstance(self.data, str):
            raise CatalogueError("an accuracy is of a data set; name it", "data")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not 0 <= self.value <= 1:
            raise CatalogueError(f"accuracy is a share from 0 to 1, got {self.value!r:.40}", "value")
        if self.evidence not in EVIDENCE:
            raise CatalogueError(f"evidence is one of {', '.join(EVIDENCE)}, got {self.evidence!r:.40}", "evidence")
        if not self.recipe:
            raise CatalogueError("an accuracy needs its recipe or source: how was the model trained?", "recipe")
        if self.evidence == "measured" and not self.seeds:
            raise CatalogueError("a measured accuracy names its seeds", "seeds")

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "value": self.value,
            "evidence": self.evidence,
            "recipe": self.recipe,
            "seeds": list(self.seeds),
            "images": self.images,
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture, or published figures without a shape.

    Attributes:
        key: equal keys, equal entries: adding it again changes nothing but new accuracies.
        arch: None where the shape was never published.
        kind: one of KINDS.
        parent: id of the architecture that it was made from.
        params, macs: as printed, where there is no shape; else they are counted.
        source: who says so, or what made it.
        lineage: steps that led to it, JSON objects.
        figures: other printed figures (speed-ups by device), as printed.
    """

    key: str
    name: str
    kind: str
    arch: Architecture | None
    source: str
    parent: str | None = None
    params: int | None = None
    macs: int | None = None
    lineage: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    accuracies: tuple[Accuracy, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CatalogueError(f"kind is one of {', '.join(KINDS)}, got {self.kind!r:.40}", "kind")
        for name, limit in (("key", 200), ("name", 200)):
            value = getattr(self, name)
            if not isinstance(value, str) or not 1 <= len(value) <= limit:
                raise CatalogueError(f"{name} is text of 1 to {limit} characters, got {value!r:.60}", name)
        if self.arch is not None:
            object.__setattr__(self, "params", params(self.arch))
            object.__setattr__(self, "macs", macs(self.arch))


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that answers a question.

    Attributes:
        serial: of the entry.
        architecture: id, None without a shape.
        latency_ms: on the target that was asked for.
    """

    serial: int
    name: str
    kind: str
    architecture: str | None
    parent: str | None
    params: int | None
    macs: int | None
    source: str
    figures: Mapping[str, Any]
    created_at: str
    latency_ms: float | None
    accuracies: tuple[Accuracy, ...]

    def accuracy_on(self, data: str) -> float | None:
        """The best that is known on a data set."""
        return max((one.value for one in self.accuracies if one.data == data), default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "entry": self.serial,
            "name": self.name,
            "kind": self.kind,
            "architecture_id": self.architecture,
            "parent": self.parent,
            "params": self.params,
            "macs": self.macs,
            "source": self.source,
            "figures": dict(self.figures),
            "created_at": self.created_at,
            "latency_ms": self.latency_ms,
            "accuracies": [one.to_dict() for one in self.accuracies],
        }


Order = Literal["accuracy", "latency", "params", "macs", "newest"]
ORDERS: tuple[Order, ...] = ("accuracy", "latency", "params", "macs", "newest")


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for; None: whatever it be.

    Attributes:
        target, budget_ms: entries with a latency there, within the budget.
        kind: one of KINDS.
        data: entries whose accuracy on it is known go first, the best one first; `known`: only those.
        ancestor: id of an architecture that they were made from, over any number of steps.
        name: part of a name.
        max_params, max_macs: at most so many.
        order: what answers are sorted by; accuracy (then latency, the slowest first) where there is one to go by.
        limit: answers.
    """

    target: str | None = None
    budget_ms: float | None = None
    kind: str | None = None
    data: str | None = None
    known: bool = False
    ancestor: str | None = None
    name: str | None = None
    max_params: int | None = None
    max_macs: int | None = None
    order: Order | None = None
    limit: int = 20

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise CatalogueError(f"kind is one of {', '.join(KINDS)}, got {self.kind!r:.40}", "kind")
        if self.budget_ms is not None:
            if self.target is None:
                raise CatalogueError("budget_ms needs a target to be counted on; add target", "budget_ms")
            if not (self.budget_ms > 0 and math.isfinite(self.budget_ms)):
                raise CatalogueError(f"budget_ms is a positive number, got {self.budget_ms}", "budget_ms")
        if self.order is not None and self.order not in ORDERS:
            raise CatalogueError(f"order is one of {', '.join(ORDERS)}, got {self.order!r:.40}", "order")
        if self.order == "accuracy" and self.data is None:
            raise CatalogueError("an order by accuracy needs the data set that it is of; add data", "order")
        if self.order == "latency" and self.target is None:
            raise CatalogueError("an order by latency needs a target; add target", "order")
        if self.known and self.data is None:
            raise CatalogueError("known asks for accuracy on a data set; add data", "known")
        if not 1 <= self.limit <= MOST:
            raise CatalogueError(f"limit is from 1 to {MOST}, got {self.limit}", "limit")


def dominates(a: Sequence[float | None], b: Sequence[float | None]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; smaller is better.

    What is unknown of either is not compared, and where nothing can be compared nothing dominates.
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return bool(pairs) and all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
