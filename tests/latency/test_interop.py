"""Foreign formats: what comes in is exact and whole, or refused with the first thing that is wrong with it."""

import dataclasses
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.errors import TableError, TargetError
from latency.grid import Grid
from latency.interop import READERS, WRITERS, Description, common, export_table, import_table
from latency.interop.common import full_grid
from latency.interop.nvit import milliseconds, read_nvit, seconds, write_nvit
from latency.storage import load_table
from latency.table import Outside, Provenance
from latency.target import Target
from tests.reference import GRID, random_table, table_of
from vit.errors import UnknownNameError

TARGET = Target("testbed", "eager", "fp32", 2, 5)
OUTSIDE = Outside((16, 16), (8, 8), 3, 5)
SAID = Description(
    imported_at="2026-01-02T03:04:05+00:00",
    target=TARGET,
    norm="layer",
    outside=OUTSIDE,
    outside_ms=0.25,
    source="a paper",
    license="CC0",
)
SILENT = Description(imported_at=SAID.imported_at)
FULL = Provenance(
    kind="modelled",
    created_at="2026-01-02T03:04:05+00:00",
    method='ümlauts, "quotes",\nand lines',
    versions={"torch": "2.6"},
    source="somewhere",
    license="CC0",
    quality={"drift": 1.02},
    interval=(0.9, 1.1),
)
MEDIANS = st.floats(1e-9, 1e9)


def nested(times):
    """NViT's nesting, said once more: {(EMB, H, QK, V, MLP): seconds} -> document."""
    document = {}
    for (embed, heads, qk, v, mlp), value in times.items():
        level = document.setdefault(f"EMB_{embed}", {}).setdefault(f"QK_{heads}_{qk}", {})
        level.setdefault(f"V_{v}", {})[f"MLP_{mlp}"] = value
    return document


def small(value=0.001):
    points = [(e, h, q, v, m) for e in (8, 16) for h in (1, 2) for q in (4, 8) for v in (4,) for m in (1, 32)]
    return {point: value * (index + 1) for index, point in enumerate(points)}


def one(text, description=SAID):
    """A table of the one time that is spelled so."""
    return read_nvit(f'{{"EMB_8": {{"QK_1_4": {{"V_4": {{"MLP_1": {text}}}}}}}}}', description)


def same(table, other):
    for field in dataclasses.fields(table):
        ours, theirs = getattr(table, field.name), getattr(other, field.name)
        equal = np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs
        assert equal, field.name


# ---- NViT's JSON


def test_seconds_of_a_block_become_milliseconds_at_the_point_that_its_keys_name():
    times = small()
    table = read_nvit(json.dumps(nested(times)), SAID)
    assert table.grid == Grid((8, 16), (1, 2), (4, 8), (4,), (1, 32))
    for point, ms in zip(table.grid.points(), table.block_ms.ravel(), strict=True):
        embed, b = point
        assert ms == pytest.approx(1e3 * times[embed, b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim], rel=1e-15)
    assert (table.outside_ms == 0.25).all()
    assert (table.kind, table.provenance.source, table.provenance.license) == ("imported", "a paper", "CC0")
    assert table.target == TARGET


def test_the_order_of_members_means_nothing():
    document = nested(small())
    shuffled = json.dumps(document, sort_keys=True)
    backwards = json.dumps({key: dict(reversed(value.items())) for key, value in reversed(document.items())})
    expected = read_nvit(json.dumps(document), SAID)
    same(read_nvit(shuffled, SAID), expected)
    same(read_nvit(backwards, SAID), expected)


@settings(max_examples=300, deadline=None)
@given(MEDIANS)
def test_a_table_survives_nvits_format_bit_for_bit(ms):
    assert milliseconds(seconds(ms)) == ms
    assert one(seconds(ms)).block_ms.item() == ms
    assert json.loads(seconds(ms)) == pytest.approx(ms / 1e3, rel=1e-15)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**15 - 1), st.integers(-20, -10))
def test_times_of_fifteen_digits_survive_the_table_bit_for_bit(digits, exponent):
    value = float(f"{digits}e{exponent}")
    written = json.loads(write_nvit(one(repr(value))))
    assert written["EMB_8"]["QK_1_4"]["V_4"]["MLP_1"] == value


def test_longer_times_come_back_or_are_the_neighbour():
    values = np.random.default_rng(0).uniform(1e-4, 1e-1, 20_000).tolist()
    back = [float(seconds(milliseconds(repr(value)))) for value in values]
    off = [abs(a - b) / np.spacing(b) for a, b in zip(back, values, strict=True)]
    assert max(off) <= 1
    assert np.mean(np.array(off) > 0) < 0.05


def test_writing_and_reading_a_table_gives_its_grid_and_times(tmp_path):
    table = random_table(0)
    path = tmp_path / "t.json"
    export_table(table, path, "nvit")
    found = import_table(path, "nvit", dataclasses.replace(SAID, outside_ms={4: 0.1, 8: 0.2, 12: 0.3}))
    assert found.grid == table.grid
    assert np.array_equal(found.block_ms, table.block_ms)
    assert found.outside_ms.tolist() == [0.1, 0.2, 0.3]
    assert sum(1 for _ in tmp_path.iterdir()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no JSON"),
        ('{"EMB_8": {"QK_1_4": {"V_4"', "is no JSON (truncated or another format): Expecting"),
        ("[" * 100_000, "nested far deeper"),
        ('{"EMB_8": ' * 100_000, "nested far deeper"),
        ("[1]", "is no JSON object"),
        ("3", "is no JSON object"),
        ("{}", "the document is empty"),
        ('{"EMB_8": {}}', "EMB_8 is empty; it has keys QK_{num_heads}_{qk_dim}"),
        ('{"EMB_8": 1}', "EMB_8 must hold QK_{num_heads}_{qk_dim}, got 1"),
        ('{"EMB_8": [1, {}]}', "EMB_8 must hold QK_"),
        ('{"emb_8": {}}', "emb_8: keys here are EMB_{embed_dim}"),
        ('{"EMB_0": {}}', "EMB_0: embed_dim must be a whole number from 1 to 65536, got '0'"),
        ('{"EMB_08": {}}', "EMB_08: embed_dim must be"),
        ('{"EMB_-8": {}}', "EMB_-8: embed_dim must be"),
        ('{"EMB_70000": {}}', "embed_dim must be a whole number from 1 to 65536, got 70000"),
        ('{"EMB_8": {"QK_4": {}}}', "EMB_8 > QK_4: keys here are QK_{num_heads}_{qk_dim}"),
        ('{"EMB_8": {"QK_1_²": {}}}', "qk_dim must be"),
        ('{"EMB_8": {"QK_1_4": {"V_4": {"MLP_1": 1}}}, "EMB_8": {}}', "EMB_8 is there twice"),
        ('{"EMB_8": {"QK_1_4": {"V_4": {"MLP_1": 1, "MLP_1": 1}}}}', "V_4 > MLP_1 is there twice"),
    ],
    ids=lambda value: value[:40],
)
def test_a_document_of_another_shape_is_refused(text, says):
    with pytest.raises(TableError) as caught:
        read_nvit(text, SAID)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "value",
    ["NaN", "0", "0.0", "-1", "-0.5", "Infinity", "-Infinity", "1e999", "1e-999", "null", "true", '"0.1"', "[1]"],
)
def test_a_time_that_is_none_is_refused_and_its_point_named(value):
    text = json.dumps(nested(small() | {(16, 1, 8, 4, 32): "HERE"})).replace('"HERE"', value)
    with pytest.raises(TableError, match=r"^embed_dim=16 num_heads=1 qk_dim=8 v_dim=4 mlp_dim=32: a time is a"):
        read_nvit(text, SAID)


@pytest.mark.parametrize("index", range(16))
def test_a_hole_is_refused_and_named(index):
    times = small()
    point = sorted(times)[index]
    del times[point]
    hole = "embed_dim={} num_heads={} qk_dim={} v_dim={} mlp_dim={}".format(*point)
    with pytest.raises(TableError) as caught:
        read_nvit(json.dumps(nested(times)), SAID)
    assert str(caught.value).endswith(f"16 points, 15 of them are there; the first hole is {hole}")


def test_scattered_points_are_refused_without_building_their_grid():
    with pytest.raises(TableError, match="make 243000000000000000 points, 3000 of them are there; the first hole"):
        full_grid([(n, n, n, n, n) for n in range(1, 3001)])


@pytest.mark.parametrize("name", ["target", "norm", "outside", "outside_ms"])
def test_what_the_format_does_not_say_is_asked_for_and_never_assumed(name):
    with pytest.raises(TableError, match=f"NViT's format does not say {name}; give"):
        one("0.1", dataclasses.replace(SAID, **{name: None}))


@pytest.mark.parametrize(
    ("outside_ms", "says"),
    [
        ({4: 1.0, 12: 1.0}, "outside_ms has no time for embed_dim=8"),
        ({4: 1.0, 8: 1.0, 12: 1.0, 16: 1.0}, "outside_ms is given for embed_dim=16"),
        (-1.0, "outside_ms at embed_dim 4 is -1.0"),
        ({4: 1.0, 8: float("nan"), 12: 1.0}, "outside_ms at embed_dim 8 is nan"),
    ],
)
def test_times_outside_the_blocks_must_fit_the_widths(outside_ms, says):
    text = write_nvit(random_table(0))
    with pytest.raises(TableError, match=says):
        read_nvit(text, dataclasses.replace(SAID, outside_ms=outside_ms))


# ---- CSV


@pytest.fixture
def lines(tmp_path):
    """The lines of a table as CSV: metadata, header, 162 blocks, 3 outside."""
    export_table(random_table(0), tmp_path / "whole.csv", "csv")
    return (tmp_path / "whole.csv").read_text().splitlines()


@pytest.fixture
def read(tmp_path):
    def from_lines(lines, description=SILENT):
        path = tmp_path / "changed.csv"
        path.write_text("\n".join(lines) + "\n")
        return import_table(path, "csv", description)

    return from_lines


@pytest.mark.parametrize("grid", [GRID, Grid((5, 1000), (2,), (1, 7, 64), (3,), (9, 10))], ids=["small", "odd"])
def test_a_table_survives_csv_in_every_field(tmp_path, grid):
    table = random_table(3, grid, provenance=FULL)
    export_table(table, tmp_path / "t.csv", "csv")
    same(import_table(tmp_path / "t.csv", "csv", SILENT), table)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_times_survive_csv_bit_for_bit(times):
    table = table_of(np.array(times).reshape(2, 1, 1, 1, 2), Grid((8, 16), (1,), (4,), (4,), (1, 32)))
    found = READERS["csv"](interop_csv_text(table), SILENT)
    assert found.block_ms.ravel().tolist() == times


def interop_csv_text(table):
    from latency.interop.csv_file import write_csv

    return write_csv(table)


@pytest.mark.parametrize(("unit", "power"), [("s", -3), ("us", 3)])
def test_other_units_are_converted_exactly(lines, read, unit, power):
    def moved(line):
        *sizes, median, iqr = line.split(",")
        return ",".join([*sizes, f"{median}e{power}" if "e" not in median else "", f"{iqr}e{power}"])

    changed = [lines[0], lines[1].replace("_ms", f"_{unit}"), *map(moved, lines[2:])]
    same(read(changed), read(lines))


def test_a_plain_csv_is_described_by_the_caller(lines, read):
    plain = [",".join(line.split(",")[:-1]) for line in lines[1:-3]]
    table = read(["# a remark", *plain], SAID)
    assert (table.block_iqr_ms == 0).all()
    assert (table.outside_ms == 0.25).all()
    assert (table.kind, table.target, table.norm, table.outside) == ("imported", TARGET, "layer", OUTSIDE)
    assert (table.provenance.source, table.provenance.license) == ("a paper", "CC0")


def test_line_ends_byte_order_marks_and_the_order_of_columns_do_not_matter(lines, tmp_path, read):
    path = tmp_path / "windows.csv"
    columns = [line.split(",") for line in lines[1:]]
    turned = [lines[0], *(",".join(reversed(cells)) for cells in columns)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(turned).encode())
    same(import_table(path, "csv", SILENT), read(lines))


def cell(lines, row, column, value):
    header = lines[1].split(",")
    cells = lines[row].split(",")
    cells[header.index(column)] = value
    return [*lines[:row], ",".join(cells), *lines[row + 1 :]]


FIRST = "embed_dim=4 num_heads=1 qk_dim=2 v_dim=2 mlp_dim=4"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ls: [ls[0], ls[1].replace("median_ms", "median"), *ls[2:]], "column median has no unit"),
        (lambda ls: [ls[0], ls[1].replace("iqr_ms", "iqr"), *ls[2:]], "column iqr has no unit"),
        (lambda ls: [ls[0], ls[1].replace("iqr_ms", "median_s"), *ls[2:]], "has both median_ms and median_s"),
        (lambda ls: [ls[0], ls[1].replace("median_ms", "median_h"), *ls[2:]], "has no column median_ms"),
        (lambda ls: [ls[0], ls[1].replace("iqr_ms", "mean_ms"), *ls[2:]], "unknown column 'mean_ms'"),
        (lambda ls: [ls[0], ls[1].replace("v_dim", "qk_dim"), *ls[2:]], "has no column v_dim"),
        (lambda ls: [ls[0], ls[1] + ",part", *ls[2:]], "has the column part twice"),
        (lambda ls: [ls[0], *(line.replace(",", ";") for line in ls[1:])], "has no column median_ms"),
        (lambda ls: ls[:1], "has no column median_ms"),
        (lambda ls: ls[:2], "holds no block"),
        (lambda ls: [], "has no column median_ms"),
        (lambda ls: cell(ls, 2, "median_ms", "nan"), f"line 3: {FIRST}: a time is positive and finite, got 'nan'"),
        (lambda ls: cell(ls, 2, "median_ms", "inf"), f"line 3: {FIRST}: a time is"),
        (lambda ls: cell(ls, 2, "median_ms", "0"), f"line 3: {FIRST}: a time is"),
        (lambda ls: cell(ls, 2, "median_ms", "-1"), f"line 3: {FIRST}: a time is"),
        (lambda ls: cell(ls, 2, "median_ms", ""), "line 3: median_ms must be a number, got ''"),
        (lambda ls: cell(ls, 2, "median_ms", "1ms"), "line 3: median_ms must be a number, got '1ms'"),
        (lambda ls: cell(ls, 2, "iqr_ms", "-1"), "line 3: iqr_ms is finite and not negative"),
        (lambda ls: cell(ls, 9, "qk_dim", "2.0"), "line 10: qk_dim must be a whole number from 1 to 65536, got '2.0'"),
        (lambda ls: cell(ls, 9, "qk_dim", "0"), "line 10: qk_dim must be"),
        (lambda ls: cell(ls, 9, "qk_dim", "99999999999"), "line 10: qk_dim must be"),
        (lambda ls: cell(ls, 9, "part", "head"), "line 10: part must be block or outside, got 'head'"),
        (lambda ls: cell(ls, 165, "qk_dim", "3"), "must be empty, got '3'"),
        (lambda ls: [*ls[:5], ls[5] + ",1", *ls[6:]], "line 6 has 9 cells, the header 8"),
        (lambda ls: [*ls[:5], 'block,"4', *ls[6:]], "is no CSV"),
        (lambda ls: [*ls[:2], *ls[3:]], f"161 of them are there; the first hole is {FIRST}"),
        (lambda ls: [*ls[:100], *ls[101:]], "161 of them are there; the first hole is"),
        (lambda ls: [*ls[:3], ls[2], *ls[3:]], f"the point {FIRST} is there twice"),
        (lambda ls: [*ls[:2], ls[3], ls[2], *ls[4:]], f"mlp_dim=8 stands where {FIRST} should"),
        (lambda ls: ls[:-1], "outside_ms has no time for embed_dim=12"),
        (lambda ls: ls[:-3], "has no row outside the blocks; give outside_ms"),
        (lambda ls: [*ls[:-2], ls[-1], ls[-2]], "must stand in increasing order, got embed_dim=8 after 12"),
        (lambda ls: ls[1:], "does not say"),
        (lambda ls: [ls[0], *ls], "a second line # vitfit:"),
        (lambda ls: [ls[0].replace('"version": "1"', '"version": "2"'), *ls[1:]], "has table version '2'"),
        (lambda ls: [ls[0].replace('"norm": "layer", ', ""), *ls[1:]], "its metadata has no norm"),
        (lambda ls: [ls[0].replace('"norm": "layer"', '"norm": ["layer"]'), *ls[1:]], "norm must be text"),
        (lambda ls: [ls[0].replace('"norm":', '"norm": "rms", "norm":'), *ls[1:]], "'norm' comes twice"),
        (lambda ls: [ls[0].replace('"batch": 2', '"batch": 0'), *ls[1:]], "target batch must be"),
        (lambda ls: [ls[0][:50], *ls[1:]], "is no JSON"),
        (lambda ls: ["# vitfit: " + "[" * 100_000, *ls[1:]], "is no JSON"),
        (lambda ls: ["# vitfit: [1]", *ls[1:]], "must be an object"),
        (lambda ls: cell(ls, 2, "median_ms", "9" * 200_000), "is no CSV"),
    ],
)
def test_a_csv_with_a_fault_is_refused_and_the_fault_is_named(lines, read, change, says):
    with pytest.raises(TableError) as caught:
        read(change(lines))
    assert says in str(caught.value)
    assert "changed.csv: " in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", Target("testbed", "eager", "fp32", 3, 5)),
        ("norm", "rms"),
        ("outside", Outside((32, 32), (8, 8), 3, 5)),
        ("source", "elsewhere"),
        ("outside_ms", 1.0),
    ],
)
def test_the_caller_cannot_overrule_a_file(lines, read, name, value):
    with pytest.raises(TableError, match=name):
        read(lines, dataclasses.replace(SILENT, **{name: value}))


# ---- all formats


@pytest.mark.parametrize("form", READERS)
def test_a_file_that_is_too_big_is_refused_before_it_is_read(tmp_path, form):
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(TableError, match="is larger than 64 MiB"):
        import_table(path, form, SAID)


@pytest.mark.parametrize("form", READERS)
def test_a_pipe_a_folder_and_nothing_are_refused(tmp_path, form):
    os.mkfifo(tmp_path / "pipe")
    for path, says in (("pipe", "no regular file"), (".", "no regular file"), ("none", "there is no such file")):
        with pytest.raises(TableError, match=says):
            import_table(tmp_path / path, form, SAID)


@pytest.mark.parametrize("form", READERS)
def test_bytes_that_are_no_text_are_refused(tmp_path, form):
    (tmp_path / "t").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(TableError, match="is no UTF-8 text: byte 4 is 0xff"):
        import_table(tmp_path / "t", form, SAID)


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, form, share):
    path = tmp_path / "t"
    export_table(random_table(0), path, form)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(TableError):
        import_table(path, form, SAID if form == "nvit" else SILENT)


def test_too_many_points_are_refused(monkeypatch):
    monkeypatch.setattr(common, "MAX_ROWS", 15)
    with pytest.raises(TableError, match="holds 16 points; at most 15 are read"):
        read_nvit(json.dumps(nested(small())), SAID)


def test_the_analytic_target_has_no_table(tmp_path):
    export_table(random_table(0), tmp_path / "t", "nvit")
    macs = Target("macs", "macs", "macs", 1, 5)
    with pytest.raises(TableError, match="macs is the analytic target"):
        import_table(tmp_path / "t", "nvit", dataclasses.replace(SAID, target=macs))


def test_formats_that_are_none_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown table format 'xlsx'; known: nvit, csv, parquet"):
        export_table(random_table(0), tmp_path / "t", "xlsx")
    with pytest.raises(UnknownNameError, match="unknown table format 'parquet'; known: nvit, csv"):
        import_table(tmp_path / "t", "parquet", SAID)


@pytest.mark.parametrize("form", WRITERS)
def test_a_failing_export_leaves_the_old_file_and_nothing_else(tmp_path, form, monkeypatch):
    path = tmp_path / "t"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_table(random_table(0), path, form)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_goes_out_as_it_is_stored(tmp_path):
    table = random_table(0)
    export_table(table, tmp_path / "t.parquet", "parquet")
    same(load_table(tmp_path / "t.parquet"), table)


def test_a_malformed_target_in_a_csv_is_one_error_of_tables(lines, read):
    with pytest.raises(TableError) as caught:
        read([lines[0].replace('"device": "testbed"', '"device": "A B"'), *lines[1:]])
    assert not isinstance(caught.value, TargetError)
    assert "target device must be" in str(caught.value)
