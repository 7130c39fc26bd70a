"""Tables as CSV: one row a point, the unit in the header, all the rest as JSON in a first line that may be absent.

    # vitfit: {"version": "1", "target": {...}, "norm": "layer", "outside": {...}, "provenance": {...}}
    part,embed_dim,num_heads,qk_dim,v_dim,mlp_dim,median_ms,iqr_ms
    block,256,3,16,16,128,12.3,0.1
    outside,256,,,,,1.5,0.01

Columns may stand in any order, and `median_s`, `median_us` (`iqr_s`, `iqr_us`) are converted; a time without a unit is
refused. Rows stand in increasing order as in a grid, last axis fastest, so that a file that was cut and pasted together
is noticed. Without `iqr_*` the spread is 0, as where none was measured. Numbers survive bit for bit in ms.
"""

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from latency.errors import TableError
from latency.grid import AXES
from latency.interop.common import Description, Point, described, full_grid, outside_times, scaled, size_of
from latency.storage import VERSION
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from vit.files import unique_keys

PREFIX = "# vitfit:"
UNITS: Mapping[str, int] = {"ms": 0, "s": 3, "us": -3}
"""Powers of ten to milliseconds."""

_FIELDS = ("version", "target", "norm", "outside", "provenance")
_HEADER = ("part", *AXES, "median_ms", "iqr_ms")

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as read; `point` is None outside the blocks."""

    embed_dim: int
    point: Point | None
    median_ms: float
    iqr_ms: float


def read_csv(text: str, description: Description) -> LatencyTable:
    """
    Raises:
        TableError: a line, column or point that is wrong, the first one named; or something that nobody says.
    """
    lines = io.StringIO(text, newline="")
    metadata, header, skipped = _head(lines)
    rows = _rows(lines, header, skipped)
    blocks = [row for row in rows if row.point is not None]
    points = [row.point for row in blocks if row.point is not None]
    grid, order = full_grid(points)
    unsorted = np.flatnonzero(order != np.arange(len(order)))
    if len(unsorted):
        first = int(unsorted[0])
        raise TableError(
            f"points must stand in increasing order, last axis fastest: {described(points[first])} stands where "
            f"{described(points[int(order[first])])} should"
        )
    outside_ms, outside_iqr_ms = _outside(rows, description, grid.embed_dim)
    return LatencyTable(
        target=_agreed("target", metadata.get("target"), description.target),
        grid=grid,
        block_ms=np.array([row.median_ms for row in blocks]).reshape(grid.shape),
        block_iqr_ms=np.array([row.iqr_ms for row in blocks]).reshape(grid.shape),
        outside=_agreed("outside", metadata.get("outside"), description.outside),
        outside_ms=outside_ms,
        outside_iqr_ms=outside_iqr_ms,
        norm=_agreed("norm", metadata.get("norm"), description.norm),
        provenance=_provenance(metadata.get("provenance"), description),
    )


def write_csv(table: LatencyTable) -> str:
    """All of a table; `read_csv` gives back an equal one."""
    document = {
        "version": VERSION,
        "target": table.target.to_dict(),
        "norm": table.norm,
        "outside": table.outside.to_dict(),
        "provenance": table.provenance.to_dict(),
    }
    lines = io.StringIO()
    lines.write(f"{PREFIX} {json.dumps(document, sort_keys=True)}\n")
    rows = csv.writer(lines, lineterminator="\n")
    rows.writerow(_HEADER)
    times = zip(table.block_ms.ravel().tolist(), table.block_iqr_ms.ravel().tolist(), strict=True)
    for (embed, b), (ms, iqr_ms) in zip(table.grid.points(), times, strict=True):
        rows.writerow(("block", embed, b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim, repr(ms), repr(iqr_ms)))
    outside = zip(table.grid.embed_dim, table.outside_ms.tolist(), table.outside_iqr_ms.tolist(), strict=True)
    rows.writerows(("outside", embed, "", "", "", "", repr(ms), repr(iqr_ms)) for embed, ms, iqr_ms in outside)
    return lines.getvalue()


def _head(lines: io.StringIO) -> tuple[dict[str, Any], list[str], int]:
    """Metadata, the header's columns, and how many lines they took; other lines that start with # are remarks."""
    metadata: dict[str, Any] = {}
    for count in itertools.count(1):
        line = lines.readline()
        if line.startswith(PREFIX):
            if metadata:
                raise TableError(f"line {count}: a second line {PREFIX}")
            metadata = _metadata(line.removeprefix(PREFIX))
        elif not line.startswith("#"):
            header = [name.strip() for name in line.rstrip("\r\n").split(",")]
            return metadata, header, count
    raise AssertionError("count() never ends")


def _metadata(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise TableError(f"what follows {PREFIX} is no JSON of a table: {error!s:.200}") from None
    if not isinstance(document, dict):
        raise TableError(f"what follows {PREFIX} must be an object of {', '.join(_FIELDS)}")
    if (version := document.get("version")) != VERSION:
        raise TableError(f"has table version {version!r:.40}, this vitfit reads {VERSION}")
    for name in _FIELDS:
        if name not in document:
            raise TableError(f"its metadata has no {name}")
    if not isinstance(document["norm"], str):
        raise TableError(f"norm must be text, got {document['norm']!r:.40}")
    return {
        "target": Target.from_dict(document["target"]),
        "norm": document["norm"],
        "outside": Outside.from_dict(document["outside"]),
        "provenance": Provenance.from_dict(document["provenance"]),
    }


def _unit(header: Sequence[str], name: str) -> str | None:
    """The unit of the column `name`, None where there is no such column."""
    if name in header:
        raise TableError(f"column {name} has no unit; call it {', '.join(f'{name}_{unit}' for unit in UNITS)}")
    found = [unit for unit in UNITS if f"{name}_{unit}" in header]
    if len(found) > 1:
        raise TableError(f"has both {name}_{found[0]} and {name}_{found[1]}; one of them is enough")
    return found[0] if found else None


def _rows(lines: io.StringIO, header: list[str], skipped: int) -> list[_Row]:
    median, iqr = _unit(header, "median"), _unit(header, "iqr")
    if median is None:
        raise TableError(f"has no column median_ms (or median_s, median_us), but {', '.join(header)!r:.200}")
    known = {"part", *AXES, f"median_{median}", f"iqr_{iqr}"}
    for name in ("part", *AXES):
        if name not in header:
            raise TableError(f"has no column {name}; a table has {', '.join(_HEADER)}")
    for name in header:
        if name not in known:
            raise TableError(f"has the unknown column {name!r:.40}; a table has {', '.join(_HEADER)}")
        if header.count(name) > 1:
            raise TableError(f"has the column {name} twice")
    rows = []
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            if not cells:
                continue
            line = skipped + reader.line_num
            if len(cells) != len(header):
                raise TableError(f"line {line} has {len(cells)} cells, the header {len(header)}")
            try:
                rows.append(_row(dict(zip(header, cells, strict=True)), median, iqr))
            except TableError as error:
                raise TableError(f"line {line}: {error}") from None
    except csv.Error as error:
        raise TableError(f"line {skipped + reader.line_num} is no CSV: {error}") from None
    return rows


def _row(cells: Mapping[str, str], median: str, iqr: str | None) -> _Row:
    part = cells["part"].strip()
    if part not in ("block", "outside"):
        raise TableError(f"part must be block or outside, got {part!r:.40}")
    embed = size_of(cells["embed_dim"].strip(), "embed_dim")
    point: Point | None = None
    if part == "block":
        heads, qk_dim, v_dim, mlp = (size_of(cells[axis].strip(), axis) for axis in AXES[1:])
        point = (embed, heads, qk_dim, v_dim, mlp)
    elif given := [axis for axis in AXES[1:] if cells[axis].strip()]:
        raise TableError(f"{given[0]} of a row outside the blocks must be empty, got {cells[given[0]]!r:.40}")
    median_ms = _time(cells, "median", median)
    if not (0 < median_ms < float("inf") or (median_ms == 0 and point is None)):
        where = described(point) if point else f"outside the blocks at embed_dim={embed}"
        raise TableError(f"{where}: a time is positive and finite, got {cells[f'median_{median}']!r:.40}")
    iqr_ms = 0.0 if iqr is None else _time(cells, "iqr", iqr)
    if not 0 <= iqr_ms < float("inf"):
        raise TableError(f"iqr_{iqr} is finite and not negative, got {cells[f'iqr_{iqr}']!r:.40}")
    return _Row(embed, point, median_ms, iqr_ms)


def _time(cells: Mapping[str, str], name: str, unit: str) -> float:
    text = cells[f"{name}_{unit}"]
    try:
        return scaled(text, UNITS[unit])
    except ValueError:
        raise TableError(f"{name}_{unit} must be a number, got {text!r:.40}") from None


def _outside(
    rows: Sequence[_Row], description: Description, embed_dims: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Medians and spreads outside the blocks, from the file's rows or, where it has none, from the caller."""
    found = [row for row in rows if row.point is None]
    if not found:
        if description.outside_ms is None:
            raise TableError("has no row outside the blocks; give outside_ms")
        return outside_times(description.outside_ms, embed_dims), np.zeros(len(embed_dims))
    if description.outside_ms is not None:
        raise TableError("has rows outside the blocks; outside_ms is not to be given again")
    for before, row in itertools.pairwise(found):
        if row.embed_dim <= before.embed_dim:
            raise TableError(
                f"rows outside the blocks must stand in increasing order, got embed_dim={row.embed_dim} after "
                f"{before.embed_dim}"
            )
    medians = outside_times({row.embed_dim: row.median_ms for row in found}, embed_dims)
    return medians, np.array([row.iqr_ms for row in found])


def _agreed(name: str, in_file: V | None, given: V | None) -> V:
    """What the file says or, where it is silent, what the caller says."""
    if in_file is not None and given is not None and in_file != given:
        raise TableError(
            f"says that {name} is {_said(in_file)}, not {_said(given)}; what a file says need not be given"
        )
    value = given if in_file is None else in_file
    if value is None:
        raise TableError(f"does not say {name}; give what it was")
    return value


def _said(value: object) -> str:
    return value.slug if isinstance(value, Target) else str(value)


def _provenance(in_file: Provenance | None, description: Description) -> Provenance:
    if in_file is None:
        return Provenance(
            kind="imported",
            created_at=description.imported_at,
            method="imported from CSV",
            source=description.source or "",
            license=description.license or "",
        )
    for name in ("source", "license"):
        if (given := getattr(description, name)) is not None:
            _agreed(name, getattr(in_file, name), given)
    return in_file
