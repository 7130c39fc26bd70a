"""An Architecture that exists can be built, survives JSON, and has one id; what cannot be built names its field."""

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import CASES, CLASS_TOKEN, POOLED, UNEQUAL
from vit.architecture import (
    ACTIVATIONS,
    BLOCK_UNITS,
    FINAL_NORMS,
    MAX_SIZE,
    NORMS,
    POS_EMBEDS,
    Architecture,
    BlockShape,
    Unit,
)
from vit.errors import ArchitectureError, VitfitError

SIZES = st.integers(1, MAX_SIZE)
BLOCKS = st.lists(st.builds(BlockShape, SIZES, SIZES, SIZES, SIZES), min_size=1, max_size=4).map(tuple)
LAWS = settings(derandomize=True, database=None, deadline=None, max_examples=200)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any architecture that the rules allow."""
    blocks = draw(BLOCKS)
    patch = (draw(SIZES), draw(SIZES))
    image = tuple(draw(st.integers(size, MAX_SIZE)) for size in patch)
    class_token = draw(st.booleans())
    pool = draw(st.sampled_from(["token", "avg"] if class_token else ["avg"]))
    positive = st.floats(1e-30, 1e30)
    scale = st.lists(positive, min_size=len(blocks), max_size=len(blocks)).map(tuple)
    flags = (
        "pool_include_prefix",
        "pre_norm",
        "patch_bias",
        "qkv_bias",
        "proj_bias",
        "qk_norm",
        "layer_scale",
    )
    return Architecture(
        image_size=image,
        patch_size=patch,
        in_chans=draw(SIZES),
        num_classes=draw(st.integers(0, MAX_SIZE)),
        embed_dim=draw(SIZES),
        blocks=blocks,
        class_token=class_token,
        dist_token=pool == "token" and draw(st.booleans()),
        reg_tokens=draw(st.integers(0, MAX_SIZE)),
        pool=pool,
        pos_embed=draw(st.sampled_from(POS_EMBEDS)),
        norm=draw(st.sampled_from(NORMS)),
        norm_eps=draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
        final_norm=draw(st.sampled_from(FINAL_NORMS)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        softmax_scale=draw(st.none() | scale),
        **{flag: draw(st.booleans()) for flag in flags},
    )


@LAWS
@given(architectures())
def test_any_architecture_survives_json(arch):
    again = Architecture.from_json(arch.to_json())
    assert again == arch
    assert again.id == arch.id
    assert hash(again) == hash(arch)
    assert Architecture.from_dict(arch.to_dict()) == arch


@LAWS
@given(architectures(), st.randoms(use_true_random=False))
def test_the_id_does_not_depend_on_the_order_or_spacing_of_the_document(arch, random):
    items = list(arch.to_dict().items())
    random.shuffle(items)
    assert Architecture.from_json(json.dumps(dict(items), indent=random.randrange(4))).id == arch.id


@LAWS
@given(architectures(), architectures())
def test_ids_are_equal_exactly_when_architectures_are(one, other):
    assert (one.id == other.id) == (one == other)


@LAWS
@given(architectures())
def test_token_counts_are_those_of_the_image(arch):
    (height, width), (patch_h, patch_w) = arch.image_size, arch.patch_size
    assert arch.patches == len(range(patch_h, height + 1, patch_h)) * len(range(patch_w, width + 1, patch_w))
    assert arch.tokens - arch.patches == arch.prefix_tokens
    assert arch.prefix_tokens == [arch.class_token, arch.dist_token].count(True) + arch.reg_tokens
    assert arch.depth == len(arch.scales) == len(arch.blocks)


CHANGES: dict[str, Any] = {
    "image_size": (24, 16),
    "patch_size": (8, 4),
    "in_chans": 1,
    "num_classes": 6,
    "embed_dim": 13,
    "blocks": UNEQUAL.blocks,
    "class_token": False,
    "dist_token": True,
    "reg_tokens": 1,
    "pool": "avg",
    "pool_include_prefix": True,
    "pos_embed": "patches",
    "norm": "rms",
    "norm_eps": 1e-5,
    "pre_norm": True,
    "final_norm": "after_pool",
    "patch_bias": False,
    "qkv_bias": False,
    "proj_bias": False,
    "qk_norm": True,
    "layer_scale": True,
    "activation": "quick_gelu",
    "softmax_scale": (0.5, 0.25),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Architecture)])
def test_the_id_differs_under_a_change_of_any_field(name):
    base = CLASS_TOKEN.replace(pool="avg") if name == "class_token" else CLASS_TOKEN
    changed = base.replace(**{name: CHANGES[name]})
    assert changed != base
    assert changed.id != base.id


@pytest.mark.parametrize("name", [field.name for field in fields(BlockShape)])
def test_the_id_differs_under_a_change_of_any_size_of_a_block(name):
    document = CLASS_TOKEN.to_dict()
    document["blocks"][1][name] += 1
    assert Architecture.from_dict(document).id != CLASS_TOKEN.id


def test_the_id_is_a_hash_of_the_canonical_json():
    assert json.loads(CLASS_TOKEN.to_json()) == CLASS_TOKEN.to_dict()
    assert " " not in CLASS_TOKEN.to_json()
    assert list(json.loads(CLASS_TOKEN.to_json())) == sorted(CLASS_TOKEN.to_dict())
    assert CLASS_TOKEN.id == Architecture.from_json(CLASS_TOKEN.to_json()).id
    prefix, digits = CLASS_TOKEN.id.split("-")
    assert (prefix, len(digits)) == ("arch", 16)
    assert int(digits, 16) >= 0


def test_the_cases_have_ids_of_their_own():
    assert len({arch.id for arch in CASES.values()}) == len(CASES)


def test_defaults_and_single_numbers_may_be_left_to_the_document():
    document = {
        "image_size": 16,
        "patch_size": 8,
        "in_chans": 3,
        "num_classes": 5,
        "embed_dim": 12,
        "blocks": [{"num_heads": 3, "qk_dim": 4, "v_dim": 4, "mlp_dim": 16}] * 2,
    }
    assert Architecture.from_dict(document) == CLASS_TOKEN


@pytest.mark.parametrize("build", [tuple, list])
def test_the_default_softmax_scale_is_always_written_as_none(build):
    scale = tuple(block.qk_dim**-0.5 for block in UNEQUAL.blocks)
    assert UNEQUAL.replace(softmax_scale=scale) == UNEQUAL
    document = UNEQUAL.to_dict() | {"softmax_scale": build(scale)}
    again = Architecture.from_dict(document)
    assert again.softmax_scale is None
    assert again.id == UNEQUAL.id
    assert again.scales == scale


def test_another_softmax_scale_is_kept_even_if_it_is_the_default_of_some_blocks():
    scale = (UNEQUAL.blocks[0].qk_dim ** -0.5, 0.1, 1.0)
    arch = UNEQUAL.replace(softmax_scale=scale)
    assert arch.softmax_scale == arch.scales == scale
    assert arch.id != UNEQUAL.id


def test_a_whole_number_may_stand_for_a_softmax_scale():
    document = CLASS_TOKEN.to_dict() | {"softmax_scale": [1, 2]}
    assert Architecture.from_dict(document).scales == (1.0, 2.0)


def test_architectures_and_blocks_are_frozen():
    with pytest.raises(FrozenInstanceError):
        CLASS_TOKEN.embed_dim = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        CLASS_TOKEN.blocks[0].qk_dim = 3  # type: ignore[misc]


def test_a_block_counts_its_units():
    assert [BlockShape(2, 3, 5, 7).size(unit) for unit in BLOCK_UNITS] == [2, 3, 5, 7]
    assert set(BLOCK_UNITS) | {Unit.EMBED} == set(Unit)


BAD_SIZES = [0, -1, 10**9, 10**400, MAX_SIZE + 1, True, 2.0, "64", None, [4], float("nan")]


@pytest.mark.parametrize("bad", BAD_SIZES)
@pytest.mark.parametrize("field", [field.name for field in fields(BlockShape)])
def test_a_bad_size_of_a_block_is_refused_by_its_place(field, bad):
    document = UNEQUAL.to_dict()
    document["blocks"][2][field] = bad
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_dict(document)
    assert caught.value.field == f"blocks[2].{field}"
    assert str(caught.value).startswith(f"blocks[2].{field} must be")
    with pytest.raises(ArchitectureError, match=f"^{field} must be"):
        BlockShape(**{"num_heads": 1, "qk_dim": 1, "v_dim": 1, "mlp_dim": 1, field: bad})


@pytest.mark.parametrize("bad", BAD_SIZES)
@pytest.mark.parametrize("field", ["image_size", "patch_size", "in_chans", "embed_dim"])
def test_a_bad_size_is_refused_by_its_field(field, bad):
    with pytest.raises(ArchitectureError, match=f"^{field} must be") as caught:
        Architecture.from_dict(CLASS_TOKEN.to_dict() | {field: bad})
    assert caught.value.field == field


@pytest.mark.parametrize("bad", [bad for bad in BAD_SIZES if bad != 0])
@pytest.mark.parametrize("field", ["num_classes", "reg_tokens"])
def test_a_bad_count_is_refused_by_its_field_and_zero_is_none(field, bad):
    with pytest.raises(ArchitectureError, match=f"^{field} must be") as caught:
        Architecture.from_dict(CLASS_TOKEN.to_dict() | {field: bad})
    assert caught.value.field == field
    assert getattr(CLASS_TOKEN.replace(**{field: 0}), field) == 0


BAD_VALUES: list[tuple[str, Any]] = [
    ("image_size", [16, 16, 16]),
    ("image_size", [16, 16.0]),
    ("image_size", [16, 0]),
    ("image_size", "16"),
    ("image_size", [7, 16]),
    ("patch_size", [8, True]),
    ("patch_size", {}),
    ("blocks", []),
    ("blocks", None),
    ("blocks", "blocks"),
    ("blocks", 12),
    ("blocks", {"0": {}}),
    ("blocks[0]", [3]),
    ("blocks[0]", [None]),
    ("class_token", 1),
    ("qk_norm", "yes"),
    ("layer_scale", None),
    ("pool", "map"),
    ("pool", None),
    ("pos_embed", True),
    ("norm", "batch"),
    ("final_norm", ["before_pool"]),
    ("activation", "relu"),
    ("norm_eps", 0),
    ("norm_eps", 1),
    ("norm_eps", 10**400),
    ("norm_eps", True),
    ("norm_eps", "1e-6"),
    ("norm_eps", None),
    ("norm_eps", float("nan")),
    ("softmax_scale", 0.5),
    ("softmax_scale", []),
    ("softmax_scale", [0.5]),
    ("softmax_scale", [0.5, 0.5, 0.5]),
    ("softmax_scale", [0.5, 0.0]),
    ("softmax_scale", [0.5, -1.0]),
    ("softmax_scale", [0.5, float("inf")]),
    ("softmax_scale", [0.5, float("nan")]),
    ("softmax_scale", [0.5, 10**400]),
    ("softmax_scale", [0.5, True]),
    ("softmax_scale", [0.5, "1"]),
    ("softmax_scale", "11"),
]


@pytest.mark.parametrize(("field", "bad"), BAD_VALUES)
def test_a_bad_value_is_refused_by_its_field(field, bad):
    document = CLASS_TOKEN.to_dict() | {field.split("[")[0]: bad}
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_dict(document)
    assert caught.value.field == field
    assert field in str(caught.value)


def test_more_than_1024_blocks_are_refused():
    with pytest.raises(ArchitectureError, match="blocks must be 1 to 1024, got 1025"):
        CLASS_TOKEN.replace(blocks=CLASS_TOKEN.blocks[:1] * 1025)
    assert CLASS_TOKEN.replace(blocks=CLASS_TOKEN.blocks[:1] * 1024).depth == 1024


REQUIRED = ["image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "blocks"]


@pytest.mark.parametrize("field", [field.name for field in fields(Architecture)])
def test_sizes_are_required_and_the_rest_has_defaults(field):
    document = CLASS_TOKEN.to_dict()
    del document[field]
    if field in REQUIRED:
        with pytest.raises(ArchitectureError, match=f"needs the field {field}") as caught:
            Architecture.from_dict(document)
        assert caught.value.field == field
    else:
        assert Architecture.from_dict(document) == CLASS_TOKEN


@pytest.mark.parametrize("field", [field.name for field in fields(BlockShape)])
def test_every_size_of_a_block_is_required(field):
    document = UNEQUAL.to_dict()
    del document["blocks"][1][field]
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_dict(document)
    assert caught.value.field == f"blocks[1].{field}"
    assert f"needs the field blocks[1].{field}" in str(caught.value)


def test_an_unknown_field_is_refused_with_the_list_of_known_ones():
    with pytest.raises(ArchitectureError, match="no field heads; its fields are image_size") as caught:
        Architecture.from_dict(CLASS_TOKEN.to_dict() | {"heads": 3})
    assert caught.value.field == "heads"
    document = CLASS_TOKEN.to_dict()
    document["blocks"][1]["head_dim"] = 64
    with pytest.raises(ArchitectureError, match="its fields are num_heads, qk_dim") as caught:
        Architecture.from_dict(document)
    assert caught.value.field == "blocks[1].head_dim"


@pytest.mark.parametrize("document", [None, [], "deit-b", 3, [["embed_dim", 12]]])
def test_a_document_that_is_no_object_is_refused(document):
    with pytest.raises(ArchitectureError, match="an architecture is a JSON object"):
        Architecture.from_dict(document)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 100_000, "9" * 5_000])
def test_text_that_is_no_json_is_refused(text):
    with pytest.raises(ArchitectureError, match=r"^not JSON: "):
        Architecture.from_json(text)


def test_contradictions_are_refused():
    with pytest.raises(ArchitectureError, match="pool 'token' reads the class token") as caught:
        CLASS_TOKEN.replace(class_token=False)
    assert caught.value.field == "pool"
    for base in (POOLED, POOLED.replace(class_token=True)):
        with pytest.raises(ArchitectureError, match="dist_token goes with class_token") as caught:
            base.replace(dist_token=True)
        assert caught.value.field == "dist_token"
    with pytest.raises(ArchitectureError, match=r"image_size \(16, 7\) is smaller than patch_size") as caught:
        CLASS_TOKEN.replace(image_size=(16, 7))
    assert caught.value.field == "image_size"


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": [BlockShape(1, 1, 1, 1)]},
        {"blocks": ({"num_heads": 1, "qk_dim": 1, "v_dim": 1, "mlp_dim": 1},)},
        {"softmax_scale": [0.5, 0.25]},
        {"softmax_scale": (1, 2)},
        {"image_size": 16},
        {"image_size": [16, 16]},
    ],
)
def test_a_value_built_in_code_is_as_strict(changes):
    with pytest.raises(ArchitectureError) as caught:
        CLASS_TOKEN.replace(**changes)
    assert caught.value.field in changes


def test_errors_are_ours_and_builtin():
    assert issubclass(ArchitectureError, VitfitError)
    assert issubclass(ArchitectureError, ValueError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@LAWS
@given(st.sampled_from([field.name for field in fields(Architecture)]), JSON)
def test_any_json_value_in_any_field_is_a_model_or_an_architecture_error(field, value):
    document = CLASS_TOKEN.to_dict() | {field: value}
    try:
        arch = Architecture.from_dict(document)
    except ArchitectureError as error:
        blamed = str(error.field)
    else:
        assert Architecture.from_json(arch.to_json()) == arch
        return
    assert blamed.startswith(field) or blamed in ("pool", "dist_token", "image_size")
