"""LatencyTable on disk: Parquet, one row a point, everything else as JSON in the schema's metadata.

Columns: part ("block" or "outside"), the five sizes (null for outside, except embed_dim), median_ms, iqr_ms.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latency.errors import TableError, TargetError
from latency.grid import AXES, Grid
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from vit.files import unique_keys, write_atomically

VERSION = "1"
MAX_BYTES = 64 * 2**20
MAX_ROWS = 2_000_000
MAX_COLUMNS = 100
_KEY = b"vitfit"

_SCHEMA = pa.schema(
    [("part", pa.string())]
    + [(axis, pa.int32()) for axis in AXES]
    + [("median_ms", pa.float64()), ("iqr_ms", pa.float64())]
)


def save_table(table: LatencyTable, path: Path) -> None:
    """Write atomically: `path` holds a whole table or what it held before."""
    sizes = _grid_rows(table.grid.axes, np.arange(len(table.grid)))
    embeds = table.grid.embed_dim
    block = {
        "part": ["block"] * len(sizes),
        **dict(zip(AXES, sizes.T, strict=True)),
        "median_ms": table.block_ms.ravel(),
        "iqr_ms": table.block_iqr_ms.ravel(),
    }
    outside = {
        "part": ["outside"] * len(embeds),
        **dict.fromkeys(AXES, [None] * len(embeds)),
        "embed_dim": embeds,
        "median_ms": table.outside_ms,
        "iqr_ms": table.outside_iqr_ms,
    }
    document = {
        "version": VERSION,
        "target": table.target.to_dict(),
        "norm": table.norm,
        "outside": table.outside.to_dict(),
        "provenance": table.provenance.to_dict(),
    }
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(document, sort_keys=True).encode()})
    rows = pa.concat_tables([pa.Table.from_pydict(part, schema=schema) for part in (block, outside)])
    write_atomically(path, lambda temporary: pq.write_table(rows, temporary, compression="zstd"))


def load_table(path: Path, expect: Target | None = None) -> LatencyTable:
    """
    Args:
        expect: the target that the caller wants; another one in the file is an error.

    Raises:
        TableError: missing, truncated, another format or schema version, holes, NaN, unsorted or doubled points.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TableError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; no latency table is")
        if not path.is_file():  # a pipe would be waited for
            raise TableError(f"{path} is no readable Parquet file: not a file at all")
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > MAX_ROWS:
            raise TableError(f"{path} has {file.metadata.num_rows} points; at most {MAX_ROWS} are read")
        if file.metadata.num_columns > MAX_COLUMNS:
            raise TableError(f"{path} has {file.metadata.num_columns} columns; at most {MAX_COLUMNS} are read")
        document = _metadata(path, file.schema_arrow)
        _check_types(path, file.schema_arrow)
        # Texts stay a dictionary: a long one, repeated, would unpack a small file to gigabytes.
        rows = pq.ParquetFile(path, read_dictionary=["part"]).read(columns=_SCHEMA.names)
    except FileNotFoundError:
        raise TableError(f"no table at {path}") from None
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise TableError(f"{path} is no readable Parquet file (truncated or another format): {error}") from None
    try:
        target = Target.from_dict(document["target"])
    except TargetError as error:
        raise TargetError(f"{path}: {error}") from None
    if expect is not None and target != expect:
        raise TableError(f"{path} is a table of {target.slug}, not of {expect.slug}")
    try:
        return _table(rows, target, document)
    except TableError as error:
        raise TableError(f"{path}: {error}") from None


def _metadata(path: Path, schema: pa.Schema) -> dict[str, object]:
    raw = (schema.metadata or {}).get(_KEY)
    if raw is None:
        raise TableError(f"{path} is a Parquet file but no vitfit latency table (no metadata)")
    try:
        document = json.loads(raw, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: its metadata is not JSON, or not that of a table: {error!s:.200}") from None
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise TableError(f"{path} has table version {version!r}, this vitfit reads {VERSION}")
    for name in ("target", "norm", "outside", "provenance"):
        if name not in document:
            raise TableError(f"{path}: its metadata has no {name}")
    for name in _SCHEMA.names:
        if (count := schema.names.count(name)) != 1:
            has = "has no column" if count == 0 else f"has {count} times the column"
            raise TableError(f"{path} {has} {name}; a table has {', '.join(_SCHEMA.names)}")
    result: dict[str, object] = document
    return result


def _check_types(path: Path, schema: pa.Schema) -> None:
    """Before anything is read: numbers take a few bytes a row, texts and lists in their place as many as they like."""
    for wanted in _SCHEMA:
        found = schema.field(wanted.name).type
        number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_null(found)
        text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_dictionary(found)
        if not (text if wanted.name == "part" else number):
            raise TableError(f"{path}: the column {wanted.name} has another type than {wanted.type}: {found!s:.100}")


def _table(rows: pa.Table, target: Target, document: dict[str, object]) -> LatencyTable:
    try:
        if strange := set(pc.unique(rows.column("part")).to_pylist()) - {"block", "outside"}:
            raise TableError(f"a row's part is 'block' or 'outside', not {min(map(repr, strange)):.100}")
        rows = rows.cast(_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise TableError(f"a column has another type than {_SCHEMA.to_string()!r}: {error}") from None
    block = rows.filter(pc.field("part") == "block")
    outside = rows.filter(pc.field("part") == "outside")
    if not block.num_rows:
        raise TableError("no row is of the part 'block'")
    for axis in AXES:
        if block.column(axis).null_count:
            raise TableError(f"a block point has no {axis}")
    sizes = np.stack([block.column(axis).to_numpy() for axis in AXES], axis=1)
    order = _check_order(sizes)
    grid = Grid(**dict(zip(AXES, order, strict=True)))
    embeds = tuple(outside.column("embed_dim").to_pylist())
    if embeds != grid.embed_dim:
        raise TableError(f"outside rows are for embed_dim {embeds}, the grid has {grid.embed_dim}")

    def column(table: pa.Table, name: str) -> np.ndarray:
        return np.asarray(table.column(name).to_numpy(), dtype=np.float64)

    return LatencyTable(
        target=target,
        grid=grid,
        block_ms=column(block, "median_ms").reshape(grid.shape),
        block_iqr_ms=column(block, "iqr_ms").reshape(grid.shape),
        outside=Outside.from_dict(document["outside"]),
        outside_ms=column(outside, "median_ms"),
        outside_iqr_ms=column(outside, "iqr_ms"),
        norm=str(document["norm"]),
        provenance=Provenance.from_dict(document["provenance"]),
    )


def _check_order(sizes: np.ndarray) -> list[tuple[int, ...]]:
    """The axes of a full, sorted product of points; the first point out of place is named."""
    axes = [tuple(int(s) for s in np.unique(sizes[:, index])) for index in range(len(AXES))]
    points = math.prod(len(axis) for axis in axes)
    expected = _grid_rows(axes, np.arange(len(sizes) + 1))
    wrong = np.flatnonzero((sizes != expected[:-1]).any(axis=1))
    if len(wrong) or len(sizes) != points:
        first = int(wrong[0]) if len(wrong) else len(sizes)
        want = dict(zip(AXES, expected[first].tolist(), strict=True)) if first < points else "the end"
        raise TableError(
            f"points must be the full grid in increasing order, last axis fastest: {len(sizes)} points of "
            f"{points}; row {first} should be {want}"
        )
    return axes


def _grid_rows(axes: Sequence[tuple[int, ...]], rows: np.ndarray) -> np.ndarray:
    """Sizes of these rows of a grid, shape (rows, 5), without building the grid, which can be huge for a wrong file."""
    columns: list[np.ndarray] = []
    for axis in reversed(axes):
        rows, index = np.divmod(rows, len(axis))
        columns.insert(0, np.array(axis)[index])
    return np.stack(columns, axis=1)
