"""An exported file computes what the model computes, for any batch size; one that does not is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import vit.export
from tests.cases import CASES, CLASS_TOKEN, UNEQUAL, assert_same_state, build, images, some_units
from vit.architecture import Unit
from vit.checkpoint import Checkpoint
from vit.errors import ExportError
from vit.export import EXPORTS, TOLERANCE, export_onnx, export_torch
from vit.model import VisionTransformer
from vit.surgery import shrink

BATCHES = (1, 2, 3, 7)


def cut() -> VisionTransformer:
    """Unequal sizes in every block and softmax scales of sizes that are gone."""
    return shrink(build(UNEQUAL, dtype=torch.float32), some_units(UNEQUAL, Unit, seed=1))


MODELS = {
    "cut": cut,
    "distilled": lambda: build(CASES["distilled"], dtype=torch.float32),
    "pooled": lambda: build(CASES["pooled_without_prefix"], dtype=torch.float32),
}


def logits(model: VisionTransformer, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = images(model.arch, count, seed=count, dtype=torch.float32)
    with torch.no_grad():
        return batch, model(batch)


def assert_agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    # other kernels add in another order: the tolerance that export itself demands
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_an_onnx_file_agrees_in_onnx_runtime_for_any_batch_size(tmp_path, name):
    model, path = MODELS[name](), tmp_path / "model.onnx"
    difference = export_onnx(Checkpoint.of(model), path)
    assert 0 <= difference <= TOLERANCE
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]  # weights inside
    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for count in BATCHES:
        batch, expected = logits(model, count)
        (found,) = session.run(None, {"images": batch.numpy()})
        assert_agree(torch.from_numpy(np.asarray(found)), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_torch_export_file_loads_and_agrees_for_any_batch_size(tmp_path, name):
    model, path = MODELS[name](), tmp_path / "model.pt2"
    difference = export_torch(Checkpoint.of(model), path)
    assert 0 <= difference <= TOLERANCE
    assert list(tmp_path.iterdir()) == [tmp_path / "model.pt2"]
    program = torch.export.load(path).module()
    for count in BATCHES:
        batch, expected = logits(model, count)
        assert_agree(program(batch), expected)


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_that_disagrees_is_refused_and_leaves_no_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(vit.export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"export differs from the model by .* nothing was written"):
        EXPORTS[kind](Checkpoint.of(cut()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_disagrees_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")
    monkeypatch.setattr(vit.export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError):
        export_torch(Checkpoint.of(cut()), path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.pt2": b"old"}


def test_a_model_whose_outputs_are_not_numbers_is_refused(tmp_path):
    model = build(CLASS_TOKEN, dtype=torch.float32)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="differs from the model by nan"):
        export_torch(Checkpoint.of(model), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_weights_of_another_type_are_exported_as_fp32(tmp_path, kind):
    checkpoint = Checkpoint.of(build(CLASS_TOKEN, dtype=torch.bfloat16))
    assert EXPORTS[kind](checkpoint, tmp_path / "model") <= TOLERANCE


@pytest.mark.parametrize("kind", EXPORTS)
def test_the_exported_model_is_untouched(tmp_path, kind):
    model = build(CLASS_TOKEN, dtype=torch.float32).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    EXPORTS[kind](Checkpoint.of(model), tmp_path / "model")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_same_state(model.state_dict(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", EXPORTS)
def test_a_model_on_a_gpu_stays_there_and_exports_for_the_cpu(tmp_path, kind):
    model = build(CLASS_TOKEN, dtype=torch.float32).cuda()
    assert EXPORTS[kind](Checkpoint.of(model), tmp_path / "model") <= TOLERANCE
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}


def test_an_onnx_file_with_a_frozen_batch_size_is_refused_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(vit.export, "_batch", lambda: None)  # leave the batch at that of the samples
    with pytest.raises(ExportError, match="ONNX Runtime refuses the exported file, nothing was written"):
        export_onnx(Checkpoint.of(cut()), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
