"""`vitfit table` as users type it: what it says, what it refuses, and that a refusal writes nothing."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from api.cli import main
from latency.grid import Grid
from latency.interop import export_table
from latency.storage import load_table, save_table
from latency.target import Target
from tests.api.factories import IMAGENET_GRID, MEASURED, TINY, TINY_TARGET, V100, affine_table, fill, model_ms
from tests.reference import random_table
from vit.presets import preset

TINY_SLUG = TINY_TARGET.slug
SAYS = ["--device", "testbed", "--runtime", "eager", "--dtype", "fp32", "--batch", 2, "--tokens", 5]
SAYS += ["--image-size", 16, "--patch-size", 8, "--num-classes", 5]


@pytest.fixture
def cli(run_cli, monkeypatch, tmp_path):
    """One `vitfit table` command; the library is `fill`'s."""
    monkeypatch.setenv("VITFIT_DATA_DIR", str(fill(tmp_path / "library")))
    monkeypatch.setenv("VITFIT_SHIPPED_TABLES", "0")
    monkeypatch.chdir(tmp_path)
    return partial(run_cli, "table")


@pytest.fixture
def foreign(tmp_path):
    """A table in NViT's format and as CSV, outside the library."""
    table = random_table(0)
    export_table(table, tmp_path / "theirs.json", "nvit")
    export_table(table, tmp_path / "theirs.csv", "csv")
    return table


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_list_says_what_targets_says(cli, monkeypatch, capsys):
    _, listed, _ = cli("list", "--json")
    monkeypatch.setattr(sys, "argv", ["vitfit", "targets", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == listed
    assert {entry["target"] for entry in json.loads(listed)} == {TINY_SLUG, V100.slug}


def test_show_says_what_a_table_is_of_and_how_it_came_about(cli, tmp_path):
    status, out, err = cli("show", V100.slug, "--json")
    assert status == 0, err
    shown = json.loads(out)
    table = load_table(tmp_path / "library" / "tables" / "v100.parquet")
    assert (shown["target"], shown["kind"], shown["interval"]) == (V100.slug, "modelled", [0.95, 1.06])
    assert {name: shown[name] for name in V100.to_dict()} == V100.to_dict()
    assert shown["grid"]["mlp_dim"] == [16, 3072]
    assert shown["points"] == len(IMAGENET_GRID)
    assert shown["fastest"]["latency_ms"] == table.block_ms.min()
    assert {name: shown["slowest"][name] for name in ("embed_dim", "mlp_dim")} == {"embed_dim": 768, "mlp_dim": 3072}
    assert shown["provenance"]["quality"] == {"held_out_error": 0.04}
    assert json.loads(cli("show", "library/tables/v100.parquet", "--json")[1]) == shown


def test_show_in_words_says_the_kind_and_the_interval(cli):
    status, out, _ = cli("show", V100.slug)
    assert status == 0
    assert "modelled, x0.95 to x1.06" in out
    assert "made up for a test" in out
    assert "held out error" in out
    assert " to " in next(line for line in out.splitlines() if "slowest block" in line)


@pytest.mark.parametrize("form", ["nvit", "csv"])
def test_what_is_imported_is_in_the_library(cli, foreign, tmp_path, form):
    source = {"nvit": "theirs.json", "csv": "theirs.csv"}[form]
    (tmp_path / "library" / "tables" / "testbed.parquet").unlink()
    says = [*SAYS, "--outside-ms", "4=0.1,8=0.2,12=0.3", "--source", "a paper", "--license", "CC0"]
    status, out, err = cli("import", source, "--format", form, "--json", *(says if form == "nvit" else []))
    assert status == 0, err
    document = json.loads(out)
    found = load_table(tmp_path / "library" / "tables" / f"{TINY_SLUG}.parquet", expect=TINY_TARGET)
    assert document["path"].endswith(f"{TINY_SLUG}.parquet")
    assert document["provenance"] == found.provenance.to_dict()
    assert np.array_equal(found.block_ms, foreign.block_ms)
    if form == "nvit":
        assert (found.kind, found.provenance.source, found.provenance.license) == ("imported", "a paper", "CC0")
        assert found.outside_ms.tolist() == [0.1, 0.2, 0.3]
    else:
        assert found.provenance == foreign.provenance
    assert json.loads(cli("show", TINY_SLUG, "--json")[1])["points"] == len(foreign.grid)


@pytest.mark.parametrize("form", ["nvit", "csv", "parquet"])
def test_what_is_exported_can_be_imported(cli, tmp_path, form):
    table = load_table(tmp_path / "library" / "tables" / "v100.parquet")
    status, out, err = cli("export", V100.slug, "--format", form, "--out", "t", "--json")
    assert status == 0
    assert json.loads(out)["points"] == len(table.grid)
    assert ("says neither that these times are modelled, x0.95 to x1.06" in err) == (form == "nvit")
    if form == "parquet":
        assert (tmp_path / "t").read_bytes() == (tmp_path / "library" / "tables" / "v100.parquet").read_bytes()
        return
    says = ["--device", "v100", "--runtime", "eager", "--dtype", "amp", "--batch", 256, "--tokens", 197]
    options = [*says, "--outside-ms", 3] if form == "nvit" else []
    status, _, err = cli("import", "t", "--format", form, "--out", "back.parquet", *options)
    assert status == 0, err
    back = load_table(tmp_path / "back.parquet")
    assert np.array_equal(back.block_ms, table.block_ms)
    assert back.kind == ("imported" if form == "nvit" else "modelled")


def test_a_table_compared_with_twice_itself_is_half(cli, tmp_path):
    from dataclasses import replace

    table = load_table(tmp_path / "library" / "tables" / "v100.parquet")
    slow = replace(
        table, block_ms=2 * table.block_ms, outside_ms=2 * table.outside_ms, target=replace(V100, device="k80")
    )
    save_table(slow, tmp_path / "slow.parquet")
    status, out, err = cli("compare", V100.slug, "slow.parquet", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert [entry["interval"] for entry in document["tables"]] == [[0.95, 1.06]] * 2
    compared = document["comparisons"][0]
    assert list(compared["latency_ratio_percentiles"].values()) == pytest.approx([2.0] * 7)
    assert compared["rank_correlation"] == pytest.approx(1)
    rows = {row["preset"]: row["estimates"] for row in document["presets"]}
    first, second = rows["deit-s"]
    assert first["latency_ms"] == pytest.approx(model_ms(preset("deit-s")))
    assert second["latency_ms"] == pytest.approx(2 * first["latency_ms"])
    assert first["interval_ms"] == pytest.approx([0.95 * first["latency_ms"], 1.06 * first["latency_ms"]])
    assert "deit-s-distilled" not in rows  # 198 tokens
    status, out, _ = cli("compare", V100.slug, "slow.parquet")
    assert f"table 2: k80-{V100.slug.removeprefix('v100-')} (modelled, x0.95 to x1.06)" in out


def test_only_the_common_range_is_compared_and_per_image(cli, tmp_path):
    wide = affine_table(Grid((12, 40), (2, 5), (4, 8), (6, 30), (8, 16)), TINY_TARGET, TINY, MEASURED)
    from dataclasses import replace

    save_table(replace(wide, target=replace(TINY_TARGET, batch=4)), tmp_path / "wide.parquet")
    document = json.loads(cli("compare", TINY_SLUG, "wide.parquet", "--json")[1])["comparisons"][0]
    assert document["bounds"] == {
        "embed_dim": [12, 16],
        "num_heads": [2, 3],
        "qk_dim": [4, 8],
        "v_dim": [6, 8],
        "mlp_dim": [8, 16],
    }
    assert list(document["latency_ratio_percentiles"].values()) == pytest.approx(
        [0.5] * 7
    )  # one formula, twice the batch


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "nowhere.parquet"], "no table at nowhere.parquet"),
        (["show", "tpu"], "unknown target 'tpu'; known: macs, testbed"),
        (["show", "macs"], "macs is the analytic target"),
        (["show", "a/b"], "tables are .parquet files"),
        (["show", "theirs.json"], "unknown target"),
        (["compare", TINY_SLUG, V100.slug], "no embed_dim is in both: testbed-eager-fp32-b2-n5 has 8 to 16"),
        (["export", TINY_SLUG, "-f", "xlsx", "-o", "t"], "unknown table format 'xlsx'; known: nvit, csv, parquet"),
        (["import", "theirs.json", "-f", "yaml"], "unknown table format 'yaml'; known: nvit, csv"),
        (["import", "none.json", "-f", "nvit"], "none.json: there is no such file"),
        (["import", "theirs.json", "-f", "nvit"], "does not say target, norm, outside, outside_ms"),
        (["import", "theirs.json", "-f", "nvit", *SAYS], "does not say outside_ms; give"),
        (["import", "theirs.json", "-f", "csv"], "has no column median_ms"),
        (["import", "theirs.csv", "-f", "nvit"], "is no JSON"),
        (
            ["import", "theirs.csv", "-f", "csv", "-o", "library/tables/v100.parquet"],
            "is there already; give --replace",
        ),
        (["import", "theirs.csv", "-f", "csv", "--norm", "rms"], "says that norm is layer, not rms"),
        (
            ["import", "hole.json", "-f", "nvit", *SAYS, "--outside-ms", 0.1],
            "the first hole is embed_dim=4 num_heads=1",
        ),
        (["import", "micro.json", "-f", "nvit", *SAYS, "--outside-ms", 0.1], "of any kernel; are the unit"),
    ],
    ids=lambda value: " ".join(map(str, value[:4])) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_line_that_says_what_is_wrong_and_writes_nothing(cli, foreign, tmp_path, arguments, says):
    document = json.loads((tmp_path / "theirs.json").read_text())
    (tmp_path / "micro.json").write_text(
        json.dumps(
            {
                e: {q: {v: {m: s / 1e6 for m, s in mlp.items()} for v, mlp in vs.items()} for q, vs in qs.items()}
                for e, qs in document.items()
            }
        )
    )
    del document["EMB_4"]["QK_1_4"]["V_2"]["MLP_8"]
    (tmp_path / "hole.json").write_text(json.dumps(document))
    before = everything(tmp_path)
    status, out, err = cli(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert everything(tmp_path) == before


def test_an_import_says_when_a_table_with_better_evidence_goes_first(cli, foreign):
    says = [*SAYS, "--outside-ms", 0.2]
    status, _, err = cli("import", "theirs.json", "-f", "nvit", *says)
    assert status == 0
    assert "note: not used: testbed.parquet is a table of the same target, and goes first (measured" in err


def test_an_imported_table_replaces_another_only_when_told(cli, foreign, tmp_path):
    assert cli("import", "theirs.csv", "-f", "csv", "-o", "library/tables/testbed.parquet", "--replace")[0] == 0
    assert load_table(tmp_path / "library" / "tables" / "testbed.parquet").grid == foreign.grid


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["show"],
        ["compare", TINY_SLUG],
        ["import", "theirs.json"],
        ["import", "theirs.json", "-f", "nvit", "--device", "v100"],
        ["import", "theirs.json", "-f", "nvit", *SAYS, "--outside-ms", "much"],
        ["import", "theirs.json", "-f", "nvit", *SAYS, "--outside-ms", "4=1,4=2"],
        ["import", "theirs.json", "-f", "nvit", *SAYS[:10], "--outside-ms", "1"],
        ["import", "theirs.json", "-f", "nvit", *SAYS, "--image-size", 64, "--outside-ms", "1"],
        ["import", "theirs.csv", "-f", "csv", "--image-size", 16],
        ["import", "theirs.json", "-f", "nvit", *SAYS, "--batch", 0],
    ],
    ids=lambda value: " ".join(map(str, [*value[:3], *value[-2:]])),
)
def test_wrong_usage_exits_with_2_and_writes_nothing(cli, foreign, tmp_path, arguments):
    before = everything(tmp_path)
    assert cli(*arguments)[0] == 2
    assert everything(tmp_path) == before


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", TINY_SLUG], ["compare", TINY_SLUG, TINY_SLUG]])
def test_tables_are_read_without_torch(data_dir, arguments):
    probe = (
        f"import os, sys; os.environ['VITFIT_DATA_DIR'] = {str(data_dir)!r}\n"
        f"from api.cli import main; sys.argv = ['vitfit', 'table', *{arguments!r}]\n"
        "assert 'pyarrow' not in sys.modules, 'pyarrow was imported before a command asked for it'\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_unit_is_checked_with_the_target_that_the_caller_names(cli, tmp_path):
    table = load_table(tmp_path / "library" / "tables" / "v100.parquet")
    assert table.target == Target("v100", "eager", "amp", 256, 197)
    export_table(table, tmp_path / "t.json", "nvit")
    wrong = (tmp_path / "t.json").read_text().replace('": 0.', '": 0.000')
    (tmp_path / "t.json").write_text(wrong)
    says = ["--device", "v100", "--runtime", "eager", "--dtype", "amp", "--batch", 256, "--tokens", 197]
    status, _, err = cli("import", "t.json", "-f", "nvit", *says, "--outside-ms", 1, "-o", "new/t.parquet")
    assert status == 1
    assert "and a v100 does at most 1.2e+14; are the unit" in err
    assert not (tmp_path / "new").exists()
