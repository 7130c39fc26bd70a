"""A table survives the disk whole, or the file is refused with the first thing that is wrong with it."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from latency import storage
from latency.errors import TableError, TargetError
from latency.grid import Grid
from latency.storage import load_table, save_table
from latency.table import Provenance
from latency.target import Target
from tests.reference import GRID, random_table

PROVENANCE = Provenance(
    kind="measured",
    created_at="2026-01-02T03:04:05+00:00",
    method='a sentence with ümlauts and "quotes"',
    device="A Device",
    driver="1.2",
    clocks="1,410 MHz",
    versions={"torch": "2.6", "python": "3.11"},
    created_by="host",
    source="somewhere",
    license="CC0",
    quality={"drift": 1.02, "visits": 300.0},
)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "table.parquet"
    save_table(random_table(0, provenance=PROVENANCE), target)
    return target


def rewrite(path, change):
    """Write the file again with its rows changed."""
    pq.write_table(change(pq.ParquetFile(path).read()), path)


def rewrite_metadata(path, change):
    def changed(rows):
        document = json.loads(rows.schema.metadata[b"vitfit"])
        change(document)
        return rows.replace_schema_metadata({b"vitfit": json.dumps(document).encode()})

    rewrite(path, changed)


def set_cell(rows, column, row, value):
    values = rows.column(column).to_pylist()
    values[row] = value
    index = rows.column_names.index(column)
    return rows.set_column(index, column, pa.array(values, rows.schema.field(column).type))


def without(rows, index):
    return pa.concat_tables([rows.slice(0, index), rows.slice(index + 1)])


@pytest.mark.parametrize("seed", range(3))
def test_a_table_survives_the_disk_in_every_field(tmp_path, seed):
    grid = Grid((5, 1000), (2,), (1, 7, 64), (3,), (9, 10))
    for table in (random_table(seed, provenance=PROVENANCE), random_table(seed, grid, provenance=PROVENANCE)):
        save_table(table, tmp_path / "t.parquet")
        found = load_table(tmp_path / "t.parquet", expect=table.target)
        for field in dataclasses.fields(table):
            expected, value = getattr(table, field.name), getattr(found, field.name)
            same = np.array_equal(value, expected) if isinstance(expected, np.ndarray) else value == expected
            assert same, field.name


def test_a_failing_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def half_written(rows, temporary, **_):
        temporary.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(storage.pq, "write_table", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_table(random_table(1), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("row", [0, 40, 161])
def test_a_missing_point_is_refused_and_named(path, row):
    embed, shape = GRID.point(row)
    rewrite(path, lambda rows: without(rows, row))
    with pytest.raises(TableError, match=f"161 points of 162; row {row} should be") as caught:
        load_table(path)
    sizes = {name: getattr(shape, name) for name in ("num_heads", "qk_dim", "v_dim", "mlp_dim")}
    assert str({"embed_dim": embed} | sizes) in str(caught.value)


@pytest.mark.parametrize("row", [0, 40, 161])
def test_a_doubled_point_is_refused_and_named(path, row):
    rewrite(path, lambda rows: pa.concat_tables([rows.slice(0, row + 1), rows.slice(row)]))
    with pytest.raises(TableError, match=f"163 points of 162; row {row + 1} should be"):
        load_table(path)


def test_unsorted_points_are_refused_and_the_first_is_named(path):
    order = np.arange(165)
    order[[7, 9]] = order[[9, 7]]
    rewrite(path, lambda rows: rows.take(pa.array(order)))
    with pytest.raises(TableError, match=r"162 points of 162; row 7 should be \{'embed_dim': 4, 'num_heads': 1"):
        load_table(path)


def test_a_file_of_scattered_points_is_refused_without_building_their_grid(path):
    def scattered(rows):
        sizes = np.arange(1, 3001)
        columns = dict.fromkeys(rows.column_names[1:6], sizes)
        times = np.ones(3000)
        part = ["block"] * 3000
        new = {"part": part, **columns, "median_ms": times, "iqr_ms": times}
        return pa.Table.from_pydict(new, schema=rows.schema)

    rewrite(path, scattered)
    with pytest.raises(TableError, match="3000 points of 243000000000000000; row 1 should be"):
        load_table(path)


@pytest.mark.parametrize("wrong", [float("nan"), 0.0, -1.0, float("inf"), None])
def test_a_time_that_is_no_positive_number_is_refused_and_its_point_named(path, wrong):
    rewrite(path, lambda rows: set_cell(rows, "median_ms", 9, wrong))
    with pytest.raises(TableError, match="1 of 162 points have no valid time, first embed_dim=4 num_heads=1 qk_dim=4"):
        load_table(path)


def test_a_missing_size_is_refused(path):
    rewrite(path, lambda rows: set_cell(rows, "qk_dim", 9, None))
    with pytest.raises(TableError, match="a block point has no qk_dim"):
        load_table(path)


def test_a_size_below_one_is_refused(path):
    rewrite(path, lambda rows: rows.set_column(3, "qk_dim", pc.subtract(rows.column("qk_dim"), 2)))
    with pytest.raises(TableError, match="grid axis qk_dim: sizes are whole numbers from 1, got 0"):
        load_table(path)


def test_a_width_without_its_part_outside_the_blocks_is_refused(path):
    rewrite(path, lambda rows: without(rows, 163))
    with pytest.raises(TableError, match=r"outside rows are for embed_dim \(4, 12\), the grid has \(4, 8, 12\)"):
        load_table(path)


def test_a_file_without_block_points_is_refused(path):
    rewrite(path, lambda rows: rows.slice(162))
    with pytest.raises(TableError, match="no row is of the part 'block'"):
        load_table(path)
    rewrite(path, lambda rows: rows.slice(0, 0))
    with pytest.raises(TableError, match="no row is of the part 'block'"):
        load_table(path)


def test_another_target_than_expected_is_refused(path):
    other = Target("testbed", "eager", "fp32", 4, 5)
    with pytest.raises(TableError, match="is a table of testbed-eager-fp32-b2-n5, not of testbed-eager-fp32-b4-n5"):
        load_table(path, expect=other)


def test_another_schema_version_is_refused(path):
    rewrite_metadata(path, lambda document: document.update(version="2"))
    with pytest.raises(TableError, match="has table version '2', this vitfit reads 1"):
        load_table(path)


@pytest.mark.parametrize("name", ["target", "norm", "outside", "provenance"])
def test_metadata_without_a_field_is_refused(path, name):
    rewrite_metadata(path, lambda document: document.pop(name))
    with pytest.raises(TableError, match=f"its metadata has no {name}"):
        load_table(path)


@pytest.mark.parametrize("name", ["outside", "provenance"])
@pytest.mark.parametrize("value", [None, [], "x", {}, {"image_size": 3}])
def test_malformed_metadata_is_refused(path, name, value):
    rewrite_metadata(path, lambda document: document.update({name: value}))
    with pytest.raises(TableError, match=name):
        load_table(path)


@pytest.mark.parametrize("value", [None, [], {}, {"device": "x"}])
def test_a_malformed_target_is_refused(path, value):
    rewrite_metadata(path, lambda document: document.update(target=value))
    with pytest.raises(TargetError, match="a target has the fields device, runtime, dtype, batch, tokens"):
        load_table(path)


@pytest.mark.parametrize("raw", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_metadata_that_is_no_json_is_refused(path, raw):
    rewrite(path, lambda rows: rows.replace_schema_metadata({b"vitfit": raw}))
    with pytest.raises(TableError, match="its metadata is not JSON"):
        load_table(path)


def test_somebody_elses_parquet_file_is_refused(path):
    rewrite(path, lambda rows: rows.replace_schema_metadata(None))
    with pytest.raises(TableError, match="is a Parquet file but no vitfit latency table"):
        load_table(path)


@pytest.mark.parametrize("column", ["part", "embed_dim", "mlp_dim", "median_ms", "iqr_ms"])
def test_a_missing_column_is_named(path, column):
    rewrite(path, lambda rows: rows.drop_columns([column]))
    with pytest.raises(TableError, match=f"has no column {column}"):
        load_table(path)


@pytest.mark.parametrize("column", ["qk_dim", "median_ms"])
def test_a_column_of_another_type_is_refused(path, column):
    def as_words(rows):
        index = rows.column_names.index(column)
        return rows.set_column(index, column, pa.array(["many"] * rows.num_rows))

    rewrite(path, as_words)
    with pytest.raises(TableError, match=f"the column {column} has another type"):
        load_table(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(TableError, match="is no readable Parquet file"):
        load_table(path)


def test_bytes_changed_on_disk_are_refused_or_harmless(path):
    whole = path.read_bytes()
    table = load_table(path)
    for index in range(0, len(whole), 41):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0xFF]) + whole[index + 1 :])
        try:
            found = load_table(path)
        except (TableError, TargetError):
            continue
        assert found.block_ms.shape == table.block_ms.shape


@pytest.mark.parametrize("content", [b"hello", b"{}", b"PAR1", b"PAR1" * 10])
def test_a_file_that_is_no_parquet_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(TableError, match="is no readable Parquet file"):
        load_table(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(TableError, match="no table at"):
        load_table(tmp_path / "nothing.parquet")
    with pytest.raises(TableError, match="is no readable Parquet file"):
        load_table(tmp_path)


def test_a_file_that_is_too_big_is_refused_before_it_is_read(path):
    with path.open("ab") as file:
        file.truncate(storage.MAX_BYTES + 1)
    with pytest.raises(TableError, match="is larger than 64 MiB"):
        load_table(path)


def test_more_points_than_any_table_has_are_refused_before_they_are_read(path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 164)
    with pytest.raises(TableError, match="has 165 points; at most 164 are read"):
        load_table(path)
