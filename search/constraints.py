"""What a search may choose from: steps and smallest sizes per unit, what stays as it is, what all blocks share.

    Constraints(multiples={Unit.MLP: 32}, minimum={Unit.MLP: 512}, fix_embed_dim="whole", protect=(0, 11))

One value for every search (frontier, greedy, several targets) and every edge (Python, command line, REST, files).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from search.errors import ConstraintError
from vit.architecture import MAX_SIZE, SIZE_FIELD, Architecture, Unit
from vit.groups import EMBED, Group, groups, size

DEFAULT_MULTIPLES: Mapping[Unit, int] = {
    Unit.EMBED: 8,
    Unit.HEAD: 1,
    Unit.QK: 8,
    Unit.V: 8,
    Unit.MLP: 8,
}
"""Sizes are cut in steps of this many units; hardware likes multiples of 8 channels."""

WHOLE: Literal["whole"] = "whole"


def sizes_to_try(largest: int, step: int, bounds: tuple[int, int]) -> list[int]:
    """Multiples of `step` within the bounds that were profiled, and `largest` itself."""
    low, high = bounds
    sizes = set(range(step, largest, step)) | {largest}
    return sorted(s for s in sizes if low <= s <= min(high, largest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """
    Attributes:
        multiples: step of the sizes per unit, DEFAULT_MULTIPLES where not named; a unit's whole size may always stay.
        minimum: smallest size per unit, where named.
        fix_embed_dim: `whole` keeps EMBED as it is, a size cuts it to that one (which need not be a multiple).
        equal_blocks: all blocks get the same H, QK, V and MLP; they have to be equal to begin with.
        protect: indices of blocks that keep their H, QK, V and MLP, sorted.
        protect_sizes: sizes that stay as they are, by name: `qk_dim` in all blocks, `3.mlp_dim` in block 3.

    Raises:
        ConstraintError: a value that is none, or two that contradict each other; names the field.
    """

    multiples: Mapping[Unit, int] = field(default_factory=dict)
    minimum: Mapping[Unit, int] = field(default_factory=dict)
    fix_embed_dim: int | Literal["whole"] | None = None
    equal_blocks: bool = False
    protect: tuple[int, ...] = ()
    protect_sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        multiples = {**DEFAULT_MULTIPLES, **self.multiples}
        object.__setattr__(self, "multiples", _sizes_by_unit("multiples", multiples))
        object.__setattr__(self, "minimum", _sizes_by_unit("minimum", self.minimum))
        fixed = self.fix_embed_dim
        if fixed is not None and fixed != WHOLE:
            _check_size("fix_embed_dim", fixed, f"'{WHOLE}' or ")
            if fixed < self.minimum.get(Unit.EMBED, 1):
                raise ConstraintError(
                    f"fix_embed_dim {fixed} is below the minimum embed_dim {self.minimum[Unit.EMBED]}", "fix_embed_dim"
                )
        if not isinstance(self.equal_blocks, bool):
            raise ConstraintError(f"equal_blocks is true or false, got {self.equal_blocks!r:.100}", "equal_blocks")
        if any(isinstance(index, bool) or not isinstance(index, int) or index < 0 for index in self.protect):
            raise ConstraintError(
                f"protect holds indices of blocks, counted from 0, got {list(self.protect)!r:.100}", "protect"
            )
        object.__setattr__(self, "protect", tuple(sorted(set(self.protect))))
        object.__setattr__(self, "protect_sizes", tuple(sorted(set(self.protect_sizes), key=str)))
        named = [_named_size(name) for name in self.protect_sizes]
        if self.equal_blocks and any(group.block is not None for group in named):
            raise ConstraintError(
                "equal_blocks and a protected size of one block contradict each other: all of them would keep it",
                "protect_sizes",
            )
        if self.equal_blocks and self.protect:
            raise ConstraintError(
                "equal_blocks and protect contradict each other: one protected block would keep all of them", "protect"
            )

    def check(self, arch: Architecture) -> None:
        """
        Raises:
            ConstraintError: a constraint that `arch` cannot meet, even uncut.
        """
        for group in groups(arch):
            least, own = self.minimum.get(group.unit, 1), size(arch, group)
            if least > own:
                raise ConstraintError(
                    f"minimum {SIZE_FIELD[group.unit]} {least} is more than the model has ({group}: {own})", "minimum"
                )
        if self.fix_embed_dim not in (None, WHOLE) and int(self.fix_embed_dim) > arch.embed_dim:
            raise ConstraintError(
                f"fix_embed_dim {self.fix_embed_dim} is more than the model's embed_dim {arch.embed_dim}",
                "fix_embed_dim",
            )
        if self.equal_blocks and len(set(arch.blocks)) > 1:
            other = next(index for index, shape in enumerate(arch.blocks) if shape != arch.blocks[0])
            raise ConstraintError(
                f"equal_blocks needs a model of equal blocks; block {other} has other sizes than block 0",
                "equal_blocks",
            )
        if self.protect and self.protect[-1] >= arch.depth:
            raise ConstraintError(
                f"there is no block {self.protect[-1]} to protect; the model's are 0 to {arch.depth - 1}", "protect"
            )

        for name in self.protect_sizes:
            if (_named_size(name).block or 0) >= arch.depth:
                raise ConstraintError(
                    f"there is no {name} to protect; the model's blocks are 0 to {arch.depth - 1}", "protect_sizes"
                )

    def _keeps(self, group: Group) -> bool:
        """Whether a group of units is protected, by its block or by its name."""
        field_name = SIZE_FIELD[group.unit]
        return group.block in self.protect or not {field_name, f"{group.block}.{field_name}"}.isdisjoint(
            self.protect_sizes
        )

    def sizes(self, arch: Architecture, group: Group, bounds: Mapping[str, tuple[int, int]]) -> list[int]:
        """Sizes that a group of `arch` may be cut to, ascending; none where a table does not cover any.

        Args:
            bounds: smallest and largest size that a table covers, per axis of `latency.grid.AXES`.
        """
        own, (low, high) = size(arch, group), bounds[SIZE_FIELD[group.unit]]
        if self._keeps(group):
            allowed = [own]
        elif group == EMBED and self.fix_embed_dim is not None:
            allowed = [own if self.fix_embed_dim == WHOLE else int(self.fix_embed_dim)]
        else:
            allowed = sizes_to_try(own, self.multiples[group.unit], (low, high))
        return [n for n in allowed if max(low, self.minimum.get(group.unit, 1)) <= n <= high]

    def without(self) -> Iterator[tuple[str, "Constraints"]]:
        """Every constraint that was asked for, in words, with all the others."""
        for unit, least in self.minimum.items():
            others = {other: n for other, n in self.minimum.items() if other is not unit}
            yield f"minimum {SIZE_FIELD[unit]} {least}", replace(self, minimum=others)
        for unit, step in self.multiples.items():
            if step > DEFAULT_MULTIPLES[unit]:
                others = {other: n for other, n in self.multiples.items() if other is not unit}
                yield f"multiples of {step} for {SIZE_FIELD[unit]}", replace(self, multiples=others)
        if self.fix_embed_dim is not None:
            size_ = "" if self.fix_embed_dim == WHOLE else f" {self.fix_embed_dim}"
            yield f"fixed embed_dim{size_}", replace(self, fix_embed_dim=None)
        if self.equal_blocks:
            yield "equal blocks", replace(self, equal_blocks=False)
        if self.protect:
            yield f"protected blocks {', '.join(map(str, self.protect))}", replace(self, protect=())
        if self.protect_sizes:
            yield f"protected {', '.join(self.protect_sizes)}", replace(self, protect_sizes=())

    def lifted(self) -> "Constraints":
        """Without any of them; steps that are finer than by default stay."""
        return Constraints(multiples={unit: min(n, DEFAULT_MULTIPLES[unit]) for unit, n in self.multiples.items()})

    def to_dict(self) -> dict[str, Any]:
        """The spelling of REST and files: sizes by the field that they are of."""
        return {
            "multiples": {SIZE_FIELD[unit]: step for unit, step in self.multiples.items()},
            "minimum": {SIZE_FIELD[unit]: least for unit, least in self.minimum.items()},
            "fix_embed_dim": self.fix_embed_dim,
            "equal_blocks": self.equal_blocks,
            "protect": list(self.protect),
            "protect_sizes": list(self.protect_sizes),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """From `to_dict`; what is not named is not constrained.

        Raises:
            ConstraintError: an unknown field or unit, or a value that is none.
        """
        if unknown := set(document) - set(cls.__slots__):
            raise ConstraintError(f"unknown constraint {min(unknown)!r:.100}; known: {', '.join(cls.__slots__)}")
        values = dict(document)
        for name in ("multiples", "minimum"):
            by_field = values.get(name) or {}
            units = {SIZE_FIELD[unit]: unit for unit in Unit}
            if not isinstance(by_field, Mapping) or not set(by_field) <= set(units):
                raise ConstraintError(f"{name} has the fields {', '.join(units)}, got {by_field!r:.200}", name)
            values[name] = {units[name_]: n for name_, n in by_field.items()}
        for name in ("protect", "protect_sizes"):
            values[name] = tuple(values.get(name) or ())
        return cls(**values)


def _named_size(name: object) -> Group:
    """`qk_dim` or `3.qk_dim`; of the first, the block is left open."""
    units = {size_field: unit for unit, size_field in SIZE_FIELD.items()}
    if isinstance(name, str):
        block, _, last = name.rpartition(".")
        if last in units and (not block or (block.isdecimal() and units[last] is not Unit.EMBED)):
            return Group(units[last], int(block) if block else None)
    raise ConstraintError(
        f"protect_sizes holds names of sizes, {', '.join(units)}, of one block as 3.mlp_dim, got {name!r:.60}",
        "protect_sizes",
    )


def _check_size(name: str, value: object, or_else: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise ConstraintError(f"{name} is {or_else}a whole number from 1 to {MAX_SIZE}, got {value!r:.100}", name)


def _sizes_by_unit(name: str, given: Mapping[Unit, int]) -> Mapping[Unit, int]:
    """In the order of units, so that equal constraints are written alike."""
    for unit, value in given.items():
        if unit not in set(Unit):
            raise ConstraintError(f"{name} is given per unit ({', '.join(Unit)}), got {unit!r:.100}", name)
        try:
            _check_size(f"{name} of {SIZE_FIELD[Unit(unit)]}", value)
        except ConstraintError as error:
            raise ConstraintError(str(error), name) from None
    return {unit: given[unit] for unit in Unit if unit in given}
