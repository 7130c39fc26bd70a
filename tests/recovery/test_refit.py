"""A refit is ridge least squares, layer by layer: it equals what numpy finds with everything in memory.

B images, N tokens, E embed_dim, R rows: tokens of all images.
"""

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recovery.refit import RIDGE, LeastSquares, RefitReport, refit, relative
from tests.cases import CASES, CLASS_TOKEN, UNEQUAL, assert_same_state, build, generator, images, some_units
from vit.architecture import BLOCK_UNITS, Architecture, Unit
from vit.basis import rebase
from vit.errors import CalibrationError
from vit.groups import EMBED, Group, Keep
from vit.model import VisionTransformer
from vit.surgery import shrink

EVERY = CASES | {
    "distilled_features": CLASS_TOKEN.replace(dist_token=True, num_classes=0),
    "distilled_unequal": UNEQUAL.replace(dist_token=True, reg_tokens=1, layer_scale=True),
}
FEW = ["class_token", "distilled", "pooled", "features", "registers", "unequal", "pre_norm", "rms_qk_norm"]
EVERYTHING_KEPT: dict[Group, list[int]] = {}


def calibration(arch: Architecture, count: int = 64) -> Tensor:
    return images(arch, count, seed=100)


def dense_model(arch: Architecture, seed: int = 0) -> VisionTransformer:
    """A model as a refit wants it: without layer scale, with all biases."""
    return rebase(build(arch, seed), [calibration(arch)]).model


def cut(name: str, units: tuple[Unit, ...] = tuple(Unit), seed: int = 0) -> tuple[VisionTransformer, Keep]:
    dense = dense_model(EVERY[name], seed)
    return dense, some_units(dense.arch, units, seed)


def run(dense: VisionTransformer, keep: Keep, batch: Tensor, **options: float) -> tuple[VisionTransformer, list]:
    """(the refitted model, its reports)."""
    small = shrink(dense, keep)
    return small, list(refit(dense, small, keep, batch.split(24), **options))


def ridge_solution(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge as least squares with more rows: one for every input, that asks for no change of its weights."""
    inside, wanted = x - x.mean(axis=0), y - y.mean(axis=0)
    strength = ridge * np.mean(np.sum(inside**2, axis=0))
    rows = np.vstack([inside, math.sqrt(strength) * np.eye(x.shape[1])])
    goals = np.vstack([wanted - inside @ weight.T, np.zeros((x.shape[1], y.shape[1]))])
    new = weight + np.linalg.lstsq(rows, goals, rcond=None)[0].T
    return new, y.mean(axis=0) - new @ x.mean(axis=0)


def residual(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    """Squared error over the outputs' variance."""
    return float(np.sum((x @ weight.T + bias - y) ** 2) / np.sum((y - y.mean(axis=0)) ** 2))


# --- least squares -----------------------------------------------------------------------------------------------


def problem(rows: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y, W₀, b₀), neither x nor y with mean zero."""
    draw = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    x = normal(rows, inputs) @ normal(inputs, inputs) + 2
    return x, x @ normal(inputs, outputs) + normal(rows, outputs) - 1, normal(outputs, inputs), normal(outputs)


def sums_of(x: Tensor, y: Tensor) -> LeastSquares:
    sums = LeastSquares(x.shape[-1], y.shape[-1], torch.device("cpu"))
    sums.add(x, y)
    return sums


@pytest.mark.parametrize("ridge", [1e-8, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(30, 4, 3), (30, 1, 1), (30, 2, 9), (5, 12, 3), (1, 3, 2)])
def test_the_solution_is_numpys_and_its_error_the_residual_written_out(shape, ridge):
    x, y, weight, bias = problem(*shape)
    sums = sums_of(x, y)
    found = sums.solve(weight, bias, ridge)
    expected = ridge_solution(x.numpy(), y.numpy(), weight.numpy(), ridge)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)  # normal equations square the condition number
    if shape[0] > 1:  # one row has no variance
        for w, b in ((weight, bias), found):
            slow = residual(x.numpy(), y.numpy(), w.numpy(), b.numpy())
            assert relative(sums.errors(w, b)) == pytest.approx(slow, rel=1e-7, abs=1e-12)


def test_no_other_weights_cost_less():
    x, y, weight, bias = problem(30, 4, 3)
    ridge, strength = 0.1, 0.1 * float((x - x.mean(dim=0)).square().sum(dim=0).mean())

    def cost(w: Tensor, b: Tensor) -> float:
        return float((x @ w.mT + b - y).square().sum() + strength * (w - weight).square().sum())

    w, b = sums_of(x, y).solve(weight, bias, ridge)
    draw = generator(1)
    for _ in range(50):
        change_w = 0.1 * torch.randn(w.shape, generator=draw, dtype=torch.float64)
        change_b = 0.1 * torch.randn(b.shape, generator=draw, dtype=torch.float64)
        assert cost(w + change_w, b + change_b) > cost(w, b)


@pytest.mark.parametrize("sizes", [[30], [1] * 30, [29, 1], [7, 11, 12]])
def test_it_does_not_matter_how_rows_are_batched_or_shaped(sizes):
    x, y, weight, bias = problem(30, 4, 3)
    sums = LeastSquares(4, 3, torch.device("cpu"))
    for rows, goals in zip(x.split(sizes), y.split(sizes), strict=True):
        sums.add(rows[None], goals[None])
    for one, other in zip(sums.solve(weight, bias, 0.1), sums_of(x, y).solve(weight, bias, 0.1), strict=True):
        torch.testing.assert_close(one, other)
    assert relative(sums.errors(weight, bias)) == pytest.approx(relative(sums_of(x, y).errors(weight, bias)))
    assert sums.count == 30


def test_a_large_ridge_returns_the_layer_as_it_is_but_for_the_offset():
    x, y, weight, bias = problem(30, 4, 3)
    found, offset = sums_of(x, y).solve(weight, bias, 1e12)
    torch.testing.assert_close(found, weight)
    torch.testing.assert_close(offset, (y - x @ weight.mT).mean(dim=0))


def test_a_small_ridge_finds_what_is_there_to_be_found():
    x, _, weight, bias = problem(30, 4, 3)
    true_weight, true_bias = weight + 1, bias - 5
    found = sums_of(x, x @ true_weight.mT + true_bias).solve(weight, bias, 1e-14)
    for one, other in zip(found, (true_weight, true_bias), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 3.0, 0.1, -1e4 / 3])
@pytest.mark.parametrize("which", [[2], [0, 3], [0, 1, 2, 3]])
def test_inputs_without_signal_keep_their_weights_bit_for_bit(which, constant, dtype):
    x, y, weight, bias = (tensor.to(dtype) for tensor in problem(300, 4, 3))
    x[:, which] = constant
    found, offset = sums_of(x, y).solve(weight, bias, 0.1)
    assert torch.equal(found[:, which], weight[:, which])
    torch.testing.assert_close(
        (x @ found.mT + offset).mean(dim=0), y.mean(dim=0), rtol=1e-5, atol=1e-7 * max(1.0, abs(constant))
    )


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4])
def test_in_float32_a_mean_that_dwarfs_the_signal_costs_no_digits(mean):
    x, y, weight, bias = problem(300, 4, 3)
    x, y = (x + mean).float(), (y - mean).float()
    found = sums_of(x, y).solve(weight, bias, 0.1)
    expected = ridge_solution(x.double().numpy(), y.double().numpy(), weight.numpy(), 0.1)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-4)  # fp32, for every mean the same
    sums, slow = sums_of(x, y), residual(x.double().numpy(), y.double().numpy(), *expected)
    assert relative(sums.errors(*found)) == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_ridge_is_relative_so_units_of_the_inputs_do_not_matter(factor):
    x, y, weight, bias = problem(30, 4, 3)
    expected = sums_of(x, y).solve(weight, bias, 0.1)
    found = sums_of(factor * x, y).solve(weight / factor, bias, 0.1)
    torch.testing.assert_close(found[0] * factor, expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_the_number_type_is_the_layers_and_sums_of_float32_are_kept_in_float64():
    x, y, weight, bias = problem(30, 4, 3)
    sums = LeastSquares(4, 3, torch.device("cpu"))
    for _ in range(1000):
        sums.add(x.float(), y.float())
    found = sums.solve(weight.float(), bias.float(), 0.1)
    assert [tensor.dtype for tensor in found] == [torch.float32] * 2
    for one, other in zip(found, sums_of(x, y).solve(weight, bias, 0.1), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [1, 7])
def test_outputs_that_do_not_vary_have_no_error_to_speak_of(copies, dtype):
    x, y, weight, bias = (tensor.to(dtype) for tensor in problem(1, 4, 3))
    assert relative(sums_of(x.repeat(copies, 1), y.repeat(copies, 1)).errors(weight, bias)) == 0.0


@pytest.mark.parametrize("where", [0, 1])
def test_the_error_of_what_is_nan_is_nan(where):
    tensors = problem(30, 4, 3)
    tensors[where][3, 1] = float("nan")
    x, y, weight, bias = tensors
    assert math.isnan(relative(sums_of(x, y).errors(weight, bias)))


# --- the whole algorithm -----------------------------------------------------------------------------------------


def rows_of_qkv(arch: Architecture, keep: Keep, index: int) -> list[int]:
    """Rows of timm's `qkv` that stay: all of Q, then K, then V, each by head."""
    shape = arch.blocks[index]
    heads, qk, v = (keep.indices[Group(unit, index)].tolist() for unit in (Unit.HEAD, Unit.QK, Unit.V))
    width = shape.num_heads * shape.qk_dim
    queries = [head * shape.qk_dim + channel for head in heads for channel in qk]
    values = [2 * width + head * shape.v_dim + channel for head in heads for channel in v]
    return queries + [width + row for row in queries] + values


def slow_refit(
    dense: VisionTransformer,
    small: VisionTransformer,
    keep: Keep,
    batch: Tensor,
    ridge: float,
) -> list[tuple[str, float, float]]:
    """The algorithm with all activations in memory, in place; (layer, error before, error after)."""
    reports = []

    def fit(name: str, inputs: Tensor, targets: Tensor) -> None:
        layer = small.get_submodule(name)
        x, y = (tensor.reshape(-1, tensor.shape[-1]).numpy() for tensor in (inputs, targets))
        before = residual(x, y, layer.weight.numpy(), layer.bias.numpy())
        weight, bias = ridge_solution(x, y, layer.weight.numpy(), ridge)
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
        reports.append((name, before, residual(x, y, weight, bias)))

    with torch.no_grad():
        channels = keep.indices[EMBED].tolist()
        wide, narrow = dense.embed(batch), small.embed(batch)
        for index, (whole, part) in enumerate(zip(dense.blocks, small.blocks, strict=True)):
            block = f"blocks.{index}"
            read = part.norm1(narrow)
            queries_keys_values = whole.attn.qkv(whole.norm1(wide))
            fit(f"{block}.attn.qkv", read, queries_keys_values[..., rows_of_qkv(dense.arch, keep, index)])

            wide = wide + whole.attn(whole.norm1(wide))
            mixed = part.attn.mix(part.attn.qkv(read))
            fit(f"{block}.attn.proj", mixed, wide[..., channels] - narrow)
            narrow = narrow + part.attn.proj(mixed)

            read = part.norm2(narrow)
            hidden = whole.mlp.fc1(whole.norm2(wide))
            fit(f"{block}.mlp.fc1", read, hidden[..., keep.indices[Group(Unit.MLP, index)].tolist()])

            wide = wide + whole.mlp(whole.norm2(wide))
            active = part.mlp.act(part.mlp.fc1(read))
            fit(f"{block}.mlp.fc2", active, wide[..., channels] - narrow)
            narrow = narrow + part.mlp.fc2(active)
        if small.arch.num_classes:
            heads = ("head", "head_dist") if small.arch.dist_token else ("head",)
            for name, seen, expected in zip(heads, small.read(narrow), dense.read(wide), strict=True):
                fit(name, seen, dense.get_submodule(name)(expected))
    return reports


@pytest.mark.parametrize("counts", [[1, 2, 1, 1], [3, 1, 1, 5]])
def test_a_row_of_weight_n_counts_as_n_rows(counts):
    x, y, weight, bias = problem(4, 2, 3)
    weighted, repeated = (LeastSquares(2, 3, torch.device("cpu")) for _ in range(2))
    weighted.add(x, y, torch.tensor(counts))
    repeated.add(x.repeat_interleave(torch.tensor(counts), 0), y.repeat_interleave(torch.tensor(counts), 0))
    for found, expected in zip(weighted.solve(weight, bias, 0.1), repeated.solve(weight, bias, 0.1), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weighted.errors(weight, bias), repeated.errors(weight, bias))


def test_every_layer_is_fitted_with_its_own_token_weights():
    """Tokens that nobody feels get the floor's weight: all but the first, in all layers, pull the fit towards it."""
    dense, keep = cut("class_token")
    batch = calibration(dense.arch)
    first = torch.zeros(dense.arch.tokens)
    first[0] = 1.0

    class Everywhere(dict):
        def __missing__(self, _name):
            return first

    def error_of_first(sensitivity):
        small = shrink(dense, keep)
        for _ in refit(dense, small, keep, [batch], sensitivity=sensitivity):
            pass
        channels = keep.indices[EMBED].tolist()
        with torch.no_grad():
            wide, narrow = dense.blocks[0](dense.embed(batch)), small.blocks[0](small.embed(batch))
        return (wide[:, 0, channels] - narrow[:, 0]).square().mean()

    assert error_of_first(Everywhere()) < error_of_first(None)


@pytest.mark.parametrize("name", EVERY)
def test_a_refit_is_the_algorithm_with_everything_in_memory(name):
    dense, keep = cut(name)
    batch = calibration(dense.arch)
    found, reports = run(dense, keep, batch)
    expected = shrink(dense, keep)
    slow = slow_refit(dense, expected, keep, batch, RIDGE)
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], tensor, msg=key)
    assert [report.layer for report in reports] == [layer for layer, _, _ in slow]
    for report, (_, before, after) in zip(reports, slow, strict=True):
        assert report.before == pytest.approx(before, rel=1e-6, abs=1e-9)
        assert report.after == pytest.approx(after, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FEW)
def test_no_layers_own_error_grows(name, seed):
    dense, keep = cut(name, seed=seed)
    _, reports = run(dense, keep, calibration(dense.arch))
    for report in reports:
        assert report.after <= report.before * (1 + 1e-9) + 1e-12, report


@pytest.mark.parametrize("name", EVERY)
def test_with_everything_kept_nothing_changes(name):
    dense = dense_model(EVERY[name])
    small, reports = run(dense, Keep.of(dense.arch, EVERYTHING_KEPT), calibration(dense.arch))
    for key, tensor in dense.state_dict().items():
        torch.testing.assert_close(small.state_dict()[key], tensor, msg=key)
    assert all(report.before < 1e-12 and report.after < 1e-12 for report in reports)


@torch.no_grad()
def disturb(model: VisionTransformer, change: Callable[[Tensor], Tensor]) -> VisionTransformer:
    """A copy with other weights and biases in every layer that a refit reaches."""
    disturbed = copy.deepcopy(model)
    for name, module in disturbed.named_modules():
        if isinstance(module, nn.Linear):
            assert name.startswith(("blocks.", "head"))
            module.weight.copy_(change(module.weight))
            module.bias.copy_(change(module.bias))
    return disturbed


@pytest.mark.parametrize("name", FEW)
def test_a_model_that_could_be_the_dense_one_becomes_it(name):
    """With weights that are off by half, and a ridge of next to nothing."""
    dense = dense_model(EVERY[name])
    draw = generator(3)
    small = disturb(dense, lambda w: w * (1 + 0.5 * torch.randn(w.shape, generator=draw, dtype=w.dtype)))
    batch = images(dense.arch, 6, seed=200)
    assert (small(batch) - dense(batch)).abs().max() > 0.1
    keep = Keep.of(dense.arch, EVERYTHING_KEPT)
    for _ in refit(dense, small, keep, calibration(dense.arch).split(10), ridge=1e-13):
        pass
    # a ridge of 1e-13 of the mean leaves that share in directions of little signal, where errors of a layer add up
    torch.testing.assert_close(small(batch), dense(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_outputs_come_closer_to_the_dense_models_than_the_cut_left_them(name):
    dense, keep = cut(name, units=BLOCK_UNITS)
    batch = calibration(dense.arch, 128)
    found, _ = run(dense, keep, batch)

    def distance(model: VisionTransformer, seen: Tensor) -> float:
        return float((model(seen) - dense(seen)).detach().square().mean())

    for seen in (batch, images(dense.arch, 64, seed=200)):
        assert distance(found, seen) < 0.7 * distance(shrink(dense, keep), seen)


@pytest.mark.parametrize("sizes", [[24], [1] * 24, [23, 1]])
def test_it_does_not_matter_how_images_are_batched(sizes):
    dense, keep = cut("distilled_unequal")
    batch = calibration(dense.arch, 24)
    found, expected = (shrink(dense, keep) for _ in range(2))
    list(refit(dense, found, keep, batch.split(sizes)))
    list(refit(dense, expected, keep, batch.split(5)))
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], tensor, msg=key)


def test_images_are_read_once_and_empty_batches_skipped():
    dense, keep = cut("unequal")
    batch = calibration(dense.arch, 24)
    found, expected = (shrink(dense, keep) for _ in range(2))
    list(refit(dense, found, keep, iter([batch[:0], *batch.split(5), batch[:0]])))
    list(refit(dense, expected, keep, batch.split(5)))
    assert_same_state(found.state_dict(), expected.state_dict())


@pytest.mark.parametrize(("name", "heads"), [("unequal", 1), ("distilled", 2), ("features", 0)])
def test_reports_count_the_layers(name, heads):
    dense, keep = cut(name)
    _, reports = run(dense, keep, calibration(dense.arch))
    total = 4 * dense.arch.depth + heads
    assert [(report.done, report.total) for report in reports] == [(done, total) for done in range(1, total + 1)]
    assert all(isinstance(report, RefitReport) for report in reports)


def test_one_image_is_enough_to_stay_finite():
    dense, keep = cut("unequal")
    found, reports = run(dense, keep, calibration(dense.arch, 1))
    assert all(math.isfinite(report.before) and math.isfinite(report.after) for report in reports)
    assert torch.isfinite(found(calibration(dense.arch))).all()


# --- what is changed, and when -----------------------------------------------------------------------------------


def test_the_small_model_is_as_it_was_until_the_reports_are_exhausted():
    dense, keep = cut("class_token")
    small = shrink(dense, keep)
    before = copy.deepcopy(small.state_dict())
    reports = refit(dense, small, keep, [calibration(dense.arch)])
    for _ in range(9):
        next(reports)
        assert_same_state(small.state_dict(), before)
    assert next(reports, None) is None
    assert all(not torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items() if "attn" in key)


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("seen", [1, 5, 9])
def test_reports_that_nobody_waits_for_leave_neither_changes_nor_files(scratch, seen):
    dense, keep = cut("class_token")
    small = shrink(dense, keep)
    before = copy.deepcopy(small.state_dict())
    reports = refit(dense, small, keep, [calibration(dense.arch)])
    for _ in range(seen):
        next(reports)
    assert len(list(scratch.iterdir())) == 1
    reports.close()
    assert list(scratch.iterdir()) == []
    assert_same_state(small.state_dict(), before)


def test_no_file_stays_after_the_last_report_or_an_error(scratch):
    dense, keep = cut("class_token")
    run(dense, keep, calibration(dense.arch))
    assert list(scratch.iterdir()) == []
    bad = calibration(dense.arch)
    bad[40] = float("nan")
    with pytest.raises(CalibrationError):
        run(dense, keep, bad)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_dense_model_and_all_but_the_weights_of_the_small_one_are_left_as_they_are(training):
    dense, keep = cut("registers")
    dense.train(training)
    small = shrink(dense, keep)
    before = copy.deepcopy(dense.state_dict())
    others = {key: tensor.clone() for key, tensor in small.state_dict().items() if "norm" in key or "embed" in key}
    list(refit(dense, small, keep, [calibration(dense.arch)]))
    assert_same_state(dense.state_dict(), before)
    assert_same_state({key: small.state_dict()[key] for key in others}, others)
    for model in (dense, small):
        assert model.training is training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


# --- number types ------------------------------------------------------------------------------------------------


def rounded(name: str, dtype: torch.dtype) -> tuple[VisionTransformer, VisionTransformer, Keep]:
    dense, keep = cut(name, units=BLOCK_UNITS)
    dense = dense.to(dtype)
    return dense, shrink(dense, keep), keep


def test_a_float32_model_is_refitted_as_the_same_weights_in_float64_are():
    dense, small, keep = rounded("unequal", torch.float32)
    batch, other = calibration(dense.arch), images(dense.arch, 6, seed=200)
    exact_dense, exact = copy.deepcopy(dense).double(), copy.deepcopy(small).double()
    list(refit(dense, small, keep, [batch]))
    list(refit(exact_dense, exact, keep, [batch]))
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    torch.testing.assert_close(small(other.float()).double(), exact(other), rtol=0, atol=1e-4)  # fp32, layer upon layer


@pytest.mark.parametrize("name", ["class_token", "unequal", "pooled"])
def test_a_bfloat16_model_is_refitted_in_float32_and_comes_closer_to_the_dense_one(name):
    dense, small, keep = rounded(name, torch.bfloat16)
    batch = calibration(dense.arch).bfloat16()

    def distance() -> float:
        return float((small(batch) - dense(batch)).detach().float().square().mean())

    before = distance()
    reports = list(refit(dense, small, keep, batch.split(24)))
    assert all(report.after <= report.before * (1 + 1e-5) for report in reports)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())
    assert distance() < before


# --- what is refused ---------------------------------------------------------------------------------------------


def refused(match: str, batches: list[Tensor], **options: float) -> None:
    dense, keep = cut("class_token")
    small = shrink(dense, keep)
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(CalibrationError, match=match):
        list(refit(dense, small, keep, batches, **options))
    assert_same_state(small.state_dict(), before)


def test_no_image_is_refused():
    refused("^no calibration image was given$", [])
    refused("^no calibration image was given$", [calibration(CLASS_TOKEN)[:0]])


def test_an_image_that_is_not_finite_is_named():
    bad = calibration(CLASS_TOKEN)
    bad[5, 0, 3, 3] = float("nan")
    refused(r"^calibration image 5 \(counted from 0\) has pixels that are not finite", list(bad.split(4)))


def test_flat_images_are_refused():
    refused("^all 3 calibration images are flat", [torch.ones(3, 3, 16, 16)])


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_above_zero_is_refused(ridge):
    refused(f"^ridge must be above 0, got {ridge}", [calibration(CLASS_TOKEN)], ridge=ridge)


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("blocks.1.attn.proj.bias", "blocks.1.attn.proj"),
        ("blocks.0.attn.qkv.bias", "blocks.0.attn.qkv"),
        ("head.bias", "head"),
    ],
)
def test_a_refit_that_is_not_finite_is_refused_with_its_layer(parameter, layer):
    dense = dense_model(CLASS_TOKEN)
    keep = some_units(dense.arch, [Unit.MLP])
    small = shrink(dense, keep)
    before = copy.deepcopy(small.state_dict())
    with torch.no_grad():
        dense.get_parameter(parameter)[0] = float("nan")
    with pytest.raises(CalibrationError, match=f"^the refit of {layer} is not finite"):
        list(refit(dense, small, keep, [calibration(dense.arch)]))
    assert_same_state(small.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"layer_scale": True}, "fold layer scale"), ({"qkv_bias": False}, "bias"), ({"proj_bias": False}, "bias")],
)
def test_a_model_that_was_not_rebased_is_a_mistake_of_the_caller(change, match):
    arch = CLASS_TOKEN.replace(**change)
    model = build(arch)
    with pytest.raises(AssertionError, match=match):
        next(refit(model, copy.deepcopy(model), Keep.of(arch, {}), [calibration(arch)]))


def test_so_is_a_small_model_of_another_cut():
    dense, keep = cut("class_token")
    with pytest.raises(AssertionError, match="not cut from this dense model"):
        next(refit(dense, shrink(dense, keep), Keep.of(dense.arch, {}), [calibration(dense.arch)]))
