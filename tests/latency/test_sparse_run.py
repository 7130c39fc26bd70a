"""A sparse model beside its dense runs: the same outputs, every run there is, and a verdict that says what was seen."""

import pytest
import torch

from latency.errors import TargetError
from latency.runtimes import find_device
from latency.sparse_run import (
    CsrLinear,
    LayerTimes,
    Run,
    SparseReport,
    dynamic_int8,
    is_2_4,
    masked_linears,
    measure_sparse,
    semi_structured,
    time_layers,
    with_csr,
)
from tests.cases import UNEQUAL, build, generator, images
from tests.vit.test_sparse_storage import random_masks, sparse
from vit.checkpoint import Checkpoint, storage_bytes
from vit.masks import SparsityMask
from vit.token_plan import TokenPlan
from vit.tokens import TokenPrunedTransformer

CPU = find_device("cpu", 1)


@pytest.fixture(scope="module")
def report():
    return measure_sparse(sparse(UNEQUAL, 0.9), CPU, 2, rounds=2)


def test_csr_layers_change_no_output():
    checkpoint = sparse(UNEQUAL, 0.8, torch.float64)
    model = checkpoint.model()
    names = list(masked_linears(model, checkpoint.masks))
    assert len(names) == 4 * UNEQUAL.depth
    converted = with_csr(model, names)
    assert all(isinstance(converted.get_submodule(name), CsrLinear) for name in names)
    batch = images(UNEQUAL)
    torch.testing.assert_close(converted(batch), model(batch))
    with torch.inference_mode():  # as runtimes call it
        torch.testing.assert_close(converted(batch[:1]), model(batch[:1]))
    assert not any(isinstance(module, CsrLinear) for module in model.modules())


def test_every_masked_layer_is_timed_on_the_tokens_that_reach_it():
    model = TokenPrunedTransformer.of(build(UNEQUAL, dtype=torch.float32), TokenPlan((1,), 0.5), generator())
    masks = random_masks(model, 0.9)
    seen = {}
    for name, layer in masked_linears(model, masks).items():
        layer.register_forward_hook(lambda _, x, __, name=name: seen.update({name: x[0].shape[1]}))
    times = time_layers(model.eval(), masks, images(UNEQUAL, dtype=torch.float32), CPU, rounds=1)
    assert [layer.name for layer in times] == list(masked_linears(model, masks))
    assert all(layer.dense_ms > 0 and layer.csr_ms > 0 and 0.85 < layer.sparsity < 0.95 for layer in times)
    assert seen["blocks.0.mlp.fc1"] == 5
    assert seen["blocks.1.mlp.fc1"] == 3


def test_every_runtime_and_dtype_of_this_machine_is_timed_or_left_out_with_a_reason(report):
    names = {run.name for run in report.runs if not run.sparse}
    left_out = {reason.partition(":")[0] for reason in report.left_out}
    wanted = {"eager fp32", "eager bf16", "onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino bf16"}
    assert wanted == (names | left_out)
    assert all(run.latency_ms > 0 and run.iqr_ms >= 0 for run in report.runs)
    assert {"eager fp32", "onnxruntime fp32", "onnxruntime int8"} <= names


def test_only_layers_that_are_faster_in_csr_run_in_it(report):
    paying = sum(layer.pays for layer in report.layers)
    assert len(report.layers) == 4 * UNEQUAL.depth
    assert (report.sparse is None) == (paying == 0)
    assert report.sparse is None or report.sparse.name == f"eager fp32, {paying} of 12 layers in CSR"


def test_storage_is_always_reported(report):
    assert (report.stored_bytes, report.dense_bytes) == storage_bytes(sparse(UNEQUAL, 0.9))
    assert f"{report.stored_bytes / report.dense_bytes:.0%} of the bytes" in report.verdict()
    assert report.document()["verdict"] == report.verdict()


def test_int8_is_the_model_rounded():
    model, batch = build(UNEQUAL, dtype=torch.float32), images(UNEQUAL, dtype=torch.float32)
    found, expected = dynamic_int8(model, batch, CPU)(), model(batch).detach()
    assert 0 < float((found - expected).abs().max() / expected.abs().max()) < 0.1


def reported(sparse_ms, dense_ms=(4.0, 2.0), iqr_ms=0.1, layers=()):
    runs = [Run(f"dense {ms}", False, ms, iqr_ms) for ms in dense_ms]
    if sparse_ms is not None:
        runs.append(Run("csr", True, sparse_ms, iqr_ms))
    return SparseReport(1, 0.9, tuple(runs), layers, (), 10, 100)


def test_the_verdict_compares_with_the_fastest_dense_run():
    assert reported(1.0).verdict() == (
        "2.00 times as fast as the fastest dense run, dense 2.0; the weights take 10% of the bytes"
    )
    slower = reported(3.0)
    assert slower.speedup == pytest.approx(2 / 3)
    assert slower.verdict().startswith("sparsity gains no time here: the sparse run (csr) is 0.67 times as fast as")
    assert reported(None).speedup is None
    assert "no layer is faster in a sparse format" in reported(None).verdict()


def test_a_gain_within_the_spread_is_none():
    assert "gains no time" in reported(1.95).verdict()
    assert "gains no time" not in reported(1.85).verdict()


def test_a_layer_pays_where_csr_is_faster():
    assert LayerTimes("a", 0.9, 2.0, 1.0).pays
    assert not LayerTimes("a", 0.9, 1.0, 1.0).pays


def test_a_dense_checkpoint_has_no_sparse_run():
    with pytest.raises(TargetError, match="no masks"):
        measure_sparse(Checkpoint.of(build(UNEQUAL)), CPU)


@pytest.mark.parametrize(
    ("rows", "fits"),
    [
        ([[1, 1, 0, 0]], True),
        ([[0, 1, 0, 0, 1, 0, 0, 1]], True),
        ([[1, 1, 1, 0]], False),
        ([[1, 0, 0, 0], [1, 1, 1, 1]], False),
        ([[1, 0, 0]], False),
    ],
)
def test_two_of_four_is_counted_along_the_inputs(rows, fits):
    assert is_2_4(torch.tensor(rows).bool()) == fits


def two_of_four(model):
    keep = {}
    for name, parameter in model.named_parameters():
        if "blocks" in name and parameter.ndim == 2 and parameter.shape[1] % 4 == 0:
            order = torch.rand(parameter.numel() // 4, 4, generator=generator()).argsort(dim=1)
            keep[name] = (order < 2).reshape(parameter.shape)
    return SparsityMask(keep)


def test_other_patterns_are_refused_by_the_layers_name():
    model = build(UNEQUAL)
    with pytest.raises(TargetError, match=r"blocks\.0\.attn\.qkv is not 2:4 sparse.*--pattern 2:4"):
        semi_structured(model, random_masks(model, 0.5))
    with pytest.raises(TargetError, match="no linear layer of the model has a mask"):
        semi_structured(model, SparsityMask({}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_two_of_four_is_refused_with_the_reason():
    model = build(UNEQUAL)
    with pytest.raises(TargetError, match="sparse tensor cores of an NVIDIA GPU, and there is none here"):
        semi_structured(model, two_of_four(model))


@pytest.mark.gpu
def test_two_of_four_on_sparse_tensor_cores_gives_the_outputs_of_the_masked_model():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a CUDA device of compute capability 8.0")
    from vit.presets import preset

    arch = preset("deit-s").replace(blocks=preset("deit-s").blocks[:2])
    model = build(arch, dtype=torch.float32)
    masks = two_of_four(model)
    model, batch = masks.applied(model), images(arch, 4, dtype=torch.float32)
    found = semi_structured(model, masks)(batch.to("cuda", torch.bfloat16)).float().cpu()
    expected = model.to("cuda", torch.bfloat16)(batch.to("cuda", torch.bfloat16)).float().cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    report = measure_sparse(
        Checkpoint.of(masks.applied(build(arch, dtype=torch.float32)), (), masks), find_device("cuda"), 64
    )
    assert report.sparse is not None
    print(report.verdict())
