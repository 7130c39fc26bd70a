"""Training to 8 bit: the simulated layer is the integer one, zeros stay, ONNX Runtime computes what was simulated."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from recovery.int8_onnx import export_int8
from recovery.loop import accuracy, finetune
from recovery.quantise import Int8Linear, calibrate, int8_layers, settled, with_int8
from recovery.recipes import RECIPES
from recovery.schedules import SCHEDULERS
from tests.cases import CASES, UNEQUAL, assert_same_state, build, generator, images
from tests.recovery.toys import ARCH, PLAIN, fresh, stripes
from tests.vit.test_sparse_storage import random_masks
from tests.vit.test_tokens import DEEP, pruned
from vit.checkpoint import Checkpoint
from vit.errors import CalibrationError, ExportError, UnsupportedModelError


def quantised(arch=UNEQUAL, model=None):
    made = with_int8(build(arch, dtype=torch.float32) if model is None else model)
    calibrate(made, [images(arch, 8, dtype=torch.float32)])
    return made.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_the_simulated_layer_is_integer_arithmetic(bias):
    torch.manual_seed(0)
    layer = Int8Linear(torch.nn.Linear(6, 4, bias=bias))
    x = torch.randn(5, 6) + 0.3
    layer.train()(x)
    found, stored = layer.eval()(x).detach().double().numpy(), layer.int8()
    q = np.clip(np.rint(x.numpy() / np.float32(stored.input_scale)) + stored.input_zero, 0, 255).astype(np.int64)
    products = (q - stored.input_zero) @ stored.weight.numpy().astype(np.int64).T
    expected = products * stored.input_scale * stored.weight_scale.double().numpy()
    expected = expected + (layer.bias.detach().double().numpy() if bias else 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_weight_between_two_steps_is_stored_as_it_was_simulated():
    """Dividing by the scale and multiplying by its inverse do not always round alike."""
    layer = Int8Linear(torch.nn.Linear(128, 64))
    scales = torch.rand(64, 1, generator=generator()).float() + 0.01
    halves = torch.arange(-63.5, 63.5).float() * scales  # 127 of them, and the largest
    with torch.no_grad():
        layer.weight.copy_(torch.cat([halves, 127 * scales], dim=1))
    layer.train()(torch.randn(2, 128))
    stored = layer.int8()
    divided = (layer.weight.detach() / stored.weight_scale[:, None]).round()
    assert bool((divided != stored.weight).any())
    assert torch.equal(stored.weight.float() * stored.weight_scale[:, None], layer.rounded_weight().detach())


def test_weights_move_by_half_a_step_at_most_and_zeros_not_at_all():
    model = build(UNEQUAL, dtype=torch.float32)
    masks = random_masks(model)
    masks.apply_(model)
    plain = settled(quantised(model=model))
    for name, weight in plain.named_parameters():
        before = dict(model.named_parameters())[name]
        if name in masks.keep:
            step = before.abs().amax(dim=1, keepdim=True) / 127
            assert bool(((weight - before).abs() <= step / 2 * 1.001).all())
            assert not bool(weight[~masks.keep[name]].any())
    Checkpoint.of(plain, (), masks)  # which refuses removed weights that are not zero


@pytest.mark.parametrize("name", ["class_token", "distilled", "pooled", "no_biases", "rms_qk_norm", "unequal"])
def test_onnx_runtime_computes_what_was_simulated(tmp_path, name):
    arch, path = CASES[name], tmp_path / "int8.onnx"
    model = quantised(arch)
    assert export_int8(model, images(arch, 4, dtype=torch.float32), path) < 0.05
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 6):
        batch = images(arch, count, seed=5, dtype=torch.float32)
        found, expected = session.run(None, {"images": batch.numpy()})[0], model(batch).detach().numpy()
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_an_export_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    import recovery.int8_onnx

    real = recovery.int8_onnx.with_qdq

    def shifted(model, weights, layers):
        name, layer = layers[0]
        wrong = replace(layer, input_zero=layer.input_zero + 9)
        return real(model, weights, [(name, wrong), *layers[1:]])

    monkeypatch.setattr(recovery.int8_onnx, "with_qdq", shifted)
    with pytest.raises(ExportError, match="differs from the simulated model"):
        export_int8(quantised(), images(UNEQUAL, 2, dtype=torch.float32), tmp_path / "int8.onnx")
    assert not list(tmp_path.iterdir())


def test_the_weights_in_the_file_are_bytes(tmp_path):
    model = quantised()
    export_int8(model, images(UNEQUAL, 2, dtype=torch.float32), tmp_path / "int8.onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    layers = dict(int8_layers(model))
    assert len(layers) == 4 * UNEQUAL.depth + 1
    for name, layer in layers.items():
        values = onnx.numpy_helper.to_array(stored[f"{name}.weight.int8"])
        assert values.dtype == np.int8
        assert sorted(values.shape) == sorted(layer.weight.shape)
    assert not any(t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2 for t in stored.values())
    quantise = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantise) == len(layers)


def test_a_model_that_drops_tokens_becomes_8_bit_but_for_its_predictors(tmp_path):
    model = quantised(DEEP, pruned(DEEP, dtype=torch.float32))
    assert not any(name.startswith("predictors") for name, _ in int8_layers(model))
    batch = images(DEEP, 32, dtype=torch.float32)
    clear = batch[model.margins(batch).topk(2).indices]
    assert export_int8(model, clear, tmp_path / "int8.onnx") < 0.05


def test_training_to_8_bit_keeps_accuracy_and_zeros(tmp_path):
    data, model = stripes(), fresh()
    list(finetune(model, data, replace(PLAIN, steps=150, lr=5e-3)))
    masks = random_masks(model, 0.5)
    list(finetune(model, data, replace(PLAIN, steps=60), mask=masks))
    before = accuracy(model, data.test)
    student = with_int8(model)
    calibrate(student, [data.train.images])
    recipe = replace(RECIPES["int8"], epochs=None, steps=20, batch_size=16)
    list(finetune(student, data, recipe, model, mask=masks))
    assert accuracy(student, data.test) >= before - 0.05
    Checkpoint.of(settled(student), (), masks)
    assert export_int8(student, data.test.images[:4], tmp_path / "int8.onnx") < 0.05
    for parameter, keep in masks.on(student):
        assert not bool(parameter.detach()[~keep].any())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_to_8_bit_on_a_gpu_is_exported_from_the_cpu(tmp_path):
    data, student = stripes(), with_int8(fresh().cuda())
    calibrate(student, [data.train.images])
    list(finetune(student, data, replace(RECIPES["int8"], epochs=None, steps=5, batch_size=16)))
    assert export_int8(student, data.test.images[:4], tmp_path / "int8.onnx") < 0.05


def test_the_recipe_falls_linearly_as_in_the_paper():
    recipe = replace(RECIPES["int8"], epochs=None, steps=10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler, rates = SCHEDULERS[recipe.schedule](optimizer, recipe, 10), []
    for step in range(10):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    steps = np.diff(rates)
    assert rates[0] == pytest.approx(1e-4)
    assert 1e-5 <= rates[-1] <= 2e-5
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert RECIPES["int8"].epochs == 50


def test_a_layer_that_has_seen_nothing_has_no_range(tmp_path):
    model = with_int8(build(UNEQUAL, dtype=torch.float32))
    with pytest.raises(CalibrationError, match="has seen no inputs"):
        export_int8(model, images(UNEQUAL, dtype=torch.float32), tmp_path / "int8.onnx")
    with pytest.raises(CalibrationError, match="no images"):
        calibrate(model, [])
    assert not list(tmp_path.iterdir())


def test_other_weights_than_fp32_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"fp32 weights, got torch\.float64"):
        with_int8(build(UNEQUAL))


def test_the_original_survives():
    model = fresh(ARCH)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(finetune(with_int8(model), stripes(), PLAIN))
    assert_same_state(model.state_dict(), before)
    assert generator().initial_seed() == 0
