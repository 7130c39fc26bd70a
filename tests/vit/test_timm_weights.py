"""A user's file is read without running its code; what is not the model's is told with what to pass."""

import argparse
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.cases import assert_same_state, randomise
from vit.errors import CheckpointError
from vit.timm_models import create
from vit.timm_weights import load_weights

MODEL = timm.create_model("test_vit", num_classes=3)
STATE = randomise(MODEL).state_dict()
FILES = {
    "a state dict": STATE,
    "under model, with the arguments of the run": {"model": STATE, "args": argparse.Namespace(lr=1.0), "epoch": 3},
    "of DataParallel": {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    "the EMA before the rest": {"model": {"x": torch.zeros(1)}, "model_ema": STATE},
}


class RunsCode:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def refusal(path: Path, name: str = "test_vit", **options: object) -> str:
    """One line."""
    with pytest.raises(CheckpointError) as caught:
        create(name, weights=path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize("name", FILES)
def test_what_training_scripts_write_comes_in(tmp_path, name):
    torch.save(FILES[name], tmp_path / "weights.pth")
    model = timm.create_model("test_vit", num_classes=3)
    load_weights(model, "test_vit", tmp_path / "weights.pth")
    assert_same_state(model.state_dict(), STATE)


def test_a_file_cannot_run_code(tmp_path):
    torch.save({**STATE, "more": RunsCode(tmp_path / "ran")}, tmp_path / "weights.pth")
    said = refusal(tmp_path / "weights.pth")
    assert said.startswith("FILE holds more than a state dict")
    assert "torch.save(model.state_dict(), PATH)" in said
    assert "weights_only" not in said
    assert not (tmp_path / "ran").exists()


def test_a_pickled_model_is_refused(tmp_path):
    torch.save(MODEL, tmp_path / "model.pth")
    assert refusal(tmp_path / "model.pth").startswith("FILE holds more than a state dict")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4 no zip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_none_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    said = refusal(path)
    assert said.startswith(("FILE is no readable state dict (", "FILE holds more than"))
    assert "save one as .safetensors" in said


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"a": "b"}}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    assert "state dict" in refusal(tmp_path / "weights.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "none.pth") == "no weights at FILE"


SAME = {"num_classes": 3}


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        ({"num_classes": 3}, {}, "FILE has 3 classes, test_vit has 1000: pass --num-classes 3"),
        ({"num_classes": 3}, {"num_classes": 0}, "FILE has 3 classes, test_vit has 0: pass --num-classes 3"),
        ({"num_classes": 0}, SAME, "FILE has 0 classes, test_vit has 3: pass --num-classes 0"),
        (SAME | {"in_chans": 1}, SAME, "FILE takes 1 channels, test_vit takes 3: pass --in-chans 1"),
        (
            SAME | {"img_size": 64},
            SAME,
            "FILE has 17 positions, test_vit has 101: pass the --img-size that it was trained with, 64 if that was "
            "square",
        ),
        (
            SAME | {"img_size": (64, 32)},
            SAME,
            "FILE has 9 positions, test_vit has 101: pass the --img-size that it was trained with",
        ),
        (
            {"num_classes": 5, "img_size": 32},
            {},
            "FILE has 5 classes, test_vit has 1000: pass --num-classes 5; "
            "has 5 positions, test_vit has 101: pass the --img-size that it was trained with, 32 if that was square",
        ),
    ],
    ids=str,
)
def test_a_model_of_other_options_says_which(tmp_path, theirs, ours, says):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit", **theirs).state_dict(), path)
    assert refusal(path, **ours) == says


def test_what_it_says_to_pass_is_what_fits(tmp_path):
    path = tmp_path / "weights.safetensors"
    theirs = timm.create_model("test_vit", num_classes=5, img_size=32, in_chans=1)
    save_file(theirs.state_dict(), path)
    said = refusal(path)
    assert "--num-classes 5" in said
    assert "--in-chans 1" in said
    assert ", 32 if" in said
    ours = create("test_vit", weights=path, num_classes=5, img_size=32, in_chans=1)
    assert_same_state(dict(sorted(ours.state_dict().items())), dict(sorted(theirs.state_dict().items())))


@pytest.mark.parametrize(
    ("theirs", "key"),
    [
        (timm.create_model("test_resnet", num_classes=3), "blocks.0.attn.proj.bias is not there, in test_vit it is"),
        (
            timm.create_model("test_vit", num_classes=3, depth=7),
            "blocks.6.attn.proj.bias is (64,), in test_vit it is not",
        ),
        (
            timm.create_model("test_vit", num_classes=5, embed_dim=32),
            "blocks.0.attn.proj.bias is (32,), in test_vit it",
        ),
        (timm.create_model("test_vit", num_classes=3, init_values=1.0), "ls1.gamma is (64,), in test_vit it is not"),
    ],
    ids=["resnet", "deeper", "narrower", "layer scale"],
)
def test_weights_of_another_model_are_told_by_one_of_them(tmp_path, theirs, key):
    path = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), path)
    said = refusal(path, **SAME)
    assert said.startswith("FILE is of another model than test_vit: ")
    assert key in said
    assert "pass" not in said


def test_a_distilled_model_wants_distilled_weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("deit_tiny_patch16_224", depth=1).state_dict(), path)
    said = refusal(path, "deit_tiny_distilled_patch16_224", depth=1)
    assert "of another model than deit_tiny_distilled_patch16_224: dist_token is not there" in said
