"""Which weights are pruned: each preset on models with the names that it was made for, on random weights."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sparsity.errors import SparsityError
from sparsity.layers import CONV, DEPTHWISE, LINEAR, SELECTIONS, Selection, prunable
from sparsity.oneshot import Sparsify, sparsify
from tests.cases import randomise


class Detr(nn.Module):
    """Names of facebookresearch/detr: a ResNet with bottlenecks in a joiner, a transformer, heads."""

    def __init__(self):
        super().__init__()
        body = timm.create_model("resnet26", num_classes=0, global_pool="", channels=(8, 8, 8, 8), stem_width=4)
        joined = nn.Module()
        joined.body = body
        self.backbone = nn.Sequential(joined)
        self.input_proj = nn.Conv2d(body.num_features, 16, 1)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.query_embed = nn.Embedding(5, 16)
        self.class_embed = nn.Linear(16, 4)
        self.bbox_embed = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 4)])

    def forward(self, x):
        seen = self.input_proj(self.backbone[0].body(x)).flatten(2).transpose(1, 2)
        found = self.transformer(seen, self.query_embed.weight.expand(len(x), -1, -1))
        return torch.cat([self.class_embed(found), self.bbox_embed[1](self.bbox_embed[0](found).relu())], -1).mean(1)


class Roberta(nn.Module):
    """Names of transformers' RoBERTa: roberta.encoder.layer.0.attention.self.query, and a classifier."""

    def __init__(self, width=16):
        super().__init__()
        self.roberta = nn.Module()
        self.roberta.embeddings = nn.Embedding(30, width)
        layer = nn.Module()
        layer.attention = nn.ModuleDict(
            {"self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})}
        )
        layer.attention["output"] = nn.ModuleDict({"dense": nn.Linear(width, width)})
        layer.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 32)})
        layer.output = nn.ModuleDict({"dense": nn.Linear(32, width)})
        self.roberta.encoder = nn.Module()
        self.roberta.encoder.layer = nn.ModuleList([layer])
        self.classifier = nn.ModuleDict({"dense": nn.Linear(width, width), "out_proj": nn.Linear(width, 3)})

    def forward(self, words):
        x = self.roberta.embeddings(words)
        for layer in self.roberta.encoder.layer:
            own = layer.attention["self"]
            mixed = F.scaled_dot_product_attention(own["query"](x), own["key"](x), own["value"](x))
            x = x + layer.attention["output"]["dense"](mixed)
            x = x + layer.output["dense"](F.gelu(layer.intermediate["dense"](x)))
        return self.classifier["out_proj"](self.classifier["dense"](x[:, 0]).tanh())


def deit():
    return timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_classes=4)


def swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=28,
        window_size=7,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(1, 2),
        num_classes=4,
    )


def xcit():
    return timm.create_model("xcit_nano_12_p16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=4)


def efficientformer():
    return timm.create_model(
        "efficientformer_l1", depths=(1, 1, 1, 2), embed_dims=(8, 8, 16, 16), num_vit=1, num_classes=4
    )


def resnet50d():
    return timm.create_model("resnet50d", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), stem_width=4, num_classes=4)


def efficientnetv2():
    return timm.create_model("tf_efficientnetv2_b0", channel_multiplier=0.25, depth_multiplier=0.3, num_classes=4)


def pictures(count=2):
    def of(step):
        for number in range(count):
            draw = torch.Generator().manual_seed(10 * step + number)
            yield torch.randn(2, 3, 32, 32, generator=draw), torch.randint(0, 4, (2,), generator=draw)

    return of


def larger_pictures(step):
    for x, y in pictures()(step):
        yield F.interpolate(x, (224, 224)), y


def smaller_pictures(step):
    for x, y in pictures()(step):
        yield x[:, :, :28, :28], y


def words(step):
    for number in range(2):
        draw = torch.Generator().manual_seed(10 * step + number)
        yield torch.randint(0, 30, (2, 6), generator=draw), torch.randint(0, 3, (2,), generator=draw)


def loss(model, x, y):
    return F.cross_entropy(model(x), y)


CASES = {
    "vit": (deit, pictures(), ["head.weight", "patch_embed.proj.weight"]),
    "swin": (
        swin,
        smaller_pictures,
        ["head.fc.weight", "patch_embed.proj.weight", "layers.1.downsample.reduction.weight"],
    ),
    "xcit": (xcit, pictures(), ["head.weight"]),
    "efficientformer": (efficientformer, larger_pictures, ["head.weight", "head_dist.weight", "stem.conv1.weight"]),
    "resnet50d": (resnet50d, pictures(), ["conv1.0.weight", "conv1.3.weight", "conv1.6.weight", "fc.weight"]),
    "efficientnetv2": (efficientnetv2, pictures(), ["conv_stem.weight", "classifier.weight"]),
    "detr": (Detr, pictures(), ["backbone.0.body.conv1.weight", "input_proj.weight", "class_embed.weight"]),
    "roberta": (Roberta, words, ["classifier.dense.weight", "classifier.out_proj.weight"]),
}
"""Preset -> a model, its batches, and layers that stay dense."""


def made(preset):
    torch.manual_seed(0)
    return randomise(CASES[preset][0]()).eval()


@pytest.mark.parametrize("preset", list(CASES))
def test_a_preset_selects_the_layers_that_its_source_names(preset):
    model = made(preset)
    found = prunable(model, SELECTIONS[preset])
    parameters = dict(model.named_parameters())
    assert all(parameters[name] is weight for name, weight in found.items())
    assert not found.keys() & set(CASES[preset][2])
    assert parameters.keys() >= set(CASES[preset][2])
    assert len(found) >= 6
    modules = dict(model.named_modules())
    for name, weight in found.items():
        module = modules[name.rpartition(".")[0]]
        assert weight.ndim >= 2
        assert not (isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1), name


@pytest.mark.parametrize("method", ["magnitude", "ovit"])
@pytest.mark.parametrize("preset", list(CASES))
def test_a_preset_s_model_is_pruned_and_runs(preset, method):
    model, (_, batches, dense) = made(preset), CASES[preset]
    selection = SELECTIONS[preset]
    request = Sparsify(sparsity=0.6, method=method, selection=selection, block_size=16, silent="skip", damp=1e-4)
    done = sparsify(model, batches, loss, request)
    assert done.mask.zeros == round(0.6 * done.mask.total)
    assert done.mask.keep.keys() == prunable(model, selection).keys()
    for name in dense:
        assert torch.equal(done.model.get_parameter(name), model.get_parameter(name)), name
    assert loss(done.model, *next(iter(batches(0)))).isfinite()


def test_every_preset_is_tried():
    assert CASES.keys() == SELECTIONS.keys() - {"all"}


def test_papers_block_sizes_are_those_of_the_presets():
    assert SELECTIONS["resnet50d"].block_size == 256
    assert SELECTIONS["efficientnetv2"].block_size == 16
    layout = Sparsify(sparsity=0.5, selection=SELECTIONS["resnet50d"]).layout("w", torch.zeros(32, 32))
    assert layout.block_size == 256


def test_every_linear_layer_of_every_block_of_a_vit_and_nothing_else():
    names = [
        f"blocks.{block}.{part}.weight" for block in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert list(prunable(made("vit"), SELECTIONS["vit"])) == names


def test_all_convolutions_of_detr_s_backbone_but_the_first_and_attention_s_input_projections():
    model = made("detr")
    found = prunable(model, SELECTIONS["detr"])
    convolutions = [
        f"{name}.weight"
        for name, module in model.backbone.named_modules(prefix="backbone")
        if isinstance(module, nn.Conv2d)
    ]
    assert {name for name in found if name.startswith("backbone")} == set(convolutions) - {
        "backbone.0.body.conv1.weight"
    }
    assert "backbone.0.body.layer1.0.conv1.weight" in found
    linear = {
        name
        for name in dict(model.transformer.named_parameters(prefix="transformer"))
        if "norm" not in name and name.endswith("weight")
    }
    assert {name for name in found if name.startswith("transformer")} == linear
    assert any("in_proj_weight" in name for name in linear)


@pytest.mark.parametrize(
    "name", ["backbone.conv1.weight", "model.backbone.conv_encoder.model.conv1.weight", "backbone.0.body.conv1.weight"]
)
def test_the_first_convolution_of_a_detection_backbone_is_dense_wherever_it_is(name):
    model = nn.Module()
    for path in (name, name.replace("conv1", "layer1.0.conv1"), name.replace("conv1", "layer1.0.conv2")):
        at = model
        *folders, leaf = path.removesuffix(".weight").split(".")
        for folder in folders:
            if not hasattr(at, folder):
                at.add_module(folder, nn.Module())
            at = getattr(at, folder)
        at.add_module(leaf, nn.Conv2d(2, 2, 1))
    assert len(prunable(model, SELECTIONS["detr"])) == 2


def test_kinds_of_layers():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "conv": nn.Conv2d(4, 4, 3),
            "signal": nn.Conv1d(4, 4, 3),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "depthwise": nn.Conv2d(4, 8, 3, groups=4),
            "attention": nn.MultiheadAttention(4, 2),
            "apart": nn.MultiheadAttention(4, 2, kdim=6, vdim=6),
            "norm": nn.LayerNorm(4),
            "table": nn.Embedding(4, 4),
        }
    )
    of = {
        kind: [n.removesuffix("weight") for n in prunable(model, Selection(kinds=(kind,)))]
        for kind in (LINEAR, CONV, DEPTHWISE)
    }
    assert of[CONV] == ["conv.", "signal.", "grouped."]
    assert of[DEPTHWISE] == ["depthwise."]
    apart = ["apart.q_proj_", "apart.k_proj_", "apart.v_proj_"]
    assert of[LINEAR] == ["linear.", "attention.in_proj_", "attention.out_proj.", *apart, "apart.out_proj."]


def test_case_counts_and_exclusion_comes_last():
    model = nn.ModuleDict({"Head": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert list(prunable(model, Selection(("head.*",)))) == ["head.weight"]
    assert list(prunable(model, Selection(exclude=("head.*",)))) == ["Head.weight"]


def test_nothing_selected_is_an_error_that_shows_names():
    with pytest.raises(SparsityError, match=r"no weight matches layers.*blocks.0"):
        prunable(made("vit"), Selection(("layers.*",)))


def test_a_weight_that_two_layers_share_needs_both_selected_and_is_pruned_once():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "table": nn.Embedding(4, 4)})
    model["b"].weight = model["a"].weight
    with pytest.raises(SparsityError, match=r"a.weight is the same weight as b.weight"):
        prunable(model, Selection(("a.*",)))
    assert list(prunable(model, Selection())) == ["a.weight"]
    done = sparsify(model, None, None, Sparsify(sparsity=0.5, method="magnitude", selection=Selection()))
    assert done.mask.total == 16
    assert done.model["a"].weight is done.model["b"].weight
    model["table"].weight = model["a"].weight
    with pytest.raises(SparsityError, match=r"the same weight as table.weight"):
        prunable(model, Selection())
