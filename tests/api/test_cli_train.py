"""vitfit finetune as users type it: recipes with changes, teachers, and a second run that goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recovery.recipes import RECIPES
from tests.api.torchrun import torchrun
from tests.cases import assert_same_state
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.model import VisionTransformer, initialise

ROOT = Path(__file__).parents[2]
ARCH = Architecture(
    image_size=(16, 16),
    patch_size=(8, 8),
    in_chans=1,
    num_classes=10,
    embed_dim=16,
    blocks=(BlockShape(2, 8, 8, 16),) * 2,
)
FEW = ("-d", "digits", "--batch-size", 32)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    save_checkpoint(Checkpoint.of(model, ({"step": "test"},)), path)
    return path


def recipe_in(path):
    step = load_checkpoint(path).lineage[-1]
    assert step["step"] == "finetune"
    return step["recipe"], step


def test_the_recipe_that_was_used_is_printed_and_in_the_lineage(run_cli, checkpoint, tmp_path):
    tuned = tmp_path / "tuned.safetensors"
    status, out, err = run_cli(
        "finetune",
        checkpoint,
        *FEW,
        "-r",
        "deit",
        "--steps",
        4,
        "--set",
        "ema=0.9",
        "--set",
        "drop_path=0",
        "-o",
        tuned,
    )
    assert status == 0, err
    assert out == ""
    used, step = recipe_in(tuned)
    deit = RECIPES["deit"]
    assert used["lr"] == pytest.approx(deit.lr * 32 / deit.lr_batch)
    assert (used["steps"], used["epochs"], used["ema"], used["drop_path"]) == (4, None, 0.9, 0)
    assert (used["mixup"], used["label_smoothing"]) == (deit.mixup, deit.label_smoothing)
    assert used["source"].startswith(deit.source + ", with other steps, epochs, batch_size")
    assert f"recipe ({used['source']})" in err
    assert "lr=3.125e-05" in err
    assert step["teacher"] == step["external_teacher"] == ""
    assert not list(tmp_path.glob("*.run.*"))


def test_a_recipe_may_be_a_file_and_its_document_comes_back(run_cli, checkpoint, tmp_path):
    document = {"epochs": 1, "batch_size": 256, "lr": 1e-3, "warmup": 1, "distillation": 0.0, "validation": 0.0}
    (tmp_path / "mine.json").write_text(json.dumps(document))
    tuned = tmp_path / "tuned.safetensors"
    status, out, err = run_cli(
        "finetune", checkpoint, "-d", "digits", "-r", tmp_path / "mine.json", "--json", "-o", tuned
    )
    assert status == 0, err
    answer = json.loads(out)
    assert answer["recipe"] == recipe_in(tuned)[0]
    assert answer["recipe"]["steps"] == 1297 // 256
    assert answer["path"] == str(tuned)


def gone_once_saved(*typed):
    """The command, gone as after kill -9 when it has written its run file for the first time."""
    code = (
        "import sys, os, api.cli, recovery.loop as loop\n"
        "save = loop.save_run\n"
        "loop.save_run = lambda *given: (save(*given), os._exit(9))\n"
        "api.cli.main()"
    )
    command = [sys.executable, "-c", code, *map(str, typed)]
    died = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert died.returncode == 9


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_with_the_same_command_and_not_with_another(run_cli, checkpoint, tmp_path):
    whole, tuned = tmp_path / "whole.safetensors", tmp_path / "tuned.safetensors"
    same = ("finetune", checkpoint, *FEW, "--steps", 12, "--save-every", 4, "--threads", 1)  # as many in both processes
    assert run_cli(*same, "-o", whole)[0] == 0
    gone_once_saved(*same, "-o", tuned)
    assert (tmp_path / "tuned.run.safetensors").exists()
    assert not tuned.exists()

    status, _, err = run_cli(*same, "--lr", 1e-3, "-o", tuned)
    assert status == 1
    assert "is of a run with lr 0.0005, now it is 0.001" in err
    assert not tuned.exists()
    assert run_cli(*same, "-o", tuned)[0] == 0
    assert_same_state(load_checkpoint(tuned).weights, load_checkpoint(whole).weights)
    assert not (tmp_path / "tuned.run.safetensors").exists()

    (tmp_path / "tuned.run.safetensors").write_bytes(b"of something else")
    status, _, err = run_cli(*same, "-o", tuned)
    assert status == 1
    assert "holds no training run that can go on" in err
    assert run_cli(*same, "--restart", "-o", tuned)[0] == 0


def test_decisions_come_from_a_checkpoint_or_from_any_timm_model_with_weights_of_ones_own(
    run_cli, checkpoint, tmp_path
):
    import timm
    from safetensors.torch import save_file

    weights, tuned = tmp_path / "theirs.safetensors", tmp_path / "tuned.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=10, in_chans=1).state_dict(), weights)
    hard = ("finetune", checkpoint, *FEW, "--steps", 2, "--hard-distillation", 0.5, "-o", tuned)
    for external in ([checkpoint], ["resnet10t", "--external-weights", weights]):
        status, _, err = run_cli(*hard, "--external-teacher", *external)
        assert status == 0, err
        assert recipe_in(tuned)[1]["external_teacher"] == str(external[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["-r", "swin"],
            "unknown recipe 'swin'; known: short, after-refit, int8, nvit, prune, deit, light1, dynamicvit, ovit-deit, "
            "a .json file",
        ),
        (["-r", "none.json"], "none.json cannot be read as a recipe"),
        (["--set", "momentum=0.9"], "a recipe has no 'momentum'; it has steps, epochs"),
        (["--set", "schedule=linear"], "schedule must be one of cosine, cyclic, constant, got 'linear'"),
        (["--set", "cycles=1.5"], "cycles must be at least 1, got 1.5"),
        (["--amp", "fp16"], "amp fp16 needs CUDA"),
        (["--hard-distillation", "0.4"], "hard_distillation needs a teacher"),
        (["-r", "nvit", "--batch-size", "32"], "hard_distillation needs a teacher"),
        (["--external-teacher", "resnet999"], "unknown external teacher 'resnet999'"),
        (["--external-teacher", "resnet10t", "--external-weights", "none.pth"], "no weights at none.pth"),
        (["--teacher", "none.safetensors"], "no checkpoint at none.safetensors"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_trained_gets_one_line_and_leaves_no_file(
    run_cli, checkpoint, tmp_path, monkeypatch, options, says
):
    monkeypatch.chdir(tmp_path)
    status, out, err = run_cli("finetune", checkpoint, "-d", "digits", "-o", "tuned.safetensors", *options)
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [checkpoint.name]


def test_steps_and_epochs_and_a_setting_without_a_value_are_wrong_usage(run_cli, checkpoint):
    for options in (["--steps", 1, "--epochs", 1], ["--set", "ema"]):
        assert run_cli("finetune", checkpoint, *FEW, "-o", "x.safetensors", *options)[0] == 2


@pytest.mark.slow
def test_under_torchrun_two_processes_train_one_model_and_one_of_them_writes(run_cli, checkpoint, tmp_path):
    alone, shared = tmp_path / "alone.safetensors", tmp_path / "shared.safetensors"
    same = ("finetune", checkpoint, *FEW, "--steps", 6)
    assert run_cli(*same, "-o", alone)[0] == 0
    done = torchrun(*same, "-o", shared)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote ") == 1
    expected = load_checkpoint(alone).weights
    for name, tensor in load_checkpoint(shared).weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)  # float32, added in another order
