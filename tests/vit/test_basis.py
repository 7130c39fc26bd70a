"""A better basis computes the same function, and its channels come in the order of what they carry.

B images, N tokens, E embed_dim, H heads, D channels of one head (QK or V), R rows: tokens of all images.
"""

import copy
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor

import vit.basis
from tests.cases import CASES, CLASS_TOKEN, POOLED, assert_same_state, build, images, mask, randomise, some_units
from vit.architecture import Architecture, Unit
from vit.basis import rebase, with_layer_norm
from vit.errors import CalibrationError, UnknownNameError
from vit.groups import EMBED, Keep, groups, is_stream_norm
from vit.model import VisionTransformer
from vit.moments import collect_moments
from vit.surgery import shrink
from vit.timm_models import from_timm

QK_STAYS = "Q and K keep their channels: a norm over them"
SKIPPED = {
    "qk_norm": ("the stream is not rotated: its LayerNorms cannot become RMS norms", QK_STAYS),
    "rms_qk_norm": (QK_STAYS,),
    "pre_norm": ("the stream is not rotated: a norm with a scale of its own writes to it",),
    "features": ("the stream is not rotated: it is what the model gives out",),
    "pooled_before_norm": ("the stream is not rotated: the classifier reads it without a norm",),
}
"""Cases of which a part must stay as it is, and why; nothing is skipped in the others."""

EVERY = CASES | {
    "rms_before_norm": POOLED.replace(norm="rms", final_norm="none"),
    "one_token": POOLED.replace(image_size=(8, 8)),
    "pooled_norm_before": POOLED.replace(class_token=True, reg_tokens=1, final_norm="before_pool"),
    "distilled_features": CLASS_TOKEN.replace(dist_token=True, num_classes=0),
}
SKIPPED["distilled_features"] = SKIPPED["features"]
ROTATED = [name for name in EVERY if not any("not rotated" in reason for reason in SKIPPED.get(name, ()))]
BALANCED = [name for name in EVERY if not EVERY[name].qk_norm and EVERY[name].tokens > 1]
LAYER_NORM_AGAIN = [name for name in ROTATED if not EVERY[name].qk_norm]


def calibration(arch: Architecture, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Images in two batches of unequal size."""
    return list(images(arch, 64, seed=100, dtype=dtype).split(40))


def others(arch: Architecture, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images that no basis was chosen on, and brighter ones."""
    return 2 * images(arch, 6, seed=200, dtype=dtype) + 0.5


def rebased(name: str) -> VisionTransformer:
    return rebase(build(EVERY[name]), calibration(EVERY[name])).model


class Attended(NamedTuple):
    """What one block's attention computes, (H, R, D) each; keys less their mean over the tokens of the same image."""

    query: Tensor
    key: Tensor
    mixed: Tensor


@torch.no_grad()
def look(model: VisionTransformer, batch: Tensor) -> tuple[list[Tensor], list[Attended]]:
    """A forward pass written out: what every reader of the stream sees, (R, E) each, and every block's attention."""
    arch, read, attended = model.arch, [], []
    x = model.embed(batch)
    for index, block in enumerate(model.blocks):
        shape, attention = arch.blocks[index], block.attn
        normalised = block.norm1(x)
        read.append(normalised)
        widths = [shape.num_heads * size for size in (shape.qk_dim, shape.qk_dim, shape.v_dim)]
        query, key, value = (  # B H N D
            piece.unflatten(2, (shape.num_heads, -1)).transpose(1, 2)
            for piece in attention.qkv(normalised).split(widths, dim=2)
        )
        logits = arch.scales[index] * attention.q_norm(query) @ attention.k_norm(key).mT
        mixed = logits.softmax(dim=-1) @ value
        centred = key - key.mean(dim=2, keepdim=True)
        attended.append(Attended(*(piece.transpose(0, 1).flatten(1, 2) for piece in (query, centred, mixed))))
        x = x + block.ls1(attention.proj(mixed.transpose(1, 2).flatten(2)))
        normalised = block.norm2(x)
        read.append(normalised)
        x = x + block.ls2(block.mlp(normalised))
    if arch.pool == "token":
        kept = x[:, : 2 if arch.dist_token else 1]
    else:
        kept = x if arch.pool_include_prefix else x[:, arch.prefix_tokens :]
    if arch.final_norm == "before_pool":
        read.append(model.norm(kept))
    elif arch.final_norm == "after_pool":
        read.append(model.fc_norm(kept.mean(dim=1) if arch.pool == "avg" else kept[:, 0]))
    return [normalised.flatten(0, -2) for normalised in read], attended


def stream_moment(model: VisionTransformer, batch: Tensor) -> Tensor:
    read, _ = look(model, batch)
    return torch.stack([rows.mT @ rows / len(rows) for rows in read]).mean(dim=0)


def second(rows: Tensor) -> Tensor:
    """(H, R, D) -> (H, D, D)."""
    return rows.mT @ rows / rows.shape[1]


def proj_by_head(model: VisionTransformer, index: int) -> Tensor:
    """The columns of `proj` that read each head, (H, E, V)."""
    return (
        model.blocks[index].attn.proj.weight.detach().unflatten(1, (-1, model.arch.blocks[index].v_dim)).movedim(1, 0)
    )


def assert_diagonal_and_descending(moment: Tensor) -> None:
    """moment: (..., D, D)."""
    values = moment.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(moment, torch.diag_embed(values))
    assert (values.diff(dim=-1) <= 1e-9 * values[..., :1]).all()


def best_of_rank(matrix: Tensor, rank: int) -> Tensor:
    """Eckart and Young 1936."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


@pytest.fixture
def exact(monkeypatch):
    """Damping so small that the laws of balancing hold at default tolerance."""
    monkeypatch.setattr(vit.basis, "DAMP", 1e-13)


# --- the same function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", EVERY)
def test_rebasing_changes_no_output(name, seed):
    arch = EVERY[name]
    model = build(arch, seed)
    torch.testing.assert_close(rebase(model, calibration(arch)).model(others(arch)), model(others(arch)))


@pytest.mark.parametrize("name", EVERY)
def test_in_float32_no_output_changes_by_more_than_1e_5(name):
    arch = EVERY[name]
    model = build(arch, dtype=torch.float32)
    batch = images(arch, 6, seed=200, dtype=torch.float32)
    found = rebase(model, calibration(arch, torch.float32)).model(batch)
    torch.testing.assert_close(found, model(batch), rtol=0, atol=1e-5)


TIMM = {
    "vit": (TimmVisionTransformer, {}),
    "deit, distilled": (VisionTransformerDistilled, {}),
    "deit3": (TimmVisionTransformer, {"no_embed_class": True, "init_values": 1e-6}),
    "registers": (TimmVisionTransformer, {"no_embed_class": True, "reg_tokens": 4, "init_values": 1e-5}),
    "avg pool": (TimmVisionTransformer, {"global_pool": "avg", "class_token": False}),
    "clip": (TimmVisionTransformer, {"pre_norm": True, "act_layer": "quick_gelu"}),
    "qk_norm": (TimmVisionTransformer, {"qk_norm": True}),
}
SMALL = {"img_size": 24, "patch_size": 8, "num_classes": 7, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_gives_timms_outputs_after_conversion_and_rebasing(name):
    kind, options = TIMM[name]
    reference = randomise(kind(**(SMALL | options))).double().eval()
    ours = from_timm(reference)
    found = rebase(ours, calibration(ours.arch)).model(others(ours.arch))
    torch.testing.assert_close(found, reference(others(ours.arch)))


@pytest.mark.parametrize("name", EVERY)
def test_what_must_stay_is_named_with_the_reason_and_nothing_else_is(name):
    skipped = rebase(build(EVERY[name]), calibration(EVERY[name])).skipped
    expected = SKIPPED.get(name, ())
    assert len(skipped) == len(expected)
    for reason, start in zip(skipped, expected, strict=True):
        assert reason.startswith(start)


@pytest.mark.parametrize("name", EVERY)
def test_layer_scale_is_folded_biases_are_added_and_layer_norm_becomes_rms_where_the_stream_is_rotated(name):
    arch = EVERY[name]
    expected = arch.replace(
        norm="rms" if name in ROTATED else arch.norm, layer_scale=False, qkv_bias=True, proj_bias=True
    )
    assert rebased(name).arch == expected


@pytest.mark.parametrize("name", ROTATED)
def test_norms_have_no_scale_of_their_own_in_the_new_basis(name):
    for parameter, tensor in rebased(name).state_dict().items():
        if is_stream_norm(parameter):
            assert torch.equal(tensor, torch.ones_like(tensor)), parameter


@pytest.mark.parametrize("name", EVERY)
def test_the_model_is_untouched_and_shares_no_memory_with_the_result(name):
    model = build(EVERY[name])
    before = copy.deepcopy(model.state_dict())
    result = rebase(model, calibration(EVERY[name])).model
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(1)
    assert_same_state(model.state_dict(), before)
    assert model.arch == EVERY[name]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_mode_and_number_type_are_kept(training, dtype):
    model = build(CLASS_TOKEN, dtype=dtype).train(training)
    result = rebase(model, calibration(CLASS_TOKEN, dtype)).model
    for each in (model, result, with_layer_norm(result)):
        assert each.training is training
        assert all(module.training is training for module in each.modules())
        assert {parameter.dtype for parameter in each.parameters()} == {dtype}
        assert all(parameter.requires_grad for parameter in each.parameters())


@pytest.mark.parametrize("name", ["class_token", "layer_scale", "unequal", "pre_norm"])
def test_in_bfloat16_outputs_change_as_little_as_by_rounding_the_weights(name):
    arch = EVERY[name]
    model = build(arch, dtype=torch.bfloat16)
    batch = images(arch, 6, seed=200, dtype=torch.bfloat16)
    found, expected = rebase(model, calibration(arch)).model(batch), model(batch)
    # weights of 8 bits, rounded anew: some percent of the largest logit
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * expected.abs().max().item())


def test_the_same_images_give_the_same_basis_bit_for_bit():
    first, second = (rebased("unequal") for _ in range(2))
    assert_same_state(first.state_dict(), second.state_dict())


def test_rebasing_what_was_rebased_changes_no_output():
    arch = EVERY["unequal"]
    twice = rebase(rebased("unequal"), calibration(arch))
    assert twice.skipped == ()
    torch.testing.assert_close(twice.model(others(arch)), build(arch)(others(arch)))


def test_images_are_counted_over_all_batches_and_may_come_once():
    assert rebase(build(CLASS_TOKEN), iter(calibration(CLASS_TOKEN))).images == 64


# --- the stream --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROTATED)
def test_the_stream_as_its_readers_see_it_has_a_diagonal_second_moment_the_strongest_channel_first(name):
    arch = EVERY[name]
    assert_diagonal_and_descending(stream_moment(rebased(name), torch.cat(calibration(arch))))


@pytest.mark.parametrize("name", [name for name in ROTATED if EVERY[name].norm == "layer"])
def test_of_a_model_with_layer_norm_the_last_channel_is_dead_for_every_image(name):
    model = rebased(name)
    x = model.embed(others(EVERY[name]))
    for block in model.blocks:
        assert x[..., -1].abs().max() < 1e-12 * x.abs().max()
        x = block(x)
    assert x[..., -1].abs().max() < 1e-12 * x.abs().max()


@pytest.mark.parametrize("name", ["rms_norm", "rms_qk_norm", "rms_before_norm"])
def test_of_a_model_with_rms_norms_no_channel_is_dead(name):
    moment = stream_moment(rebased(name), torch.cat(calibration(EVERY[name])))
    assert moment.diagonal().min() > 1e-3


def test_a_rotation_keeps_the_length_of_every_token():
    arch = EVERY["rms_norm"]
    model, batch = build(arch), others(arch)
    torch.testing.assert_close(rebased("rms_norm").embed(batch).norm(dim=-1), model.embed(batch).norm(dim=-1))


# --- queries and keys --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", BALANCED)
def test_queries_and_centred_keys_have_one_diagonal_second_moment_the_strongest_channel_first(name):
    _, attended = look(rebased(name), torch.cat(calibration(EVERY[name])))
    for block in attended:
        assert_diagonal_and_descending(second(block.query))
        torch.testing.assert_close(second(block.key), second(block.query))


@pytest.mark.parametrize("name", BALANCED)
def test_keys_have_no_bias_in_the_new_basis(name):
    model = rebased(name)
    for block, shape in zip(model.blocks, model.arch.blocks, strict=True):
        width = shape.num_heads * shape.qk_dim
        assert (block.attn.qkv.bias[width : 2 * width] == 0).all()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", ["class_token", "unequal", "pooled", "layer_scale", "pre_norm"])
def test_keeping_the_first_qk_channels_is_the_best_low_rank_approximation_of_all_queries_times_all_keys(name):
    arch = EVERY[name]
    batch = torch.cat(calibration(arch))
    _, before = look(build(arch), batch)
    _, after = look(rebased(name), batch)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        for head in range(arch.blocks[index].num_heads):
            products = old.query[head] @ old.key[head].mT  # R R
            for rank in range(1, arch.blocks[index].qk_dim):
                found = new.query[head, :, :rank] @ new.key[head, :, :rank].mT
                torch.testing.assert_close(found, best_of_rank(products, rank))


@pytest.mark.parametrize("damp", [1e-13, 1e-6, 1e-2])
def test_whatever_the_damping_the_function_is_the_same(monkeypatch, damp):
    monkeypatch.setattr(vit.basis, "DAMP", damp)
    arch = EVERY["unequal"]
    torch.testing.assert_close(rebased("unequal")(others(arch)), build(arch)(others(arch)))


def test_with_the_damping_that_ships_moments_are_equal_and_diagonal_up_to_it():
    _, attended = look(rebased("unequal"), torch.cat(calibration(EVERY["unequal"])))
    for block in attended:
        largest = float(second(block.query).max())
        assert (second(block.query) - second(block.key)).abs().max() < 1e-4 * largest
        beside = second(block.query) - torch.diag_embed(second(block.query).diagonal(dim1=1, dim2=2))
        assert beside.abs().max() < 1e-4 * largest


# --- values and proj ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", EVERY)
def test_mixed_values_have_no_mean_and_the_diagonal_covariance_that_proj_has_as_its_gram(name):
    model = rebased(name)
    _, attended = look(model, torch.cat(calibration(EVERY[name])))
    for index, block in enumerate(attended):
        mean, proj = block.mixed.mean(dim=1), proj_by_head(model, index)
        torch.testing.assert_close(mean, torch.zeros_like(mean))
        assert_diagonal_and_descending(second(block.mixed))
        torch.testing.assert_close(proj.mT @ proj, second(block.mixed))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", ["class_token", "unequal", "pooled", "layer_scale", "qk_norm", "pre_norm"])
def test_keeping_the_first_v_channels_is_the_best_low_rank_approximation_of_what_a_head_adds_to_its_mean(name):
    arch = EVERY[name]
    batch, model = torch.cat(calibration(arch)), rebased(name)
    _, before = look(build(arch), batch)
    _, after = look(model, batch)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        block = build(arch).blocks[index]
        columns = proj_by_head(build(arch), index)
        if arch.layer_scale:
            columns = block.ls1.gamma[:, None] * columns
        if name in ROTATED:
            columns = columns - columns.mean(dim=1, keepdim=True)  # LayerNorm does not see what all channels share
        for head in range(arch.blocks[index].num_heads):
            added = (old.mixed[head] - old.mixed[head].mean(dim=0)) @ columns[head].mT  # R E
            now = new.mixed[head] @ proj_by_head(model, index)[head].mT
            torch.testing.assert_close(now @ now.mT, added @ added.mT)  # the same but for the rotation of the stream
            for rank in range(1, arch.blocks[index].v_dim):
                found = new.mixed[head, :, :rank] @ proj_by_head(model, index)[head, :, :rank].mT
                torch.testing.assert_close(found, best_of_rank(now, rank))


@pytest.mark.parametrize("unit", [Unit.EMBED, Unit.QK, Unit.V])
def test_on_average_over_models_the_last_channels_are_cut_at_less_harm_than_the_first_and_than_those_of_the_old_basis(
    unit,
):
    @torch.no_grad()
    def harm(model: VisionTransformer, kept: range) -> float:
        chosen = {group: kept for group in groups(model.arch) if group.unit is unit}
        small = shrink(model, Keep.of(model.arch, chosen))
        return float((small(others(CLASS_TOKEN)) - model(others(CLASS_TOKEN))).square().mean())

    size = 12 if unit is Unit.EMBED else 4
    old = [build(CLASS_TOKEN, seed) for seed in range(8)]
    new = [rebase(model, calibration(CLASS_TOKEN)).model for model in old]
    last_cut = sum(harm(model, range(size // 2)) for model in new)
    assert last_cut < sum(harm(model, range(size // 2, size)) for model in new)
    assert last_cut < sum(harm(model, range(size // 2)) for model in old)


# --- signals that are missing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dead", ["query", "key", "value", "proj", "value but for its bias", "one head"])
def test_units_without_any_signal_stop_nothing(dead, dtype):
    model = build(CLASS_TOKEN, dtype=dtype)
    attention = model.blocks[0].attn
    rows = {"query": slice(0, 12), "key": slice(12, 24), "one head": slice(28, 32)}.get(dead, slice(24, 36))
    with torch.no_grad():
        if dead == "proj":
            attention.proj.weight.zero_()
        else:
            attention.qkv.weight[rows] = 0
            if dead != "value but for its bias":
                attention.qkv.bias[rows] = 0
    batch = images(CLASS_TOKEN, 6, seed=200, dtype=dtype)
    found = rebase(model, calibration(CLASS_TOKEN, dtype)).model(batch)
    torch.testing.assert_close(found, model(batch), rtol=0, atol=1e-5)


def test_in_float32_a_mean_that_dwarfs_what_the_values_spread_stops_nothing():
    """The covariance is a difference of large numbers then, with eigenvalues below zero."""
    model = build(CLASS_TOKEN, dtype=torch.float32)
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[24:] = 1e4
        model.blocks[0].attn.proj.weight.mul_(1e-4)
    batch = images(CLASS_TOKEN, 6, seed=200, dtype=torch.float32)
    found = rebase(model, calibration(CLASS_TOKEN, torch.float32)).model(batch)
    torch.testing.assert_close(found, model(batch), rtol=0, atol=1e-3)  # the values themselves are known to 1e-3


def test_one_image_is_enough_for_the_same_function():
    arch = EVERY["unequal"]
    model = build(arch)
    found = rebase(model, [images(arch, 1)]).model
    torch.testing.assert_close(found(others(arch)), model(others(arch)))


# --- LayerNorm again ---------------------------------------------------------------------------------------------


def check_layer_norm(model: VisionTransformer, batch: Tensor) -> VisionTransformer:
    """The law: the same function, LayerNorm, one channel more, and nothing else."""
    wide = with_layer_norm(model)
    torch.testing.assert_close(wide(batch), model(batch))
    assert wide.arch == model.arch.replace(
        embed_dim=model.arch.embed_dim + 1,
        norm="layer",
        norm_eps=wide.arch.norm_eps,
        layer_scale=False,
        qkv_bias=True,
        proj_bias=True,
    )
    return wide


@pytest.mark.parametrize("name", LAYER_NORM_AGAIN)
def test_a_rebased_model_can_have_layer_norm_for_one_channel_more(name):
    check_layer_norm(rebased(name), others(EVERY[name]))


@pytest.mark.parametrize("change", [{}, {"layer_scale": True}, {"qkv_bias": False, "proj_bias": False}])
def test_so_can_any_model_that_came_with_rms_norms(change):
    arch = EVERY["rms_norm"].replace(**change)
    model = build(arch)
    before = copy.deepcopy(model.state_dict())
    check_layer_norm(model, others(arch))
    assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LAYER_NORM_AGAIN)
def test_so_can_a_rebased_model_that_any_units_were_cut_from(name, seed):
    arch = EVERY[name]
    model = rebased(name)
    keep = some_units(model.arch, Unit, seed)
    small = shrink(model, keep)
    wide = check_layer_norm(small, others(arch))
    torch.testing.assert_close(wide(others(arch)), mask(model, keep)(others(arch)))


@pytest.mark.parametrize("name", [name for name in LAYER_NORM_AGAIN if EVERY[name].norm == "layer"])
def test_without_its_dead_channel_and_with_layer_norm_a_model_has_its_own_shape_and_outputs_again(name):
    arch = EVERY[name]
    model = rebased(name)
    alive = shrink(model, Keep.of(model.arch, {EMBED: range(arch.embed_dim - 1)}))
    again = with_layer_norm(alive)
    torch.testing.assert_close(again(others(arch)), build(arch)(others(arch)))
    assert again.arch.norm_eps == pytest.approx(arch.norm_eps, rel=1e-12)
    expected = arch.replace(layer_scale=False, qkv_bias=True, proj_bias=True)
    assert again.arch.replace(norm_eps=arch.norm_eps) == expected


def test_the_stream_of_a_model_with_layer_norm_again_has_no_mean_to_subtract():
    model = with_layer_norm(rebased("class_token"))
    x = model.blocks(model.embed(others(CLASS_TOKEN)))
    assert x.mean(dim=-1).abs().max() < 1e-12 * x.abs().max()


@pytest.mark.parametrize("width", [2, 3, 13, 64])
def test_helmerts_columns_are_orthonormal_and_orthogonal_to_ones(width):
    columns = vit.basis._hyperplane(width)
    torch.testing.assert_close(columns.mT @ columns, torch.eye(width - 1, dtype=torch.float64))
    torch.testing.assert_close(columns.sum(dim=0), torch.zeros(width - 1, dtype=torch.float64))


# --- the facts that the changes rest on --------------------------------------------------------------------------


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layer_norm_is_an_rms_norm_of_what_is_left_without_the_mean():
    x = rows(5, 7)
    centred = x - x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(F.layer_norm(x, (7,), eps=1e-2), F.rms_norm(centred, (7,), eps=1e-2))


def test_an_rms_norm_commutes_with_rotations():
    x, rotation = rows(5, 7), torch.linalg.qr(rows(7, 7, seed=1)).Q
    torch.testing.assert_close(F.rms_norm(x @ rotation, (7,), eps=1e-2), F.rms_norm(x, (7,), eps=1e-2) @ rotation)


def test_an_rms_norm_of_fewer_channels_is_the_one_with_zeros_given_its_scale_and_epsilon():
    x = rows(5, 7)
    masked = torch.cat([x[:, :4], torch.zeros(5, 3, dtype=torch.float64)], dim=1)
    found = (4 / 7) ** -0.5 * F.rms_norm(x[:, :4], (4,), eps=1e-2 * 7 / 4)
    torch.testing.assert_close(found, F.rms_norm(masked, (7,), eps=1e-2)[:, :4])


# --- moments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_moments_are_those_of_a_forward_pass_written_out(name):
    arch = EVERY[name]
    model = build(arch)
    batch = images(arch, 7)
    found = collect_moments(model, batch.split(3))
    _, attended = look(model, batch)
    torch.testing.assert_close(found.stream, stream_moment(model, batch))
    for moments, block in zip(found.blocks, attended, strict=True):
        mean = block.mixed.mean(dim=1)
        torch.testing.assert_close(moments.query, second(block.query))
        torch.testing.assert_close(moments.key, second(block.key))
        torch.testing.assert_close(moments.mixed_mean, mean)
        torch.testing.assert_close(moments.mixed, second(block.mixed - mean[:, None, :]))
    assert found.images == 7


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [6, 1]])
def test_moments_do_not_depend_on_how_the_images_are_batched(sizes):
    model, batch = build(CLASS_TOKEN), images(CLASS_TOKEN, 7)
    found, expected = collect_moments(model, batch.split(sizes)), collect_moments(model, batch.split(2))
    torch.testing.assert_close(found.stream, expected.stream)
    for one, other in zip(found.blocks, expected.blocks, strict=True):
        for name in ("query", "key", "mixed_mean", "mixed"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name))


# --- images that teach nothing -----------------------------------------------------------------------------------


def refused(batches: list[Tensor], match: str) -> None:
    model = build(CLASS_TOKEN).train()
    with pytest.raises(CalibrationError, match=match):
        rebase(model, batches)
    with pytest.raises(CalibrationError, match=match):
        collect_moments(model, batches)
    assert model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("batches", [[], [images(CLASS_TOKEN, 3)[:0]]])
def test_no_image_is_refused(batches):
    refused(batches, "^no calibration image was given$")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bad", [0, 3, 6])
def test_the_first_image_that_is_not_finite_is_named(bad, value):
    batch = images(CLASS_TOKEN, 7)
    batch[bad:, 2, 5, 1] = value
    refused(list(batch.split(3)), rf"^calibration image {bad} \(counted from 0\) has pixels that are not finite")


COLOURS = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-2.1, -2.0, -1.8]], dtype=torch.float64)
"""Black, white, and black as it is once pixels are normalised channel by channel."""


@pytest.mark.parametrize("colours", [COLOURS, COLOURS[:1], COLOURS[2:]])
def test_images_that_are_all_flat_are_refused(colours):
    flat = colours[:, :, None, None].expand(-1, -1, 16, 16)
    refused([flat], rf"^all {len(flat)} calibration images are flat")
    refused([flat, flat], rf"^all {2 * len(flat)} calibration images are flat")


def test_a_few_flat_images_among_others_are_allowed():
    flat = COLOURS[:, :, None, None].expand(-1, -1, 16, 16)
    model = build(CLASS_TOKEN)
    result = rebase(model, [flat, images(CLASS_TOKEN, 1)])
    assert result.images == 4
    torch.testing.assert_close(result.model(others(CLASS_TOKEN)), model(others(CLASS_TOKEN)))


def test_empty_batches_among_others_are_skipped():
    batch = images(CLASS_TOKEN, 4)
    assert rebase(build(CLASS_TOKEN), [batch[:0], batch, batch[:0]]).images == 4


def test_outputs_that_are_not_finite_are_refused():
    model = build(CLASS_TOKEN)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="the model's outputs are not finite within the first 3 images"):
        rebase(model, [images(CLASS_TOKEN, 3)])


@pytest.mark.parametrize("changes", [(), ("stream",), ("qk",), ("v",), ("qk", "v")])
def test_every_change_leaves_the_function_alone_on_its_own(changes):
    arch = CASES["registers"]
    model, batch = build(arch), images(arch, 4, seed=1)
    found = rebase(model, [images(arch, 8)], changes=changes)
    torch.testing.assert_close(found.model(batch), model(batch))
    assert found.skipped == ()
    assert found.model.arch.norm == ("rms" if "stream" in changes else "layer")


def test_a_change_that_is_none_is_refused():
    with pytest.raises(UnknownNameError, match="unknown change of basis 'mlp'; known: stream, qk, v"):
        rebase(build(CLASS_TOKEN), [images(CLASS_TOKEN)], changes=("mlp",))
