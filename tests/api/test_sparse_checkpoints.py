"""What the commands that cut do to a checkpoint that has masks: cut them along, or say that they are gone."""

import pytest
import torch

from api.compress_job import MASKS_DROPPED, CompressRequest, run_compress
from api.library import Library
from api.prune_run import pick, run_prune
from api.workflow import Scoring, cut_once, pruned_checkpoint, saliency_of
from search.schedule import Schedule
from tests.api.test_prune_run import ARCH, FULL, MACS, digits, last_model, request, run
from tests.cases import assert_same_state
from tests.vit.test_sparse_storage import random_masks
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.model import VisionTransformer, initialise

__all__ = ["digits"]


@pytest.fixture(scope="module")
def sparse():
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    masks = random_masks(model, 0.75)
    return Checkpoint.of(masks.applied(model), ({"step": "test"},), masks)


def assert_zeros_are_the_masks(checkpoint):
    """Every zero is known to be removed, and there are as many as in a random three quarters."""
    for name, keep in checkpoint.masks.keep.items():
        assert torch.equal(checkpoint.weights[name] != 0, keep), name
    assert 0.6 < checkpoint.masks.sparsity < 0.9


def test_a_cut_in_one_shot_cuts_the_masks(sparse, digits, tmp_path):
    saliency = saliency_of(sparse, digits, Scoring(criterion="fisher", batches=1, batch_size=8))
    small = pruned_checkpoint(sparse, cut_once(sparse, saliency, MACS, 0.5 * FULL), digits)
    assert small.arch != ARCH
    assert_zeros_are_the_masks(small)
    save_checkpoint(small, tmp_path / "small")
    assert load_checkpoint(tmp_path / "small").masks.zeros == small.masks.zeros


def test_rounds_without_training_cut_the_masks_and_go_on_where_they_stopped(sparse, digits, tmp_path):
    wanted = request(schedule=Schedule(3))
    run(sparse, digits, tmp_path / "whole", wanted)
    whole = last_model(tmp_path / "whole", 3)
    assert_zeros_are_the_masks(whole)
    steps = run_prune(sparse, digits, MACS, wanted, tmp_path / "stopped", target="macs")
    next(steps)
    steps.close()
    run(sparse, digits, tmp_path / "stopped", wanted)
    again = last_model(tmp_path / "stopped", 3)
    assert_same_state(again.masks.keep, whole.masks.keep)
    picked, _, _ = pick(tmp_path / "whole", Library(tmp_path), lambda full: 0.7 * full)
    assert_zeros_are_the_masks(picked)


def test_rounds_with_training_say_that_the_masks_are_gone(sparse, digits, tmp_path):
    run(sparse, digits, tmp_path, request(schedule=Schedule(2, interval=1)))
    last = last_model(tmp_path, 2)
    assert last.masks is None
    assert last.lineage[-1]["masks"] == "dropped"


def test_compress_says_that_the_masks_are_gone(sparse, tmp_path):
    save_checkpoint(sparse, tmp_path / "sparse.safetensors")
    asked = CompressRequest(
        model=str(tmp_path / "sparse.safetensors"), data="digits", target="macs", speedup=2.0, images=64
    )
    out = tmp_path / "small.safetensors"
    result = run_compress(asked, Library(tmp_path), out, progress=lambda *_: None, exports=False, measured=False)
    assert MASKS_DROPPED in result.report["warnings"]
    small = load_checkpoint(out)
    assert small.masks is None
    assert [step.get("masks") for step in small.lineage if step["step"] == "rebase"] == ["dropped"]
