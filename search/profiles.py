"""Redistribution profiles: all sizes of an architecture from its width, by a rule for each kind of size.

    size of block b = step · round(ε_b · multiple · round(scale · E^power / multiple) / step)

`scale` and `power` say how a size goes with the width E (power 1: in proportion; power 0: not at all), ε_b how it goes
with depth. The outermost blocks may have a size of their own, whatever the width. ReViT (Yang et al. 2023, poster) is

    H = ε·E/100    QK = ε·E/20    V = 64    MLP = ε·3E        ε less - more - less

and here twice: `nvidia`, the released code, exact to the last channel, and `poster`, the formula as printed.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Self

from search.errors import ProfileError
from vit.architecture import BLOCK_UNITS, MAX_SIZE, SIZE_FIELD, BlockShape
from vit.errors import ArchitectureError, UnknownNameError

LEAST_DEPTH = 6
"""Of a rule whose ε has thirds and ends that differ."""

SIZES = tuple(SIZE_FIELD[unit] for unit in BLOCK_UNITS)
"""The sizes of a block by their fields: num_heads, qk_dim, v_dim, mlp_dim."""

STEEPEST = 3
"""Power of the width that a size may go with."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def by_runs(eps: Sequence[float], depth: int) -> tuple[float, ...]:
    """ε of a depth from that of another: runs of equal ε keep their share of the depth, rounded, alike at both ends.

    Of twelve blocks 1 x3, 2 x6, 1 x3 a quarter of the blocks at each end has ε 1, whatever the depth.
    """
    found: list[float] = []
    starts = [0, *(index for index in range(1, len(eps)) if eps[index] != eps[index - 1]), len(eps)]
    for start, stop in pairwise(starts):
        share = stop / len(eps)
        end = round(depth * share) if share <= 0.5 else depth - round(depth * (1 - share))
        found += [eps[start]] * (end - len(found))
    return tuple(found)


def by_lines(eps: Sequence[float], depth: int) -> tuple[float, ...]:
    """ε of a depth from that of another, read off straight lines between the middles of its blocks."""
    found = []
    for index in range(depth):
        place = min(max((index + 0.5) / depth * len(eps) - 0.5, 0.0), len(eps) - 1.0)
        low = min(int(place), len(eps) - 2)
        found.append(eps[low] + (place - low) * (eps[low + 1] - eps[low]))
    return tuple(found)


STRETCH: Mapping[str, Callable[[Sequence[float], int], tuple[float, ...]]] = {"runs": by_runs, "lines": by_lines}
"""How ε of one depth becomes that of another; of its own depth it is what it is."""


@dataclass(frozen=True, slots=True)
class SizeRule:
    """One kind of size.

    Attributes:
        scale, power: the size at ε 1 is scale · E^power.
        eps: factor of every block, first to last; a single one holds for all. Another depth stretches them.
        multiple: to which the size at ε 1 is rounded.
        step: to which the size is rounded.
        edge: the size of the first and the last block, whatever the width; None: as the others.
        edge_eps: ε of the first and the last block, in the place of theirs.

    Raises:
        ProfileError: numbers that give no size.
    """

    scale: float
    power: float = 1.0
    eps: tuple[float, ...] = (1.0,)
    multiple: int = 1
    step: int = 1
    edge: int | None = None
    edge_eps: float | None = None

    def __post_init__(self) -> None:
        _check_number("scale", self.scale, above=0.0)
        _check_number("power", self.power, above=None)
        if abs(self.power) > STEEPEST or self.scale > MAX_SIZE:
            raise ProfileError(
                f"scale is at most {MAX_SIZE} and power from -{STEEPEST} to {STEEPEST}, got {self.scale:g} and "
                f"{self.power:g}",
                "power" if abs(self.power) > STEEPEST else "scale",
            )
        if not isinstance(self.eps, tuple) or not self.eps:
            raise ProfileError("eps must hold a number for every block, or one for all", "eps")
        for index, value in enumerate(self.eps):
            _check_number(f"eps[{index}]", value, above=0.0)
        if 1 < len(self.eps) < LEAST_DEPTH:
            raise ProfileError(
                f"eps has {len(self.eps)} blocks; give one number for all blocks, or at least {LEAST_DEPTH}", "eps"
            )
        for name in ("multiple", "step", "edge"):
            value = getattr(self, name)
            if value is None and name == "edge":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
                raise ProfileError(f"{name} must be a whole number from 1 to {MAX_SIZE}, got {value!r:.60}", name)
        if self.edge_eps is not None:
            _check_number("edge_eps", self.edge_eps, above=0.0)
            if self.edge is not None:
                raise ProfileError("edge fixes the outermost sizes; leave edge_eps out", "edge_eps")

    def base(self, embed_dim: int) -> int:
        """The size at ε 1."""
        return int(self.multiple * round(self.scale * embed_dim**self.power / self.multiple))

    def sizes(self, embed_dim: int, depth: int, stretch: str) -> list[int]:
        """One a block; 0 where the width is too small for the rule."""
        eps = self.eps * depth if len(self.eps) == 1 else self.eps
        if len(eps) != depth:
            eps = STRETCH[stretch](eps, depth)
        if self.edge_eps is not None:
            eps = (self.edge_eps, *eps[1:-1], self.edge_eps)
        base = self.base(embed_dim)
        found = [self.step * round(factor * base / self.step) for factor in eps]
        if self.edge is not None and base:
            found[0] = found[-1] = self.edge
        return found


def _check_number(name: str, value: object, above: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProfileError(f"{name} must be a number, got {value!r:.60}", name)
    if above is not None and value <= above:
        raise ProfileError(f"{name} must be above {above:g}, got {value:g}: no block can have a size of nothing", name)


@dataclass(frozen=True, slots=True)
class Profile:
    """A rule for each kind of size, with where it is from.

    Attributes:
        num_heads, qk_dim, v_dim, mlp_dim: the rules.
        stretch: how ε goes to other depths, a name in STRETCH.
        source: where the rule is from, in a line or two.
        embed_range: narrowest and widest that it was learned from; beyond, it is an extrapolation. None: not learned.

    Raises:
        ProfileError: names a field.
    """

    name: str
    num_heads: SizeRule
    qk_dim: SizeRule
    v_dim: SizeRule
    mlp_dim: SizeRule
    stretch: str = "runs"
    source: str = ""
    embed_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ProfileError(
                f"a profile's name has small letters, digits, '.', '_' and '-', 64 at most; got {self.name!r:.80}",
                "name",
            )
        if not isinstance(self.source, str):
            raise ProfileError("source must be text", "source")
        for size in SIZES:
            if not isinstance(getattr(self, size), SizeRule):
                raise ProfileError(f"{size} must be a rule with scale, power and eps", size)
        if self.stretch not in STRETCH:
            raise ProfileError(f"stretch must be one of {', '.join(STRETCH)}, got {self.stretch!r:.60}", "stretch")
        depths = {len(self.rule(size).eps) for size in SIZES} - {1}
        if len(depths) > 1:
            given = ", ".join(f"{size} {len(self.rule(size).eps)}" for size in SIZES if len(self.rule(size).eps) > 1)
            raise ProfileError(f"eps of all sizes must be of the same number of blocks, got {given}", "eps")
        if self.embed_range is not None:
            pair = self.embed_range
            if not isinstance(pair, tuple) or len(pair) != 2 or not 1 <= pair[0] <= pair[1] <= MAX_SIZE:
                raise ProfileError(f"embed_range must be [narrowest, widest], got {pair!r:.60}", "embed_range")

    def rule(self, size: str) -> SizeRule:
        rule: SizeRule = getattr(self, size)
        return rule

    @property
    def depth(self) -> int | None:
        """Blocks that ε is given for; None: any number of them."""
        return next((len(self.rule(size).eps) for size in SIZES if len(self.rule(size).eps) > 1), None)

    def blocks(self, embed_dim: int, depth: int) -> tuple[BlockShape, ...]:
        """
        Raises:
            ArchitectureError: too narrow or too shallow for the rule, or sizes that no model has.
        """
        title = "ReViT" if self.name == NVIDIA.name else f"the profile {self.name}"
        if depth < LEAST_DEPTH:
            raise ArchitectureError(f"{title} needs at least {LEAST_DEPTH} blocks, got {depth}", "depth")
        columns = [self.rule(size).sizes(embed_dim, depth, self.stretch) for size in SIZES]
        if min(map(min, columns)) < 1:
            least = self.least_embed_dim(depth)
            raise ArchitectureError(f"{title} needs embed_dim of at least {least}, got {embed_dim}", "embed_dim")
        return tuple(BlockShape(*sizes) for sizes in zip(*columns, strict=True))

    def least_embed_dim(self, depth: int) -> int:
        """The narrowest width that gives every block all sizes."""

        def enough(embed_dim: int) -> bool:
            return all(min(self.rule(size).sizes(embed_dim, depth, self.stretch)) >= 1 for size in SIZES)

        return next((width for width in range(1, 4097) if enough(width)), 4097)

    def note(self, embed_dim: int) -> str | None:
        """What to know before using the rule at this width."""
        if self.embed_range is None or self.embed_range[0] <= embed_dim <= self.embed_range[1]:
            return None
        low, high = self.embed_range
        return f"{self.name} was learned from EMB {low} to {high}; at {embed_dim} it is an extrapolation"

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for size in SIZES:
            rule = self.rule(size)
            document[size] = {field.name: getattr(rule, field.name) for field in fields(rule)}
            document[size]["eps"] = list(rule.eps)
        document["embed_range"] = None if self.embed_range is None else list(self.embed_range)
        return document

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    @classmethod
    def from_dict(cls, document: object) -> Self:
        """Build from a JSON object; a rule's `eps` may be a number or a list.

        Raises:
            ProfileError: names the field.
        """
        values = dict(_known(cls, document, "a profile", ""))
        for size in SIZES:
            if size not in values:
                raise ProfileError(f"a profile needs the rule {size}", size)
            rule = dict(_known(SizeRule, values[size], f"the rule {size}", f"{size}."))
            if "scale" not in rule:
                raise ProfileError(
                    f"the rule {size} needs a scale: the size at ε 1 is scale · EMB^power", f"{size}.scale"
                )
            if "eps" in rule:
                eps = rule["eps"]
                rule["eps"] = tuple(eps) if isinstance(eps, list | tuple) else (eps,)
            try:
                values[size] = SizeRule(**rule)
            except ProfileError as error:
                raise ProfileError(f"{size}.{error}", f"{size}.{error.field}") from None
        if "name" not in values:
            raise ProfileError("a profile needs a name", "name")
        if isinstance(pair := values.get("embed_range"), list):
            values["embed_range"] = tuple(pair)
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"not JSON: {error}") from None
        return cls.from_dict(document)


def _known(cls: type, document: object, what: str, where: str) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise ProfileError(f"{what} is a JSON object, got {type(document).__name__}", where.rstrip(".") or None)
    known = [field.name for field in fields(cls)]
    for name in document:
        if name not in known:
            raise ProfileError(f"{what} has no field {name!r:.60}; its fields are {', '.join(known)}", f"{where}{name}")
    return document


_LESS_MORE_LESS = (1.0,) * 3 + (2.0,) * 6 + (1.0,) * 3

NVIDIA = Profile(
    "nvidia",
    num_heads=SizeRule(0.01, eps=_LESS_MORE_LESS, multiple=2, edge=10),
    qk_dim=SizeRule(0.05, eps=_LESS_MORE_LESS, multiple=8, edge_eps=2.0),
    v_dim=SizeRule(64, power=0.0),
    mlp_dim=SizeRule(3, eps=_LESS_MORE_LESS),
    source="NVIDIA's released ReViT (revit_scratch.py): heads in pairs, QK in eights, ten heads at both ends",
)
"""The released numbers for 12 blocks, with r = round(0.005 E) and q = round(0.05 E / 8):

    H    10, 2r, 2r, 4r x6, 2r, 2r, 10        the outermost blocks are fixed at 10 heads
    QK   16q, 8q, 8q, 16q x6, 8q, 8q, 16q
    MLP  3E x3, 6E x6, 3E x3
"""

POSTER = Profile(
    "poster",
    num_heads=SizeRule(0.01, eps=_LESS_MORE_LESS),
    qk_dim=SizeRule(0.05, eps=_LESS_MORE_LESS),
    v_dim=SizeRule(64, power=0.0),
    mlp_dim=SizeRule(3, eps=_LESS_MORE_LESS),
    source="the formula of the NViT poster (CVPR 2023), rounded to whole heads and channels, no block apart",
)

DEIT = Profile(
    "deit",
    num_heads=SizeRule(1 / 64),
    qk_dim=SizeRule(64, power=0.0),
    v_dim=SizeRule(64, power=0.0),
    mlp_dim=SizeRule(4),
    source="DeiT's own proportions, as the NViT poster prints them beside ReViT's: all blocks alike",
)

PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (NVIDIA, POSTER, DEIT)}


def profile_named(name: str, others: Mapping[str, Profile] | None = None) -> Profile:
    """
    Args:
        others: profiles of the user's own.

    Raises:
        UnknownNameError: no such profile.
    """
    known = {**(others or {}), **PROFILES}
    if name not in known:
        raise UnknownNameError("profile", name, known)
    return known[name]


def own_profile(
    name: str,
    eps: Mapping[str, Sequence[float]],
    scales: Mapping[str, float] | None = None,
    like: Profile = NVIDIA,
) -> Profile:
    """A profile with other ε per block, or other multipliers, than one that is there.

    Args:
        eps: by size; what is not named stays as it is in `like`. A size named here has no outermost block apart.
        scales: factors on the multipliers of `like`, by size.

    Raises:
        ProfileError: no such size, or numbers that give none.
    """
    for given in (eps, scales or {}):
        for size in given:
            if size not in SIZES:
                raise ProfileError(f"there is no size {size!r:.60}; sizes are {', '.join(SIZES)}", size)
    document = like.to_dict() | {"name": name, "source": f"{like.name}, changed", "embed_range": None}
    for size, factor in (scales or {}).items():
        _check_number(f"scales[{size}]", factor, above=0.0)
        document[size]["scale"] *= factor
    for size, values in eps.items():
        document[size] |= {"eps": list(values), "edge": None, "edge_eps": None}
    return Profile.from_dict(document)
