"""timm's family from a user's weights file to smaller models that run elsewhere, by the names that users type."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from api.workflow import Scoring, cut_once, import_timm, pruned_checkpoint, saliency_of
from latency.analytic import MacsModel
from recovery.data import Dataset, TensorSplit
from tests.cases import assert_same_state, images, randomise
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.cost import macs
from vit.export import TOLERANCE, export_onnx, export_torch
from vit.standalone import write_standalone

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 5, "img_size": 32}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_small_patch16_224", {}),
    "deit": ("deit_base_patch16_224", {}),
    "distilled": ("deit_small_distilled_patch16_224", {}),
    "layer scale": ("deit3_small_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    "pooled": ("vit_medium_patch16_gap_240", {}),
    "pooled, registers": ("vit_medium_patch16_reg4_gap_256", {}),
    "pooled, tanh": ("vit_so400m_patch16_siglip_gap_256", {}),
    "pre-norm": ("vit_base_patch32_clip_quickgelu_224", {"img_size": 64}),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "non-square": ("deit_tiny_patch16_224", {"img_size": (48, 32)}),
    "384 px": ("deit3_base_patch16_384", {"img_size": 384}),
}
KEPT = 0.6
"""Share of the MACs."""


def as_safetensors(model: nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_state_dict(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def as_training_run(model: nn.Module, path: Path) -> Path:
    """As DeiT's own script writes them."""
    torch.save({"model": model.state_dict(), "epoch": 300}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


FILES = (as_safetensors, as_state_dict, as_training_run)
"""What users have; the members of the family take turns."""


@dataclass(frozen=True, eq=False)
class Member:
    """A model as timm has it, as it came in, and as it was cut."""

    theirs: nn.Module
    dense: Checkpoint
    small: Checkpoint


def data_for(arch: Architecture) -> Dataset:
    split = TensorSplit(images(arch, 8, dtype=torch.float32), torch.arange(8) % arch.num_classes)
    return Dataset("noise", split, split, arch.num_classes, arch.in_chans, arch.image_size, "noise")


def member_of(name: str, folder: Path) -> Member:
    timm_name, options = FAMILY[name]
    options = SMALL | options
    theirs = randomise(timm.create_model(timm_name, **options)).eval()
    weights = FILES[list(FAMILY).index(name) % len(FILES)](theirs, folder / "theirs")
    dense = import_timm(timm_name, weights, options=options)
    data, latency = data_for(dense.arch), MacsModel(dense.arch)
    budget = KEPT * macs(dense.arch) / 1e6
    scored = saliency_of(dense, data, Scoring(criterion="fisher", batches=2, batch_size=4))
    step = cut_once(dense, scored, latency, budget)
    return Member(theirs, dense, pruned_checkpoint(dense, step, data))


@pytest.fixture(scope="module")
def member(tmp_path_factory) -> Callable[[str], Member]:
    """A member of the family by name, made once."""
    made: dict[str, Member] = {}

    def find(name: str) -> Member:
        if name not in made:
            made[name] = member_of(name, tmp_path_factory.mktemp("family"))
        return made[name]

    return find


def outputs(model: nn.Module, arch: Architecture) -> tuple[Tensor, Tensor]:
    """Three images, and what a model makes of them."""
    batch = images(arch, dtype=torch.float32)
    with torch.no_grad():
        return batch, model(batch)


def assert_agree(found: Tensor, expected: Tensor) -> None:
    # other kernels add in another order: the tolerance that export itself demands
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("name", FAMILY)
def test_weights_from_a_file_give_timms_outputs(member, name):
    found = member(name)
    batch, expected = outputs(found.theirs, found.dense.arch)
    with torch.no_grad():
        assert_agree(found.dense.model()(batch), expected)


@pytest.mark.parametrize("name", FAMILY)
def test_a_cut_model_meets_its_budget_and_loads_back_bit_for_bit(member, name, tmp_path):
    small = member(name).small
    assert 0.9 * KEPT < macs(small.arch) / macs(member(name).dense.arch) <= KEPT
    save_checkpoint(small, tmp_path / "small.safetensors")
    back = load_checkpoint(tmp_path / "small.safetensors")
    assert back.arch == small.arch
    assert [step["step"] for step in back.lineage] == ["import", "prune"]
    assert_same_state(back.model().state_dict(), small.model().state_dict())
    assert torch.equal(outputs(back.model(), back.arch)[1], outputs(small.model(), small.arch)[1])


@pytest.mark.parametrize("name", FAMILY)
def test_a_cut_model_agrees_in_onnx_runtime(member, name, tmp_path):
    small, path = member(name).small, tmp_path / "small.onnx"
    export_onnx(small, path)
    batch, expected = outputs(small.model(), small.arch)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": batch.numpy()})
    assert_agree(torch.from_numpy(np.asarray(found)), expected)


@pytest.mark.parametrize("name", FAMILY)
def test_a_cut_model_agrees_in_torch_export(member, name, tmp_path):
    small, path = member(name).small, tmp_path / "small.pt2"
    export_torch(small, path)
    batch, expected = outputs(small.model(), small.arch)
    assert_agree(torch.export.load(path).module()(batch), expected)


ELSEWHERE = """
import sys, torch
from pathlib import Path
from importlib.util import module_from_spec, spec_from_file_location
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    spec = spec_from_file_location("model", folder / "model.py")
    spec.loader.exec_module(module := module_from_spec(spec))
    with torch.no_grad():
        torch.save(module.load()(torch.load(folder / "images.pt")), folder / "outputs.pt")
"""


@pytest.fixture(scope="module")
def outputs_elsewhere(member, torch_alone, tmp_path_factory) -> dict[str, Tensor]:
    """What the stand-alone models give in an environment with torch alone."""
    folders = {name: tmp_path_factory.mktemp("standalone") for name in FAMILY}
    for name, folder in folders.items():
        small = member(name).small
        write_standalone(small, folder)
        torch.save(images(small.arch, dtype=torch.float32), folder / "images.pt")
    command = [torch_alone, "-I", "-B", "-c", ELSEWHERE, *folders.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / "outputs.pt") for name, folder in folders.items()}


@pytest.mark.parametrize("name", FAMILY)
def test_a_cut_model_stands_alone(member, outputs_elsewhere, name):
    small = member(name).small
    assert_agree(outputs_elsewhere[name], outputs(small.model(), small.arch)[1])
