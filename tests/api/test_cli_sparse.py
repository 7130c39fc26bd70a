"""Commands on sparse models and models that drop tokens, as users type them."""

import json
from pathlib import Path

import pytest
import torch

from tests.api.test_cli_train import ARCH, FEW, gone_once_saved
from tests.cases import assert_same_state
from tests.vit.test_sparse_storage import random_masks
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.model import VisionTransformer, initialise
from vit.token_plan import TokenPlan


@pytest.fixture
def sparse(tmp_path) -> Path:
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    masks = random_masks(model, 0.9)
    path = tmp_path / "sparse.safetensors"
    save_checkpoint(Checkpoint.of(masks.applied(model), ({"step": "test"},), masks), path)
    return path


def test_fine_tuning_keeps_the_masks(run_cli, sparse, tmp_path):
    tuned = tmp_path / "tuned.safetensors"
    status, _, err = run_cli("finetune", sparse, *FEW, "--steps", 3, "-o", tuned)
    assert status == 0, err
    before, after = load_checkpoint(sparse), load_checkpoint(tuned)
    assert {n: m.tolist() for n, m in after.masks.keep.items()} == {n: m.tolist() for n, m in before.masks.keep.items()}
    assert not torch.equal(after.weights["head.weight"], before.weights["head.weight"])


def test_a_sparse_model_learns_to_drop_tokens_and_exports(run_cli, sparse, tmp_path):
    out = tmp_path / "tokens.safetensors"
    status, _, err = run_cli("finetune", sparse, *FEW, "--steps", 3, "--token-ratio", 0.25, "-o", out)
    assert status == 0, err
    made = load_checkpoint(out)
    assert made.tokens == TokenPlan((1,), 0.25)
    assert made.lineage[-1]["tokens"] == {"after": [1], "ratio": 0.25}
    assert made.masks.zeros == load_checkpoint(sparse).masks.zeros
    status, said, err = run_cli("evaluate", out, "-d", "digits", "--json")
    assert status == 0, err
    assert 0 <= json.loads(said)["accuracy"] <= 1
    status, _, err = run_cli("export", out, "-o", tmp_path / "tokens.onnx")
    assert status == 0, err
    status, _, err = run_cli("finetune", out, *FEW, "--steps", 1, "-o", tmp_path / "on.safetensors")
    assert status == 0, err
    assert load_checkpoint(tmp_path / "on.safetensors").tokens == made.tokens


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--token-ratio", 1.5), 1, "ratio of tokens to drop must be between 0 and 1"),
        (("--token-ratio", 0.2, "--token-after", "2"), 1, "of 2 it must be below 2"),
        (("--token-ratio", 0.2, "--token-after", "one"), 2, "takes numbers of blocks"),
        (("--token-after", "1"), 2, "needs --token-ratio"),
    ],
)
def test_tokens_that_cannot_be_dropped_are_refused_before_training(run_cli, sparse, tmp_path, options, status, message):
    found, _, err = run_cli("finetune", sparse, *FEW, "--steps", 1, *options, "-o", tmp_path / "out.safetensors")
    assert found == status
    assert message in " ".join(err.split())
    assert not list(tmp_path.glob("out*"))


def test_a_sparse_checkpoint_is_measured_beside_its_dense_runs(run_cli, sparse, tmp_path):
    dense = tmp_path / "dense.safetensors"
    save_checkpoint(Checkpoint.of(load_checkpoint(sparse).model()), dense)
    status, said, err = run_cli("measure", sparse, dense, "--batch", 2, "--json")
    assert status == 0, err
    ours, theirs = json.loads(said)
    assert ours["measured_ms"] > 0
    assert "sparse" not in theirs
    report = ours["sparse"]
    assert report["batch"] == 2
    assert report["stored_bytes"] < report["dense_bytes"]
    assert report["fastest_dense"] in {run["run"] for run in report["runs"] if not run["sparse"]}
    status, said, err = run_cli("measure", sparse)
    assert status == 0, err
    assert "of the bytes" in said


def test_a_model_that_drops_tokens_is_measured_dropping_them(run_cli, sparse, tmp_path, monkeypatch):
    import api.profiling

    out, built = tmp_path / "tokens.safetensors", []
    status, _, err = run_cli("finetune", sparse, *FEW, "--steps", 1, "--token-ratio", 0.5, "-o", out)
    assert status == 0, err
    real = api.profiling.build
    monkeypatch.setattr(api.profiling, "build", lambda arch, plan: built.append(plan) or real(arch, plan))
    status, _, err = run_cli("measure", out, "--json")
    assert status == 0, err
    assert built == [TokenPlan((1,), 0.5)]


def test_a_sparse_model_becomes_8_bit(run_cli, sparse, tmp_path):
    out = tmp_path / "int8.onnx"
    status, said, err = run_cli(
        "quantise", sparse, *FEW, "--steps", 3, "--lr", 1e-3, "--teacher", sparse, "-o", out, "--json"
    )
    assert status == 0, err
    document = json.loads(said)
    assert document["difference"] < 0.05
    assert set(document["accuracy"]) == {"before", "int8"}
    made = load_checkpoint(out.with_suffix(".safetensors"))
    assert made.masks.zeros == load_checkpoint(sparse).masks.zeros
    assert made.lineage[-1]["step"] == "quantise"
    for name, weight in made.weights.items():
        if name in made.masks.keep:
            steps = weight / (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).eps)
            torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert out.stat().st_size > 0


def test_training_to_8_bit_that_stopped_goes_on_with_the_same_command(run_cli, sparse, tmp_path):
    whole, again = tmp_path / "whole.onnx", tmp_path / "again.onnx"
    same = ("quantise", sparse, *FEW, "--steps", 6, "--save-every", 3, "--lr", 1e-3, "--threads", 1)
    assert run_cli(*same, "-o", whole)[0] == 0
    gone_once_saved(*same, "-o", again)
    assert (tmp_path / "again.run.safetensors").exists()
    assert not again.exists()
    status, _, err = run_cli(*same, "--set", "clip_grad=0.5", "-o", again)
    assert status == 1
    assert "is of a run with clip_grad 1.0, now it is 0.5" in err
    assert run_cli(*same, "-o", again)[0] == 0
    assert again.read_bytes() == whole.read_bytes()
    assert_same_state(
        load_checkpoint(again.with_suffix(".safetensors")).weights,
        load_checkpoint(whole.with_suffix(".safetensors")).weights,
    )
    assert not list(tmp_path.glob("*.run.*"))


def test_8_bit_is_written_as_onnx_alone(run_cli, sparse, tmp_path):
    status, _, err = run_cli("quantise", sparse, *FEW, "--steps", 1, "-o", tmp_path / "int8.safetensors")
    assert status == 2
    assert "is an .onnx file" in " ".join(err.split())
