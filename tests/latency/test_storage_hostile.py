"""Parquet files made to mislead: refused, and never more memory or text than a table needs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api.library import Library
from latency.errors import TableError, TargetError
from latency.storage import load_table, save_table
from tests.reference import random_table

ROOT = Path(__file__).parents[2]
LOAD = """
import sys
from pathlib import Path
import pyarrow
from latency.errors import TableError
from latency.storage import load_table
try:
    refused = not load_table(Path(sys.argv[1]))
except TableError:
    refused = True
print(refused, pyarrow.default_memory_pool().max_memory())
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tables" / "table.parquet"
    save_table(random_table(0), path)
    return path


def rewrite(path, change, **options):
    pq.write_table(change(pq.ParquetFile(path).read()), path, **options)


def with_metadata(path, change):
    def changed(rows):
        document = json.loads(rows.schema.metadata[b"vitfit"])
        raw = change(document) or json.dumps(document)
        return rows.replace_schema_metadata({b"vitfit": raw.encode()})

    rewrite(path, changed)


def set_cell(path, column, row, value):
    def changed(rows):
        values = rows.column(column).to_pylist()
        values[row] = value
        return rows.set_column(
            rows.column_names.index(column), column, pa.array(values, rows.schema.field(column).type)
        )

    rewrite(path, changed)


@pytest.mark.parametrize("kind", [None, 1, ["measured"], "analytic", "Measured"])
def test_a_kind_of_evidence_that_no_table_has_is_refused(path, kind):
    with_metadata(path, lambda document: document["provenance"].update(kind=kind))
    with pytest.raises(TableError, match="kind"):
        load_table(path)


def test_a_table_of_the_analytic_target_is_refused_and_takes_no_other_table_down(path):
    with_metadata(path, lambda document: document["target"].update(device="macs"))
    with pytest.raises(TableError, match="macs is the analytic target, which has no table"):
        load_table(path)
    save_table(random_table(1), path.with_name("good.parquet"))
    with_metadata(path, lambda document: document["provenance"].update(kind="analytic"))
    good, bad = Library(path.parents[1]).targets()
    assert (good.error, bad.slug) == (None, "")
    assert "kind" in bad.error or "macs" in bad.error


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, 10**400, "1", None], ids=repr)
def test_a_figure_of_quality_that_is_none_is_refused_for_json_has_no_such_number(path, value):
    with_metadata(path, lambda document: document["provenance"].update(quality={"drift": value}))
    with pytest.raises(TableError, match="provenance quality must hold finite numbers by name"):
        load_table(path)


@pytest.mark.parametrize("value", [5, "12", [1], [1, 2, 3], {"a": 1, "b": 2}, [0, 1], [2, 1], [math.nan, 1]], ids=repr)
def test_an_interval_that_is_none_is_refused(path, value):
    with_metadata(path, lambda document: document["provenance"].update(interval=value))
    with pytest.raises(TableError, match=r"interval|incomplete"):
        load_table(path)


@pytest.mark.parametrize("version", [1, 1.0, ["1"], None, "0", "1.0"], ids=repr)
def test_only_the_version_as_it_is_spelled_is_read(path, version):
    with_metadata(path, lambda document: document.update(version=version))
    with pytest.raises(TableError, match="has table version"):
        load_table(path)


@pytest.mark.parametrize("norm", [["layer"], {}, None, "batch"], ids=repr)
def test_a_norm_that_is_none_is_refused(path, norm):
    with_metadata(path, lambda document: document.update(norm=norm))
    with pytest.raises(TableError, match="norm must be one of layer, rms"):
        load_table(path)


@pytest.mark.parametrize("column", ["num_heads", "qk_dim"])
def test_sizes_that_are_no_whole_numbers_are_refused(path, column):
    def halves(rows):
        values = [None if size is None else size + 0.5 for size in rows.column(column).to_pylist()]
        return rows.set_column(rows.column_names.index(column), column, pa.array(values))

    rewrite(path, halves)
    with pytest.raises(TableError, match="a column has another type"):
        load_table(path)


def test_a_missing_spread_is_refused(path):
    set_cell(path, "iqr_ms", 9, None)
    with pytest.raises(TableError, match=r"block_iqr_ms holds NaN.*, first nan at embed_dim=4 num_heads=1 qk_dim=4"):
        load_table(path)


@pytest.mark.parametrize("part", [None, "Block", "head"])
def test_a_point_of_no_part_is_refused(path, part):
    set_cell(path, "part", 3, part)
    with pytest.raises(TableError, match=f"part is 'block' or 'outside', not {part!r}"):
        load_table(path)


def test_a_doubled_column_is_refused(path):
    rewrite(path, lambda rows: rows.append_column("part", rows.column("part")))
    with pytest.raises(TableError, match="part"):
        load_table(path)


def test_a_row_of_an_unknown_part_is_refused(path):
    def more(rows):
        row = rows.slice(0, 1).set_column(0, "part", pa.array(["head"]))
        return pa.concat_tables([rows, row.cast(rows.schema)])

    rewrite(path, more)
    with pytest.raises(TableError, match="head"):
        load_table(path)


def test_a_doubled_key_in_the_metadata_is_refused(path):
    with_metadata(path, lambda document: json.dumps(document)[:-1] + ', "norm": "rms"}')
    with pytest.raises(TableError, match="norm"):
        load_table(path)


def test_a_size_that_no_architecture_has_is_refused(path):
    def large(rows):
        values = [None if size is None else size * 10**8 for size in rows.column("qk_dim").to_pylist()]
        return rows.set_column(rows.column_names.index("qk_dim"), "qk_dim", pa.array(values, pa.int32()))

    rewrite(path, large)
    with pytest.raises(TableError, match="qk_dim"):
        load_table(path)


def test_an_error_is_one_short_line_whatever_the_file_holds(path):
    with_metadata(path, lambda document: document["target"].update(device=["x"] * 100_000))
    with pytest.raises(TargetError) as caught:
        load_table(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "column",
    ["junk", "part"],
)
def test_a_small_file_that_unpacks_to_hundreds_of_megabytes_is_not_unpacked(path, column):
    def heavy(rows):
        text = pa.array(["x" * 400_000] * rows.num_rows)
        if column in rows.column_names:
            return rows.set_column(rows.column_names.index(column), column, text)
        return rows.append_column(column, text)

    rewrite(path, heavy, compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 100_000
    loaded = subprocess.run(  # a process of its own, whose memory has seen nothing else
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    refused, peak = loaded.stdout.split()
    assert refused == str(column == "part")
    assert int(peak) < 20e6
