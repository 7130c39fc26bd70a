"""`vitfit profile` and `vitfit table validate`, with real timings of a model that takes no time."""

import json

import pytest

from api import profiling
from latency.errors import TableError
from latency.grid import GRIDS, grid_below
from latency.storage import load_table
from tests.api.test_cli import ARCH
from vit.presets import preset

GRID = {
    "embed_dim": [8, 16, 32],
    "num_heads": [1, 2],
    "qk_dim": [8, 16],
    "v_dim": [8, 16],
    "mlp_dim": [8, 16, 32, 64],
}
COUNT = 3 * 2 * 2 * 2 * 4


@pytest.fixture
def cli(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("VITFIT_DATA_DIR", str(tmp_path / "library"))
    return run_cli


@pytest.fixture
def arch(tmp_path):
    path = tmp_path / "arch.json"
    path.write_text(ARCH.to_json())
    return path


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(GRID))
    return path


def test_a_few_points_make_a_table_that_says_that_it_is_partly_modelled(cli, arch, grid):
    status, out, err = cli("profile", arch, "--grid", grid, "--points", 40, "--rounds", 1)
    assert status == 0, err
    assert "(partly-modelled): 40 of 96 block shapes timed" in out
    assert "held out" in out
    assert "vitfit table validate" in out
    slug = json.loads(cli("targets", "--json")[1])[0]["target"]
    status, out, err = cli("estimate", arch, "-t", slug, "--json")
    assert status == 0, err
    found = json.loads(out)[0]
    assert found["kind"] == "partly-modelled"
    low, high = found["interval_ms"]
    assert low <= found["latency_ms"] <= high
    assert len(found["saving_ms"]) == 1 + 4 * ARCH.depth
    assert min(found["saving_ms"].values()) >= 0


def test_auto_takes_all_points_where_the_error_needs_them_and_the_table_is_measured(cli, arch, grid):
    status, out, _ = cli(
        "profile", arch, "--grid", grid, "--points", "auto", "--error", 0.000001, "--rounds", 1, "--json"
    )
    assert status == 0
    provenance = json.loads(out)["provenance"]
    assert provenance["kind"] == "measured"
    assert provenance["quality"]["timed_points"] == COUNT
    assert provenance["driver"]
    assert provenance["source"]


def test_a_table_can_be_validated_at_once_or_later(cli, arch, grid, tmp_path):
    path = tmp_path / "t.parquet"
    options = ("--grid", grid, "--rounds", 1, "--out", path)
    status, out, err = cli("profile", arch, *options, "--validate", 4, "--json")
    assert status == 0, err
    found = json.loads(out)["validation"]
    assert (found["models"]["count"], found["blocks"]["count"]) == (4, 8)
    assert found["models_floor"]["mape"] >= 0
    status, out, err = cli("table", "validate", path, "--models", 3, "--blocks", 2, "--rounds", 1)
    assert status == 0, err
    assert "measured twice" in out
    assert "times as long for the reference block" in out
    status, out, _ = cli("table", "validate", path, "--models", 0, "--blocks", 2, "--rounds", 1, "--json")
    document = json.loads(out)
    assert document["models"] is None
    assert document["kind"] == load_table(path).kind


def test_what_lies_beyond_the_grid_is_modelled_when_asked_for(cli, arch, grid, tmp_path):
    path, large = tmp_path / "t.parquet", tmp_path / "large.json"
    assert cli("profile", arch, "--grid", grid, "--rounds", 1, "--out", path)[0] == 0
    large.write_text(ARCH.replace(embed_dim=48).to_json())
    status, _, err = cli("estimate", large, "-t", path)
    assert status == 1
    assert "embed_dim=48 is outside [8, 32]" in err
    status, out, err = cli("estimate", large, "-t", path, "--extrapolate", "--json")
    assert status == 0, err
    found = json.loads(out)[0]
    assert found["kind"] == "modelled"
    assert found["interval_ms"][0] < found["interval_ms"][1]
    assert "extrapolation_mape" in found["provenance"]["quality"]


@pytest.mark.parametrize(
    ("arguments", "grid", "tokens"),
    [
        ((), GRIDS["vitfit"], 197),
        (("--grid", "nvit"), GRIDS["nvit"], 197),
        (("deit-t",), grid_below(preset("deit-t")), 197),
        (("vit_tiny_patch16_384", "--grid", "vitfit"), GRIDS["vitfit"], 577),
    ],
)
def test_the_grid_is_vitfits_unless_an_architecture_or_another_is_named(cli, monkeypatch, arguments, grid, tokens):
    def stop(plan, **_):
        assert (plan.grid, plan.target.tokens, plan.copies) == (grid, tokens, 12)
        raise TableError("far enough")

    monkeypatch.setattr(profiling, "run_profile", stop)
    assert "far enough" in cli("profile", *arguments)[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--points", "many"), "unknown points 'many'; known: auto, a whole number"),
        (("--points", "-5"), "unknown points '-5'"),
        (("--points", "5"), "points must be at least 32"),
        (("--points", "auto", "--error", "0"), "between 0 and 1"),
        (("--grid", "mine"), "unknown grid 'mine'; known: vitfit, nvit, a .json file"),
        (("--grid", "missing.json"), "missing.json is no grid"),
        (("--runtime", "openvino", "--dtype", "amp"), "runtime openvino on cpu runs fp32, bf16, not amp"),
    ],
)
def test_wrong_options_are_one_line_that_says_what_is_allowed(cli, arguments, message, tmp_path):
    status, out, err = cli("profile", "deit-t", *arguments)
    assert status == 1
    assert message in err.replace("\n", " ")
    assert not out
    assert not list((tmp_path / "library").rglob("*.*")) if (tmp_path / "library").exists() else True


def test_a_table_of_another_device_is_validated_there(cli):
    status, _, err = cli("table", "validate", "rtx-4090-eager-pt2.9-amp-b256-n197")
    assert status == 1
    assert "no CUDA device here" in err or "measure it there" in err
