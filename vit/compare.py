"""Two architectures side by side, dimension by dimension."""

from dataclasses import dataclass, fields

from vit.architecture import BLOCK_UNITS, SIZE_FIELD, Architecture
from vit.cost import macs, params

Value = int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One dimension: `embed_dim`, or `blocks[3].mlp_dim`; None where one of the two has no such block."""

    dimension: str
    a: Value
    b: Value

    @property
    def same(self) -> bool:
        return self.a == self.b


def compare(a: Architecture, b: Architecture) -> list[Difference]:
    """Every dimension of both: costs, the fields of the whole model, then the sizes of every block."""
    rows = [Difference("params", params(a), params(b)), Difference("macs", macs(a), macs(b))]
    rows += [Difference("depth", a.depth, b.depth), Difference("tokens", a.tokens, b.tokens)]
    for field in fields(Architecture):
        if field.name not in ("blocks", "softmax_scale"):
            rows.append(Difference(field.name, _plain(getattr(a, field.name)), _plain(getattr(b, field.name))))
    for index in range(max(a.depth, b.depth)):
        for unit in BLOCK_UNITS:
            name = SIZE_FIELD[unit]
            sizes = [getattr(one.blocks[index], name) if index < one.depth else None for one in (a, b)]
            rows.append(Difference(f"blocks[{index}].{name}", *sizes))
    scales = zip(_scales(a, b), _scales(b, a), strict=True)
    rows += [Difference(f"softmax_scale[{index}]", one, other) for index, (one, other) in enumerate(scales)]
    return rows


def _scales(arch: Architecture, other: Architecture) -> list[float | None]:
    """Only where one of the two keeps the scale of another size."""
    if arch.softmax_scale is None and other.softmax_scale is None:
        return []
    missing = max(other.depth - arch.depth, 0)
    return [*arch.scales, *[None] * missing]


def _plain(value: object) -> Value:
    if isinstance(value, tuple):
        return " x ".join(str(one) for one in value)
    assert value is None or isinstance(value, int | float | str)
    return value
