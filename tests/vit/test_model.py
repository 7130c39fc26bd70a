"""Our model is timm's where timm has one, and written-out attention where it has none."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from tests.cases import (
    CASES,
    CLASS_TOKEN,
    UNEQUAL,
    build,
    generator,
    images,
    randomise,
    slow_attention,
    slow_forward,
)
from vit.architecture import Architecture, BlockShape
from vit.errors import CheckpointError, UnknownNameError, UnsupportedModelError
from vit.model import VisionTransformer, initialise
from vit.timm_models import architecture, architecture_of, create, from_timm

SMALL = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 3}
TIMM: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "class token": (TimmVisionTransformer, {}),
    "distilled": (VisionTransformerDistilled, {}),
    "distilled features": (VisionTransformerDistilled, {"num_classes": 0}),
    "registers": (TimmVisionTransformer, {"reg_tokens": 2}),
    "registers without positions": (TimmVisionTransformer, {"reg_tokens": 2, "no_embed_class": True}),
    "avg pool, fc_norm": (TimmVisionTransformer, {"global_pool": "avg"}),
    "avg pool, norm": (TimmVisionTransformer, {"global_pool": "avg", "fc_norm": False}),
    "avg pool over all": (TimmVisionTransformer, {"global_pool": "avg", "pool_include_prefix": True}),
    "avg pool, registers": (TimmVisionTransformer, {"global_pool": "avg", "reg_tokens": 3}),
    "avg pool, no class token": (TimmVisionTransformer, {"global_pool": "avg", "class_token": False}),
    "fc_norm on the class token": (TimmVisionTransformer, {"fc_norm": True}),
    "no final norm": (TimmVisionTransformer, {"final_norm": False}),
    "layer scale": (TimmVisionTransformer, {"init_values": 1e-5}),
    "qk_norm": (TimmVisionTransformer, {"qk_norm": True}),
    "class token without position": (TimmVisionTransformer, {"no_embed_class": True}),
    "no positions": (TimmVisionTransformer, {"pos_embed": "none"}),
    "pre_norm": (TimmVisionTransformer, {"pre_norm": True}),
    "rms norm": (TimmVisionTransformer, {"norm_layer": "rmsnorm", "qk_norm": True}),
    "non-square": (TimmVisionTransformer, {"img_size": (24, 16), "patch_size": (8, 4)}),
    "incomplete patch": (TimmVisionTransformer, {"img_size": (19, 25)}),
    "grey": (TimmVisionTransformer, {"in_chans": 1}),
    "free image size": (TimmVisionTransformer, {"dynamic_img_size": True}),
    "quick_gelu": (TimmVisionTransformer, {"act_layer": "quick_gelu"}),
    "gelu_tanh": (TimmVisionTransformer, {"act_layer": "gelu_tanh"}),
    "no biases": (TimmVisionTransformer, {"qkv_bias": False, "proj_bias": False}),
    "narrow mlp": (TimmVisionTransformer, {"mlp_ratio": 1.5}),
    "dropouts": (TimmVisionTransformer, {"drop_path_rate": 0.5, "patch_drop_rate": 0.5, "drop_rate": 0.5}),
    "features": (TimmVisionTransformer, {"num_classes": 0}),
    "features, avg pool": (TimmVisionTransformer, {"num_classes": 0, "global_pool": "avg"}),
}


def timm_model(name: str) -> nn.Module:
    """With every parameter random, so that tokens, biases and factors that start at zero count."""
    kind, options = TIMM[name]
    return randomise(kind(**(SMALL | options))).eval()


@pytest.mark.parametrize("name", TIMM)
def test_timm_weights_give_timm_outputs(name):
    reference = timm_model(name)
    ours = from_timm(reference)
    batch = images(ours.arch, dtype=torch.float32)
    with torch.no_grad():
        expected, found = reference(batch), ours(batch)
    # fp32 kernels add in another order here and there: 1e-5 of the largest logit
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not ours.training


@pytest.mark.parametrize("name", TIMM)
def test_an_uncut_model_loads_back_into_timm_bit_for_bit(name):
    reference = timm_model(name)
    ours = from_timm(reference)
    kind, options = TIMM[name]
    back = kind(**(SMALL | options)).eval()
    back.load_state_dict(ours.state_dict(), strict=True)
    batch = images(ours.arch, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(back(batch), reference(batch), rtol=0, atol=0)


def test_conversion_copies_and_leaves_the_timm_model_as_it_is():
    reference = timm_model("class token").train()
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    ours = from_timm(reference)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert reference.training
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_conversion_keeps_the_number_type():
    reference = timm_model("class token").double()
    ours = from_timm(reference)
    batch = images(ours.arch)
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), reference(batch))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attention pooling": ({"global_pool": "map"}, "'map'"),
    "maximum pooling": ({"global_pool": "max"}, "'max'"),
    "no pooling": ({"global_pool": ""}, "pooling"),
    "normed attention": ({"scale_attn_norm": True}, "blocks.0.attn.norm"),
    "normed mlp": ({"scale_mlp_norm": True}, "blocks.0.mlp.norm"),
    "gated mlp": ({"mlp_layer": timm.layers.SwiGLU}, "blocks.0.mlp is SwiGLU"),
    "another activation": ({"act_layer": "relu"}, "blocks.0.mlp.act is ReLU"),
    "differential attention": ({"attn_layer": "diff"}, "blocks.0.attn is DiffAttention"),
    "normed patches": ({"embed_norm_layer": "layernorm"}, "patch_embed.norm"),
    "padded image": (
        {"img_size": 20, "dynamic_img_size": True, "dynamic_img_pad": True},
        "patch_embed pads",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plain_is_refused_by_the_name_of_the_part(name):
    options, word = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as caught:
        architecture_of(TimmVisionTransformer(**(SMALL | options)))
    assert word in str(caught.value)


def test_a_distilled_model_with_registers_is_refused_because_timm_ignores_the_registers():
    with pytest.raises(UnsupportedModelError, match="register"):
        architecture_of(VisionTransformerDistilled(**SMALL, reg_tokens=1))


def test_norms_of_two_kinds_or_two_epsilons_are_refused():
    reference = timm_model("class token")
    reference.norm = timm.layers.RmsNorm(12)
    with pytest.raises(UnsupportedModelError, match="LayerNorm, RmsNorm"):
        architecture_of(reference)
    reference.norm = nn.LayerNorm(12, eps=0.5)
    with pytest.raises(UnsupportedModelError, match=r"0\.5"):
        architecture_of(reference)


def test_a_gated_attention_is_refused():
    reference = timm_model("class token")
    reference.blocks[1].attn = timm.layers.Attention(12, num_heads=3, qkv_bias=True, gated=True)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.attn is gated"):
        architecture_of(reference)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), timm.create_model("resnet18", device="meta")])
def test_other_models_are_refused_by_their_class(model):
    with pytest.raises(UnsupportedModelError, match=type(model).__name__):
        architecture_of(model)


def test_a_subclass_of_timms_model_is_refused_because_it_may_compute_anything():
    class Mine(TimmVisionTransformer):
        pass

    with pytest.raises(UnsupportedModelError, match="Mine"):
        architecture_of(Mine(**SMALL))


@pytest.mark.parametrize("call", [create, architecture])
def test_an_unknown_timm_name_lists_known_ones(call: Callable[[str], object]):
    with pytest.raises(UnknownNameError, match="vit_of_nowhere") as caught:
        call("vit_of_nowhere")
    assert caught.value.known
    assert all(architecture_module(name) in ("vision_transformer", "deit") for name in caught.value.known)


def architecture_module(name: str) -> str:
    return str(timm.models.model_entrypoint(name).__module__.rpartition(".")[2])


def test_the_known_names_are_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        architecture("deit_smal_patch16_224")
    assert caught.value.known[0] == "deit_small_patch16_224"


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18", "cait_xxs24_224", "vit_base_mci_224"])
@pytest.mark.parametrize("call", [lambda name: create(name, img_size=64), architecture])
def test_a_model_of_another_kind_is_refused_by_its_name_whatever_its_options(name, call):
    with pytest.raises(UnsupportedModelError, match=rf"^{name} is no timm VisionTransformer; supported are vit_\*"):
        call(name)


def test_unknown_weights_of_a_timm_model_list_the_known_ones():
    with pytest.raises(UnknownNameError, match="unknown weights of deit_tiny_patch16_224 'mine'; known: fb_in1k"):
        create("deit_tiny_patch16_224.mine")


def test_published_weights_that_cannot_be_fetched_say_what_to_do_instead(monkeypatch):
    def no_network(*args: object, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(
        CheckpointError, match=r"cannot be fetched \(OSError: no route\); .*`vitfit import test_vit --w"
    ):
        create("test_vit", pretrained=True)
    with pytest.raises(OSError, match="no route"):
        create("test_vit")


def test_create_converts_a_timm_model_by_name_with_its_options():
    model = create("test_vit", num_classes=3)
    assert model.arch == architecture("test_vit").replace(num_classes=3)
    assert model(images(model.arch, dtype=torch.float32)).shape == (3, 3)


@pytest.mark.parametrize("name", CASES)
def test_the_model_equals_one_with_written_out_attention(name):
    model, batch = build(CASES[name]), images(CASES[name])
    torch.testing.assert_close(model(batch), slow_forward(model, batch))


@pytest.mark.parametrize(("qk_dim", "v_dim"), [(2, 5), (5, 2), (4, 4), (1, 7), (7, 1)])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("scale", [None, (0.9,)])
def test_attention_is_softmax_of_scaled_qk_times_v_for_every_order_of_qk_and_v(qk_dim, v_dim, heads, scale):
    arch = CLASS_TOKEN.replace(blocks=(BlockShape(heads, qk_dim, v_dim, 4),), softmax_scale=scale)
    model = build(arch)
    x = torch.randn(2, 7, arch.embed_dim, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(model.blocks[0].attn(x), slow_attention(model, 0, x))


def test_attention_of_two_tokens_and_one_channel_by_hand():
    arch = CLASS_TOKEN.replace(embed_dim=1, blocks=(BlockShape(1, 1, 1, 1),), softmax_scale=(2.0,))
    attention = build(arch).blocks[0].attn
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.tensor([[1.0], [3.0], [5.0]]))  # q = x, k = 3x, v = 5x
        attention.qkv.bias.zero_()
        attention.proj.weight.fill_(1.0)
        attention.proj.bias.fill_(0.5)
    x = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
    odds = [torch.exp(torch.tensor(2.0 * q * 3.0, dtype=torch.float64)) for q in (1.0, 2.0)]
    # the second key is larger by 3, so its odds are exp(scale · q · 3)
    expected = torch.stack([(5 + 10 * o) / (1 + o) + 0.5 for o in odds]).reshape(1, 2, 1)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_one_row_of_logits_or_features_per_image(name):
    arch = CASES[name]
    outputs = build(arch)(images(arch, count=4))
    assert outputs.shape == (4, arch.num_classes or arch.embed_dim)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_matters(name):
    model, batch = build(CASES[name]), images(CASES[name])
    model(batch).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("k_norm.bias"):
            continue  # shifts all logits of a query alike, which softmax does not see
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-9, parameter_name


@pytest.mark.parametrize("name", CASES)
def test_images_of_a_batch_do_not_see_each_other(name):
    model, batch = build(CASES[name]), images(CASES[name])
    torch.testing.assert_close(model(batch)[1:2], model(batch[1:2]))


def test_fresh_weights_are_reproducible_narrow_and_without_bias():
    arch: Architecture = UNEQUAL.replace(layer_scale=True, pre_norm=True, reg_tokens=1)
    model = initialise(VisionTransformer(arch), generator(3))
    again = initialise(VisionTransformer(arch), generator(3))
    other = initialise(VisionTransformer(arch), generator(4))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "gamma" in name:
            assert (parameter == 1e-5).all(), name
        else:
            assert 0 < parameter.abs().max() <= 0.04, name
            assert not torch.equal(parameter, other.get_parameter(name)), name


def test_building_and_converting_warn_of_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_timm(timm_model("class token"))
    assert caught == []
