"""The command line as users type it: results on stdout, one line for what went wrong, nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latency.grid import Grid
from latency.storage import load_table, save_table
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from search.frontier import Frontier
from search.saliency import load_saliency
from tests.cases import CLASS_TOKEN
from tests.recovery.data_places import no_progress_bars_nor_cache, write_hugging_face, write_shards
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.cost import macs, params
from vit.model import VisionTransformer, initialise
from vit.presets import preset

ARCH = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    in_chans=1,
    num_classes=10,
    embed_dim=32,
    blocks=(BlockShape(2, 16, 16, 64),) * 2,
)
GRID = {
    "embed_dim": [8, 32],
    "num_heads": [1, 2],
    "qk_dim": [8, 16],
    "v_dim": [8, 16],
    "mlp_dim": [8, 64],
}


@pytest.fixture
def cli(run_cli, monkeypatch, tmp_path):
    """One command line; the library is a folder of this test."""
    monkeypatch.setenv("VITFIT_DATA_DIR", str(tmp_path / "library"))
    return run_cli


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "dense.safetensors"
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    save_checkpoint(Checkpoint.of(model, ({"step": "test"},)), path)
    return path


def test_an_estimate_on_the_target_macs_is_the_closed_form(cli):
    status, out, _ = cli("estimate", "deit-s", "revit-t", "--target", "macs", "--json")
    assert status == 0
    for document, name in zip(json.loads(out), ("deit-s", "revit-t"), strict=True):
        assert document["latency_ms"] == pytest.approx(macs(preset(name)) / 1e6)
        assert document["params"] == params(preset(name))
        assert document["macs"] == macs(preset(name))


def test_components_add_up_to_the_blocks_and_equal_blocks_share_a_row(cli):
    status, out, _ = cli("estimate", "deit-s", "revit-s", "-t", "macs", "--components", "--json")
    assert status == 0
    for document in json.loads(out):
        parts = document["components"]
        for block, whole in enumerate(document["block_ms"]):
            assert sum(parts[name][block] for name in ("qk_ms", "v_ms", "products_ms", "mlp_ms")) == pytest.approx(
                whole
            )
    _, out, _ = cli("estimate", "deit-s", "-t", "macs", "--components")
    first = json.loads(cli("estimate", "deit-s", "-t", "macs", "--components", "--json")[1])[0]
    assert "0 to 11" in out
    assert f"{first['components']['mlp_ms'][0]:.3f}" in out


def test_redistribute_for_a_budget_finds_the_widest_revit(cli, tmp_path):
    path = tmp_path / "revit.json"
    budget = macs(preset("revit-s")) / 1e6
    status, out, _ = cli("redistribute", "-t", "macs", "--budget-ms", budget, "--json", "--out", path)
    assert status == 0
    assert json.loads(out)["id"] == preset("revit-s").id
    assert Architecture.from_json(path.read_text()) == preset("revit-s")
    status, out, _ = cli("estimate", path, "-t", "macs", "--json")
    assert json.loads(out)[0]["id"] == preset("revit-s").id


def test_the_whole_way_from_a_checkpoint_to_an_exported_smaller_model(cli, checkpoint, tmp_path):
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps(GRID))
    status, out, _ = cli("profile", checkpoint, "--batch", 2, "--grid", grid, "--rounds", 1, "--json")
    assert status == 0
    profiled = json.loads(out)
    assert profiled["provenance"]["kind"] == "measured"
    slug = profiled["target"]
    assert cli("targets", "--json")[1].count(slug) >= 1

    scored = tmp_path / "library" / "saliencies" / "fisher.safetensors"
    status, _, _ = cli("saliency", checkpoint, "-d", "digits", "-o", scored, "--batches", 2)
    assert status == 0
    assert load_saliency(scored).arch == ARCH

    # A model this small is mostly overhead: the budget lies halfway between what the table allows.
    frontier = Frontier(load_saliency(scored), load_table(Path(profiled["path"])))
    budget = (frontier.smallest_ms + frontier.full_ms) / 2
    status, out, err = cli("search", "-s", "fisher", "-t", slug, "--budget-ms", budget, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["latency_ms"] <= found["budget_ms"]
    assert found["kept"] <= found["bound"]

    cut = tmp_path / "cut.safetensors"
    same = ("-c", "fisher", "--selection", "frontier", "--rounds", 1, "--batches", 2)
    status, out, _ = cli(
        "prune", checkpoint, "-d", "digits", "-t", slug, "--budget-ms", budget, *same, "-o", cut, "--json"
    )
    assert status == 0
    assert json.loads(out)["architecture"] == found["architecture"]
    assert load_checkpoint(cut).arch == Architecture.from_dict(found["architecture"])
    assert [step["step"] for step in load_checkpoint(cut).lineage] == ["test", "prune"]

    tuned = tmp_path / "tuned.safetensors"
    status, _, _ = cli("finetune", cut, "-d", "digits", "--teacher", checkpoint, "--steps", 3, "-o", tuned)
    assert status == 0
    assert [step["step"] for step in load_checkpoint(tuned).lineage] == ["test", "prune", "finetune"]

    status, out, _ = cli("evaluate", tuned, "-d", "digits", "--json")
    assert 0 <= json.loads(out)["accuracy"] <= 1
    assert json.loads(out)["images"] == 500

    status, out, _ = cli("measure", tuned, checkpoint, "--batch", 2, "--json")
    assert status == 0
    for document in json.loads(out):
        assert document["measured_ms"] > 0
        assert document["error"] == pytest.approx(document["predicted_ms"] / document["measured_ms"] - 1)

    onnx = tmp_path / "tuned.onnx"
    assert cli("export", tuned, "-o", onnx)[0] == 0
    assert onnx.stat().st_size > 0
    folder = tmp_path / "take-home"
    assert cli("export", tuned, "-f", "standalone", "-o", folder)[0] == 0
    assert json.loads(cli("evaluate", folder / "model.safetensors", "-d", "digits", "--json")[1])["images"] == 500
    status, _, err = cli("export", tuned, "-f", "standalone", "-o", folder)
    assert status == 1
    assert "exists and is not empty; name a new folder" in err


UNSUPPORTED = {
    "swin_tiny_patch4_window7_224": "is no timm VisionTransformer; supported are vit_*, deit_*, deit3_* models",
    "cait_xxs24_224": "is no timm VisionTransformer; supported are vit_*, deit_*, deit3_* models",
    "resnet18.a1_in1k": "is no timm VisionTransformer; supported are vit_*, deit_*, deit3_* models",
    "vit_base_patch16_siglip_224": "pooling is 'map' (attention pooling and others), only 'token' and 'avg' are",
    "vit_dwee_patch16_reg1_gap_256": "blocks.0.attn is DiffAttention, only Attention is supported",
}
COMMANDS = {
    "import": ["--img-size", "32"],
    "saliency": ["-d", "digits"],
    "prune": ["-d", "digits", "-t", "macs", "--speedup", "2"],
    "compress": ["-d", "digits", "-t", "macs", "--speedup", "2"],
    "rebase": ["-d", "digits"],
    "finetune": ["-d", "digits"],
    "export": [],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch16_siglip_224"])
def test_every_command_refuses_a_model_that_is_no_plain_vision_transformer(cli, tmp_path, command, name):
    status, out, err = cli(command, name, *COMMANDS[command], "-o", tmp_path / "out.safetensors")
    assert (status, out) == (1, "")
    assert "supported" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_import_names_what_is_not_supported_and_what_is(cli, tmp_path, name):
    weights = tmp_path / "none-needed.pth"
    weights.touch()
    status, _, err = cli("import", name, "--weights", weights, "--img-size", 256, "-o", tmp_path / "out.safetensors")
    assert status == 1
    assert UNSUPPORTED[name] in err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("size", ["0", "x", "32x", "32x0", "-32", "32x32x32", "wide"])
def test_an_image_size_that_is_none_is_wrong_usage(cli, tmp_path, size):
    status, _, err = cli("import", "test_vit", f"--img-size={size}", "-o", tmp_path / "out.safetensors")
    assert status == 2
    assert "256x128" in err


def test_weights_of_images_that_are_not_square_come_in(cli, tmp_path):
    path = tmp_path / "model.safetensors"
    assert cli("import", "test_vit", "--img-size", "64x32", "-o", path)[0] == 0
    assert load_checkpoint(path).arch.image_size == (64, 32)


def test_weights_of_a_timm_model_come_in_as_a_checkpoint(cli, tmp_path):
    import timm
    from safetensors.torch import save_file

    theirs = timm.create_model("test_vit", num_classes=3).eval()
    weights, path = tmp_path / "weights.safetensors", tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), weights)
    status, _, err = cli("import", "test_vit", "--weights", weights, "--num-classes", 3, "-o", path)
    assert status == 0, err
    images = torch.randn(2, 3, *theirs.patch_embed.img_size)
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(path).model()(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["estimate", "deit-xl", "-t", "macs"], "unknown architecture 'deit-xl'"),
        (["estimate", "resnet50", "-t", "macs"], "resnet50 is no timm VisionTransformer; supported are vit_*, deit_*"),
        (["estimate", "deit-s", "-t", "tpu"], "unknown target 'tpu'"),
        (["estimate", "deit-s", "-t", "nowhere.parquet"], "no table at nowhere.parquet"),
        (["estimate", "missing.json", "-t", "macs"], "missing.json"),
        (["estimate", "missing.safetensors", "-t", "macs"], "no checkpoint at missing.safetensors"),
        (["redistribute", "--embed-dim", "50"], "at least 101"),
        (["redistribute", "-t", "macs", "--budget-ms", "1"], "ask for"),
        (["search", "-s", "none", "-t", "macs", "--speedup", "2"], "unknown saliency 'none'"),
        (["profile", "deit-t", "--runtime", "tflite"], "unknown runtime 'tflite'; known: eager"),
        (["profile", "deit-t", "--dtype", "fp8"], "unknown dtype 'fp8'"),
        (["profile", "deit-t", "--device", "tpu"], "unknown device 'tpu'"),
        (["import", "test_vit", "-o", "x.safetensors", "--weights", "none.pth"], "no weights at none.pth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_line_that_says_what_is_wrong(cli, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    status, out, err = cli(*arguments)
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"embed_dim": None}, "needs the field embed_dim"),
        ({"embed_dim": -4}, "embed_dim must be from 1 to 65536, got -4"),
        ({"embed_dim": 10**12}, "embed_dim must be from 1 to 65536"),
        ({"blocks": [{"num_heads": 1, "qk_dim": 0, "v_dim": 8, "mlp_dim": 8}]}, "blocks[0].qk_dim must be from 1"),
        ({"blocks": [{"num_heads": 1, "v_dim": 8, "mlp_dim": 8}]}, "needs the field blocks[0].qk_dim"),
        ({"blocks": []}, "blocks must be 1 to 1024, got 0"),
        ({"colour": 1}, "has no field colour"),
    ],
    ids=str,
)
def test_a_wrong_dimension_in_a_json_file_is_named(cli, tmp_path, document, says):
    written = ARCH.to_dict() | document
    path = tmp_path / "arch.json"
    path.write_text(json.dumps({name: value for name, value in written.items() if value is not None}))
    status, _, err = cli("estimate", path, "-t", "macs")
    assert status == 1
    assert says in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-d", "cifar"], "unknown data 'cifar'; known: digits, gratings"),
        (["-d", "gratings"], "the model has num_classes 10, the data 'gratings' has 16"),
        (
            ["-d", "digits", "-c", "entropy"],
            "unknown criterion 'entropy'; known: gates, nvit, fisher, taylor-abs, magnitude, random",
        ),
        (["-d", "digits", "--budget-ms", "0.0001"], "the smallest that the table covers takes"),
        (["-d", "digits", "--budget-ms", "1000"], "needs no search"),
        (["-d", "digits", "--speedup", "0.5"], "above 1, got 0.5"),
        (["-d", "digits", "--speedup", "2", "--budget-ms", "1"], "exactly one of budget_ms and speedup"),
        (["-d", "digits", "--speedup", "2", "--selection", "genetic"], "unknown selection 'genetic'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_cut_that_cannot_be_made_leaves_no_file(cli, checkpoint, tmp_path, options, says):
    if "--speedup" not in options and "--budget-ms" not in options:
        options = [*options, "--speedup", "2"]
    cut = tmp_path / "cut.safetensors"
    status, _, err = cli("prune", checkpoint, "-t", "macs", "-o", cut, "--batches", 1, *options)
    assert status == 1
    assert says in err
    assert not cut.exists()


def test_a_folder_of_images_without_classes_is_named(cli, checkpoint, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    status, _, err = cli("evaluate", checkpoint, "-d", tmp_path / "images")
    assert status == 1
    assert "has no classes: it needs one folder of images per class" in err


@pytest.mark.parametrize("write", [write_shards, write_hugging_face])
def test_images_in_tables_and_tar_files_are_data_too(cli, tmp_path, monkeypatch, write):
    if write is write_hugging_face:
        no_progress_bars_nor_cache(monkeypatch, tmp_path / "cache")
    model = tmp_path / "model.safetensors"
    save_checkpoint(Checkpoint.of(VisionTransformer(CLASS_TOKEN.replace(num_classes=3)), ()), model)
    status, out, _ = cli("evaluate", model, "-d", write(tmp_path / "pets"), "--json")
    assert status == 0
    assert json.loads(out)["images"] == 6


def test_a_truncated_checkpoint_is_refused(cli, checkpoint, tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(checkpoint.read_bytes()[:-100])
    status, _, err = cli("evaluate", short, "-d", "digits")
    assert status == 1
    assert "no readable checkpoint" in err


def test_wrong_usage_exits_with_2(cli):
    assert cli("redistribute")[0] == 2
    assert cli("estimate")[0] == 2
    assert cli("no-such-command")[0] == 2
    assert cli("profile", "deit-t", "--ray", "head:6379")[0] == 2
    assert cli("profile", "deit-t", "--ray", "head:6379", "--on", "amd-epyc-4t", "--threads", 4)[0] == 2


@pytest.mark.parametrize("arguments", [["--help"], ["estimate", "deit-s", "-t", "macs"], ["targets"]])
def test_questions_are_answered_without_torch(arguments):
    probe = (
        f"import sys; from api.cli import main; sys.argv = ['vitfit', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_installed_command_runs():
    command = shutil.which("vitfit", path=Path(sys.executable).parent)
    if command is None:
        pytest.skip("vitfit is not installed in this environment (make test installs it)")
    result = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "latency budget" in result.stdout


def test_revit_for_a_table_takes_the_tokens_and_classes_that_the_table_was_made_for(cli, tmp_path):
    """A table of DeiT without distillation has 197 tokens, ReViT's own default 198."""
    grid = Grid((104, 400), (1, 12), (8, 64), (8, 64), (8, 3072))
    embed, heads, qk, v, mlp = np.meshgrid(*map(np.array, grid.axes), indexing="ij")
    table = LatencyTable(
        target=Target("somewhere", "eager", "fp32", 1, 197),
        grid=grid,
        block_ms=1e-3 * (embed + heads + qk + v + mlp),
        block_iqr_ms=np.zeros(grid.shape),
        outside=Outside((224, 224), (16, 16), 3, 21),
        outside_ms=np.array([0.1, 0.2]),
        outside_iqr_ms=np.zeros(2),
        norm="layer",
        provenance=Provenance("imported", "2026-01-01", "made up for a test"),
    )
    path = tmp_path / "table.parquet"
    save_table(table, path)
    status, out, err = cli("redistribute", "-t", path, "--budget-ms", 20, "--json")
    assert status == 0, err
    found = Architecture.from_dict(json.loads(out)["architecture"])
    assert (found.tokens, found.num_classes) == (197, 21)
    assert json.loads(out)["latency_ms"] <= 20
