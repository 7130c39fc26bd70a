"""Cutting a unit out equals zeroing its slices, where that can be, and the model that is cut survives."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import CASES, CLASS_TOKEN, assert_same_state, build, images, mask, slow_forward, some_units
from vit.architecture import BLOCK_UNITS, Unit
from vit.groups import EMBED, Group, Keep, parts
from vit.model import VisionTransformer
from vit.surgery import shrink, view

WITH_QK_NORM = [name for name, arch in CASES.items() if arch.qk_norm]


def maskable(name: str) -> list[Unit]:
    """QK under qk-norm is left out: its norm averages over the QK channels that remain, a mask over all."""
    return [unit for unit in BLOCK_UNITS if not (unit is Unit.QK and CASES[name].qk_norm)]


@pytest.mark.parametrize(("name", "unit"), [(name, unit) for name in CASES for unit in maskable(name)])
def test_shrinking_heads_qk_v_or_mlp_equals_masking_them(name, unit):
    arch = CASES[name]
    model, keep = build(arch), some_units(arch, [unit])
    assert keep.architecture(arch) != arch
    torch.testing.assert_close(shrink(model, keep)(images(arch)), mask(model, keep)(images(arch)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_shrinking_all_block_units_at_once_equals_masking_them(name, seed):
    arch = CASES[name]
    model, keep = build(arch, seed), some_units(arch, maskable(name), seed)
    batch = images(arch, seed=seed)
    torch.testing.assert_close(shrink(model, keep)(batch), mask(model, keep)(batch))


@pytest.mark.parametrize("name", WITH_QK_NORM)
def test_shrinking_qk_under_qk_norm_differs_from_masking_because_the_norm_averages_over_what_remains(name):
    arch = CASES[name]
    model, keep = build(arch), some_units(arch, [Unit.QK])
    difference = shrink(model, keep)(images(arch)) - mask(model, keep)(images(arch))
    assert difference.abs().max() > 1e-3


class NormOverKept(nn.Module):
    """A norm that averages over the kept channels only and puts zeros in the others."""

    def __init__(self, norm: nn.Module, kept: list[int]) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        inside, norm = x[..., self.kept], self.norm
        weight = norm.weight[self.kept]
        if isinstance(norm, nn.LayerNorm):
            out = F.layer_norm(inside, weight.shape, weight, norm.bias[self.kept], norm.eps)
        else:
            out = F.rms_norm(inside, weight.shape, weight, norm.eps)
        return torch.zeros_like(x).index_copy(-1, torch.tensor(self.kept), out)


def _norms_over_kept(model: VisionTransformer, group: Group, kept: list[int]) -> VisionTransformer:
    """The model with every norm over the axis of `group` averaging over its kept units only."""
    over = {part.parameter for part in parts(model.arch) if part.axes == (group,)}
    changed = copy.deepcopy(model)
    for name, module in list(changed.named_modules()):
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and f"{name}.weight" in over:
            changed.set_submodule(name, NormOverKept(module, kept))
    return changed


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].norm == "rms"])
def test_shrinking_embed_equals_masking_it_under_rms_norms(name):
    arch = CASES[name]
    model, keep = build(arch), some_units(arch, [Unit.EMBED])
    small = shrink(model, keep)
    assert small.arch == keep.architecture(arch)
    # qk-norm shares the norms' epsilon, which therefore stays: a millionth of the mean square.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if arch.qk_norm else {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(small(images(arch)), mask(model, keep)(images(arch)), **tolerance)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].norm == "layer"])
def test_shrinking_embed_equals_masking_it_in_a_model_whose_norms_average_over_the_kept_channels(name):
    arch = CASES[name]
    model, keep = build(arch), some_units(arch, [Unit.EMBED])
    kept = keep.indices[EMBED].tolist()
    assert 1 < len(kept) < arch.embed_dim  # of one channel, LayerNorm leaves nothing
    found, expected = shrink(model, keep)(images(arch)), mask(model, keep)(images(arch))
    averaged = _norms_over_kept(mask(model, keep), EMBED, kept)(images(arch))
    if arch.num_classes == 0:
        expected, averaged = expected[:, kept], averaged[:, kept]
    torch.testing.assert_close(found, averaged)
    assert (found - expected).abs().max() > 1e-3  # masking alone does not do it


@pytest.mark.parametrize("name", WITH_QK_NORM)
def test_shrinking_qk_under_qk_norm_equals_masking_it_with_norms_over_the_kept_channels(name):
    arch = CASES[name]
    model, keep = build(arch), some_units(arch, [Unit.QK])
    changed = mask(model, keep)
    for index in range(arch.depth):
        group = Group(Unit.QK, index)
        changed = _norms_over_kept(changed, group, keep.indices[group].tolist())
    torch.testing.assert_close(shrink(model, keep)(images(arch)), changed(images(arch)))


@pytest.mark.parametrize("cut", [shrink, mask])
@pytest.mark.parametrize("name", CASES)
def test_the_model_that_is_cut_is_untouched(name, cut):
    model = build(CASES[name])
    before = copy.deepcopy(model.state_dict())
    result = cut(model, some_units(CASES[name], Unit))
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(1)  # the copies share no memory
    assert_same_state(model.state_dict(), before)
    assert model.arch == CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_keeping_everything_gives_the_same_architecture_weights_and_outputs(name):
    arch = CASES[name]
    model, everything = build(arch), Keep.of(arch, {})
    for same in (shrink(model, everything), mask(model, everything)):
        assert same.arch == arch
        assert_same_state(same.state_dict(), model.state_dict())
        torch.testing.assert_close(same(images(arch)), model(images(arch)), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_cutting_twice_equals_cutting_once(name, seed):
    arch = CASES[name]
    model, first = build(arch, seed), some_units(arch, Unit, seed)
    second = some_units(first.architecture(arch), Unit, seed + 100)
    both = Keep.of(arch, {group: chosen[second.indices[group]] for group, chosen in first.indices.items()})
    in_two, at_once = shrink(shrink(model, first), second), shrink(model, both)
    batch = images(arch)
    if arch.norm == "rms":  # what makes up for fewer channels is a quotient, and two of them round
        assert in_two.arch.replace(norm_eps=1e-6) == at_once.arch.replace(norm_eps=1e-6)
        assert in_two.arch.norm_eps == pytest.approx(at_once.arch.norm_eps, rel=1e-12)
        torch.testing.assert_close(in_two(batch), at_once(batch), rtol=1e-12, atol=1e-12)
        return
    assert in_two.arch == at_once.arch
    assert_same_state(in_two.state_dict(), at_once.state_dict())
    torch.testing.assert_close(in_two(batch), at_once(batch), rtol=0, atol=0)


def test_the_softmax_scale_is_that_of_the_original_qk_dim_after_one_and_two_cuts():
    model, qk = build(CLASS_TOKEN), Group(Unit.QK, 0)
    once = shrink(model, Keep.of(CLASS_TOKEN, {qk: [0, 1, 3]}))
    twice = shrink(once, Keep.of(once.arch, {qk: [2]}))
    assert [m.arch.blocks[0].qk_dim for m in (model, once, twice)] == [4, 3, 1]
    for m in (model, once, twice):
        assert m.arch.scales == (4**-0.5, 4**-0.5)
        assert [block.attn.scale for block in m.blocks] == [4**-0.5, 4**-0.5]


@pytest.mark.parametrize("name", CASES)
def test_a_cut_model_equals_written_out_attention(name):
    arch = CASES[name]
    small = shrink(build(arch), some_units(arch, Unit, seed=7))
    torch.testing.assert_close(small(images(arch)), slow_forward(small, images(arch)))


def test_the_kept_weights_are_the_slices_by_hand():
    model = build(CLASS_TOKEN)
    keep = Keep.of(
        CLASS_TOKEN,
        {EMBED: [0, 5, 11], Group(Unit.HEAD, 1): [0, 2], Group(Unit.QK, 1): [1], Group(Unit.V, 1): [0, 3]},
    )
    small = shrink(model, keep)
    rows = [1, 9, 12 + 1, 12 + 9, 24 + 0, 24 + 3, 24 + 8, 24 + 11]  # Q, K, V of heads 0 and 2
    old, new = model.blocks[1].attn, small.blocks[1].attn
    assert torch.equal(new.qkv.weight, old.qkv.weight[rows][:, [0, 5, 11]])
    assert torch.equal(new.qkv.bias, old.qkv.bias[rows])
    assert torch.equal(new.proj.weight, old.proj.weight[[0, 5, 11]][:, [0, 3, 8, 11]])
    assert torch.equal(new.proj.bias, old.proj.bias[[0, 5, 11]])
    assert torch.equal(small.pos_embed, model.pos_embed[..., [0, 5, 11]])
    assert torch.equal(small.head.weight, model.head.weight[:, [0, 5, 11]])
    assert torch.equal(small.head.bias, model.head.bias)


def test_a_mask_zeroes_every_slice_of_the_dropped_units_and_nothing_else():
    model, head = build(CLASS_TOKEN), Group(Unit.HEAD, 0)
    masked = mask(model, Keep.of(CLASS_TOKEN, {head: [0, 2]}))
    before, after = model.state_dict(), masked.state_dict()
    for part in parts(CLASS_TOKEN):
        old, new = view(part, before).clone(), view(part, after)
        if head in part.axes:
            old.select(part.axes.index(head), 1).zero_()
        assert torch.equal(new, old), part


@pytest.mark.parametrize("cut", [shrink, mask])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mode_and_number_type_are_kept(cut, training, dtype):
    model = build(CLASS_TOKEN, dtype=dtype).train(training)
    result = cut(model, some_units(CLASS_TOKEN, Unit))
    assert result.training == training
    assert {parameter.dtype for parameter in result.parameters()} == {dtype}
    assert all(parameter.requires_grad for parameter in result.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cut_model_stays_on_its_device():
    model = build(CLASS_TOKEN).cuda()
    keep = some_units(CLASS_TOKEN, BLOCK_UNITS)
    batch = images(CLASS_TOKEN).cuda()
    small = shrink(model, keep)
    assert {parameter.device.type for parameter in small.parameters()} == {"cuda"}
    torch.testing.assert_close(small(batch), mask(model, keep)(batch))


def test_a_part_is_seen_without_a_copy():
    tensors = {"blocks.0.attn.qkv.bias": torch.arange(36.0)}
    part = next(p for p in parts(CLASS_TOKEN) if p.parameter == "blocks.0.attn.qkv.bias" and p.start == 12)
    np.testing.assert_array_equal(view(part, tensors), np.arange(12, 24).reshape(3, 4))
    view(part, tensors).zero_()
    assert tensors["blocks.0.attn.qkv.bias"][12:24].eq(0).all()
