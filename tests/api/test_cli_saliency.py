"""`vitfit saliency`: precision, micro batches, and several processes under torchrun."""

from pathlib import Path

import numpy as np
import pytest
import torch

from search.criteria import CRITERIA
from search.saliency import load_saliency
from tests.api.torchrun import torchrun
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint, save_checkpoint
from vit.groups import groups
from vit.model import VisionTransformer, initialise

ROOT = Path(__file__).parents[2]
ARCH = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    in_chans=1,
    num_classes=10,
    embed_dim=16,
    blocks=(BlockShape(2, 8, 8, 32),) * 2,
)
FEW = ("--batches", 3, "--batch-size", 6)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "dense.safetensors"
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    save_checkpoint(Checkpoint.of(model, ({"step": "test"},)), path)
    return path


def off(first: Path, second: Path) -> float:
    """Largest difference of two saliencies, over the largest entry of its group."""
    left, right = load_saliency(first).values, load_saliency(second).values
    return max(float(np.abs(left[g] - right[g]).max() / right[g].max()) for g in groups(ARCH))


@pytest.mark.parametrize("labels", ["data", "model"])
@pytest.mark.parametrize("criterion", ["gates", "taylor-abs"])
def test_micro_batches_write_the_same_saliency_and_mixed_precision_about_the_same(
    run_cli, checkpoint, tmp_path, criterion, labels
):
    paths = [tmp_path / name for name in ("whole", "pieces", "mixed")]
    for path, options in zip(paths, ([], ["--micro-batch", 4], ["--amp", "bf16"]), strict=True):
        given = ("-d", "digits", "-c", criterion, "--labels", labels, *FEW, *options)
        assert run_cli("saliency", checkpoint, "-o", path, *given)[0] == 0
        assert load_saliency(path).num_batches == 3
    assert off(paths[1], paths[0]) < 1e-4  # float32
    assert 1e-4 < off(paths[2], paths[0]) < 0.3  # 8 bits


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--amp", "fp16"], 1, "unknown number type of mixed precision 'fp16'; known: bf16"),
        (["--micro-batch", "0"], 2, "--micro-batch"),
        (["--device", "tpu"], 1, "unknown device 'tpu'; known: cpu, cuda"),
        (["-c", "entropy"], 1, f"unknown criterion 'entropy'; known: {', '.join(CRITERIA)}"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(run_cli, checkpoint, tmp_path, options, status, says):
    path = tmp_path / "s.safetensors"
    found, _, err = run_cli("saliency", checkpoint, "-d", "digits", "-o", path, *FEW, *options)
    assert found == status
    assert says in err
    assert not path.exists()


@pytest.mark.slow
def test_under_torchrun_the_processes_share_the_batches_and_one_writes(run_cli, checkpoint, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    given = ("saliency", checkpoint, "-d", "digits", "-c", "gates", "--labels", "model", *FEW, "-o")
    assert run_cli(*given, alone)[0] == 0
    done = torchrun(*given, shared)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote ") == 1
    assert "(gates, 3 batches)" in done.stderr
    assert load_saliency(shared).document() == load_saliency(alone).document()
    assert off(shared, alone) < 1e-12


@pytest.mark.slow
def test_under_torchrun_an_error_ends_all_processes(checkpoint, tmp_path):
    done = torchrun("saliency", checkpoint, "-d", "digits", "-c", "entropy", *FEW, "-o", tmp_path / "s")
    assert done.returncode == 1
    assert "error: unknown criterion 'entropy'" in done.stderr
    assert not (tmp_path / "s").exists()
