"""The closed forms for parameters and MACs are exact for every plain model that timm has.

timm's own model on the meta device is the truth: its parameters are counted, its products are counted by torch.
"""

import math
import re
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.cases import CASES, CLASS_TOKEN, build, images, slow_forward
from vit.architecture import Architecture, BlockShape
from vit.cost import block_macs, head_macs, macs, params, stem_macs
from vit.errors import UnsupportedModelError
from vit.groups import parts
from vit.model import VisionTransformer
from vit.timm_models import architecture_of

MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid")

NOT_PLAIN: dict[str, str] = {
    "aimv2_": "patch_embed.norm is RmsNorm",
    "beit3_": "blocks.0.attn.norm is LayerNorm",
    "test_vit3": "pooling is 'map'",
    r"_siglip_\d": "pooling is 'map'",
    "_map_": "pooling is 'map'",
    "_mci_": "patch_embed is HybridEmbed",
    "_r26_": "patch_embed is HybridEmbed",
    "_r50_": "patch_embed is HybridEmbed",
    "_resnet26d_": "patch_embed is HybridEmbed",
    "_resnet50d_": "patch_embed is HybridEmbed",
    "_r_s16_": "patch_embed is HybridEmbed",
    "_18x2_": "blocks.0 is ParallelThingsBlock",
    "_rpn_": "blocks.0 is ResPostBlock",
    "_xp_": "blocks.0 is ParallelScalingBlock",
    "_pwee_": "blocks.0 is ParallelScalingBlock",
    "_dpwee_": "blocks.0 is DiffParallelScalingBlock",
    "_dwee_": "blocks.0.attn is DiffAttention",
    "_dlittle_": "blocks.0.attn is DiffAttention",
    "vit_giant_patch14_dinov2": "blocks.0.mlp is GluMlp",
    "vit_giant_patch14_reg4_dinov2": "blocks.0.mlp is GluMlp",
    "vit_giant_patch14_reg1_tipsv2": "blocks.0.mlp is GluMlp",
}
"""Families of timm's Vision Transformers that are not plain, by a pattern of their names, and what differs."""


def _names() -> list[str]:
    entrypoint = timm.models.model_entrypoint
    return [n for n in timm.list_models() if entrypoint(n).__module__.rsplit(".", 1)[-1] in MODULES]


NAMES = _names()
PLAIN = [name for name in NAMES if not any(re.search(family, name) for family in NOT_PLAIN)]
REFUSED = [name for name in NAMES if name not in PLAIN]


def _timm_on_meta(name: str) -> nn.Module:
    return timm.create_model(name, device="meta").eval()


def _count_macs(model: nn.Module, arch: Architecture) -> int:
    """torch's counter counts two flops per multiply-add, of matrix products, attention and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, arch.in_chans, *arch.image_size, device="meta"))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_plain_names_cover_all_of_deit_and_at_least_120_models():
    assert len(PLAIN) >= 120
    assert set(timm.list_models(["deit_*", "deit3_*"])) <= set(PLAIN)
    for family in ("clip", "dinov2", "reg4", "gap"):
        assert any(family in name for name in PLAIN), family


@pytest.mark.parametrize("name", PLAIN)
def test_params_macs_shapes_and_parts_equal_timms(name):
    reference = _timm_on_meta(name)
    arch = architecture_of(reference)
    assert params(arch) == sum(parameter.numel() for parameter in reference.parameters())
    assert macs(arch) == _count_macs(reference, arch)
    with torch.device("meta"):
        assert _shapes(VisionTransformer(arch)) == _shapes(reference)
    covered: Counter[str] = Counter()
    for part in parts(arch):
        covered[part.parameter] += math.prod(part.shape)
    assert covered == {n: parameter.numel() for n, parameter in reference.named_parameters()}


@pytest.mark.parametrize("name", REFUSED)
def test_a_timm_model_that_is_not_plain_is_refused_by_the_part_that_differs(name):
    reference = _timm_on_meta(name)
    (expected,) = {word for family, word in NOT_PLAIN.items() if re.search(family, name)}
    with pytest.raises(UnsupportedModelError) as caught:
        architecture_of(reference)
    assert expected in str(caught.value)


def test_every_family_that_is_not_plain_exists():
    for family in NOT_PLAIN:
        assert any(re.search(family, name) for name in NAMES), family


@pytest.mark.parametrize("name", CASES)
def test_params_are_those_of_the_built_model(name):
    arch = CASES[name]
    assert params(arch) == sum(parameter.numel() for parameter in VisionTransformer(arch).parameters())


@pytest.mark.parametrize("name", CASES)
def test_macs_are_the_multiply_adds_of_the_model_with_written_out_attention(name):
    # written out, because the fused kernel pads the smaller of QK and V, which no paper counts
    arch = CASES[name]
    model, batch = build(arch), images(arch, count=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        slow_forward(model, batch)
    assert counter.get_total_flops() == 2 * macs(arch)


@pytest.mark.parametrize("name", [n for n, a in CASES.items() if all(b.qk_dim == b.v_dim for b in a.blocks)])
def test_macs_are_those_of_our_model_where_qk_equals_v(name):
    arch = CASES[name]
    with torch.device("meta"):
        model = VisionTransformer(arch).eval()
    assert macs(arch) == _count_macs(model, arch)


def test_macs_by_hand():
    # 4 patches of 8 x 8 x 3 and a class token: N = 5, E = 12
    arch = CLASS_TOKEN.replace(blocks=(BlockShape(num_heads=2, qk_dim=3, v_dim=4, mlp_dim=7),))
    assert stem_macs(arch) == 4 * (8 * 8 * 3) * 12
    assert head_macs(arch) == 12 * 5
    assert head_macs(CASES["distilled"]) == 2 * 12 * 5
    assert head_macs(CASES["features"]) == 0
    block = 5 * 12 * (6 + 6 + 8) + 2 * 5 * 5 * (3 + 4) + 5 * 8 * 12 + 2 * 5 * 12 * 7
    assert macs(arch) == stem_macs(arch) + block + head_macs(arch)


def test_params_by_hand():
    arch = CLASS_TOKEN.replace(blocks=(BlockShape(num_heads=2, qk_dim=3, v_dim=4, mlp_dim=7),))
    stem = (192 + 1) * 12 + 12 + 5 * 12
    attention = (12 + 1) * (6 + 6 + 8) + (8 + 1) * 12
    mlp = (12 + 1) * 7 + (7 + 1) * 12
    assert params(arch) == stem + 24 + attention + 24 + mlp + 24 + (12 + 1) * 5


def test_block_macs_of_arrays_are_those_of_their_elements():
    sizes = np.random.default_rng(0).integers(1, 50, size=(5, 20)).astype(np.float64)
    found = block_macs(197, *sizes)
    expected = [block_macs(197, *(int(size) for size in column)) for column in sizes.T]
    np.testing.assert_array_equal(found, expected)
