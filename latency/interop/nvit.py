"""NViT's table format: nested JSON, seconds per block.

    {"EMB_256": {"QK_3_16": {"V_16": {"MLP_128": 0.0123}}}}       QK_{num_heads}_{qk_dim}

Nothing else is in the file: no target, no unit, no spread, no time outside the blocks. See `Description`.

**Exactness.** The table holds milliseconds. Here and there two doubles of seconds share one nearest double of
milliseconds, or the other way round, so no conversion between doubles inverts always. Decimals do: their point moves,
and one rounding follows. With `milliseconds` for reading and `seconds` for writing

* table -> JSON -> table is exact, bit for bit, for every time;
* JSON -> table -> JSON is exact for every time of up to 15 digits; of longer ones a few in a hundred, those whose
  milliseconds are a neighbour's too, come back as that neighbour.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from latency.errors import TableError
from latency.interop.common import Description, Point, described, full_grid, outside_times, scaled, size_of
from latency.table import LatencyTable, Provenance

_LEVELS = (
    (re.compile("EMB_([^_]*)"), ("embed_dim",), "EMB_{embed_dim}"),
    (re.compile("QK_([^_]*)_([^_]*)"), ("num_heads", "qk_dim"), "QK_{num_heads}_{qk_dim}"),
    (re.compile("V_([^_]*)"), ("v_dim",), "V_{v_dim}"),
    (re.compile("MLP_([^_]*)"), ("mlp_dim",), "MLP_{mlp_dim}"),
)
"""Keys from the outermost level to the innermost."""

_SURE_DIGITS = 15
"""A decimal of this many digits survives a double."""


class _Number(str):
    """A number as it is spelled; text in quotes stays a plain str."""


class _Members(list[tuple[str, Any]]):
    """A JSON object with all of its members, the doubled ones too."""


def read_nvit(text: str, description: Description) -> LatencyTable:
    """
    Raises:
        TableError: no such JSON, doubled keys, holes, times that are none; the first offending point is named.
    """
    document = _parse(text)
    if not isinstance(document, _Members):
        raise TableError('is no JSON object; NViT tables start with {"EMB_...": ...}')
    points, times = [], []
    for point, value in _leaves(document):
        points.append(point)
        times.append(_milliseconds(value, point))
    # The order of members means nothing in JSON (RFC 8259): any is read.
    grid, order = full_grid(points)
    block_ms = np.array(times)[order].reshape(grid.shape)
    target, norm, outside, outside_ms = (
        description.target,
        description.norm,
        description.outside,
        description.outside_ms,
    )
    if target is None or norm is None or outside is None or outside_ms is None:
        missing = [name for name in ("target", "norm", "outside", "outside_ms") if getattr(description, name) is None]
        raise TableError(f"NViT's format does not say {', '.join(missing)}; give what it was")
    return LatencyTable(
        target=target,
        grid=grid,
        block_ms=block_ms,
        block_iqr_ms=np.zeros(grid.shape),
        outside=outside,
        outside_ms=outside_times(outside_ms, grid.embed_dim),
        outside_iqr_ms=np.zeros(len(grid.embed_dim)),
        norm=norm,
        provenance=Provenance(
            kind="imported",
            created_at=description.imported_at,
            method="imported from NViT's format (seconds per block); time outside the blocks as given at import",
            source=description.source or "",
            license=description.license or "",
        ),
    )


def write_nvit(table: LatencyTable) -> str:
    """The blocks alone: target, time outside the blocks, spread and provenance have no place in the format."""
    tree: dict[str, Any] = {}
    for (embed, block), ms in zip(table.grid.points(), table.block_ms.ravel().tolist(), strict=True):
        sizes = {
            "embed_dim": embed,
            "num_heads": block.num_heads,
            "qk_dim": block.qk_dim,
            "v_dim": block.v_dim,
            "mlp_dim": block.mlp_dim,
        }
        *path, leaf = (pattern.format(**sizes) for _, _, pattern in _LEVELS)
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = seconds(ms)
    return _spelled(tree) + "\n"


def milliseconds(text: str) -> float:
    """Milliseconds of a number of seconds as it is spelled.

    What json.dumps writes for a double of more than 15 digits stands for that double; everything else for its decimal.

    Raises:
        ValueError: no number.
    """
    if _digits(text) > _SURE_DIGITS and text == repr(float(text)):
        return float(text) * 1000
    return scaled(text, 3)


def seconds(ms: float) -> str:
    """Seconds as a JSON number of which `milliseconds` makes `ms` again: a double's spelling, where there is one."""
    mantissa, _, exponent = repr(ms).partition("e")
    power = int(exponent or 0) - 3
    if _digits(mantissa) <= _SURE_DIGITS:
        return repr(float(f"{mantissa}e{power}"))
    near = ms / 1000
    for candidate in (near, math.nextafter(near, 0.0), math.nextafter(near, math.inf)):
        if milliseconds(repr(candidate)) == ms:
            return repr(candidate)
    return f"{mantissa}0e{power}"  # the last zero: no double is spelled so, and it is read as a decimal


def _digits(number: str) -> int:
    """Significant digits of a number as it is spelled."""
    return len(number.partition("e")[0].replace(".", "").strip("-0"))


def _parse(text: str) -> object:
    try:
        return json.loads(
            text, object_pairs_hook=_Members, parse_float=_Number, parse_int=_Number, parse_constant=_Number
        )
    except RecursionError:
        raise TableError("is nested far deeper than EMB > QK > V > MLP") from None
    except ValueError as error:
        raise TableError(f"is no JSON (truncated or another format): {error}") from None


def _leaves(members: _Members, level: int = 0, above: tuple[str, ...] = ()) -> Iterator[tuple[Point, object]]:
    """Every point with what stands there. At most four levels deep, whatever the document."""
    pattern, names, spelling = _LEVELS[level]
    seen: set[str] = set()
    if not members:
        raise TableError(f"{' > '.join(above) or 'the document'} is empty; it has keys {spelling}")
    for key, value in members:
        path = (*above, key)
        where = " > ".join(path)
        if key in seen:
            raise TableError(f"{where:.200} is there twice")
        seen.add(key)
        if (match := pattern.fullmatch(key)) is None:
            raise TableError(f"{where:.200}: keys here are {spelling}")
        for name, size in zip(names, match.groups(), strict=True):
            try:
                size_of(size, name)
            except TableError as error:
                raise TableError(f"{where:.200}: {error}") from None
        if level == len(_LEVELS) - 1:
            yield _point(path), value
        elif isinstance(value, _Members):
            yield from _leaves(value, level + 1, path)
        else:
            raise TableError(f"{where} must hold {_LEVELS[level + 1][2]}, got {_shown(value)}")


def _point(path: tuple[str, ...]) -> Point:
    embed, heads, qk_dim, v_dim, mlp = (int(size) for key in path for size in key.split("_")[1:])
    return embed, heads, qk_dim, v_dim, mlp


def _milliseconds(value: object, point: Point) -> float:
    if not isinstance(value, _Number):
        raise TableError(f"{described(point)}: a time is a number of seconds, got {_shown(value)}")
    try:
        ms = milliseconds(value)
    except ValueError:
        raise TableError(f"{described(point)}: a time is a number of seconds, got {value!s:.40}") from None
    if not 0 < ms < math.inf:
        raise TableError(f"{described(point)}: a time is a positive number of seconds, got {value!s:.40}")
    return ms


def _shown(value: object) -> str:
    """A JSON value as the file has it, short."""
    if isinstance(value, _Members):
        return "an object"
    return str(value) if isinstance(value, _Number) else f"{json.dumps(value, default=str):.40}"


def _spelled(node: Mapping[str, Any] | str) -> str:
    if isinstance(node, str):
        return node
    return "{" + ", ".join(f'"{key}": {_spelled(value)}' for key, value in node.items()) + "}"
