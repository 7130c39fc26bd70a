"""The map from units to parameter slices covers every number once and follows heads, Q, K and V."""

import numpy as np
import pytest
import torch

from tests.cases import CASES, CLASS_TOKEN, UNEQUAL, some_units
from vit.architecture import BLOCK_UNITS, BlockShape, Unit
from vit.cost import params
from vit.errors import ArchitectureError
from vit.groups import EMBED, Group, Keep, groups, parts, resize, size
from vit.model import VisionTransformer
from vit.surgery import view

HEAD, QK, V, MLP = (Group(unit, 0) for unit in BLOCK_UNITS)


@pytest.mark.parametrize("name", CASES)
def test_the_parts_cover_every_number_of_every_parameter_exactly_once(name):
    model = VisionTransformer(CASES[name])
    touched = {n: torch.zeros_like(parameter) for n, parameter in model.named_parameters()}
    for part in parts(CASES[name]):
        view(part, touched).add_(1)
    for parameter, count in touched.items():
        assert (count == 1).all(), parameter


@pytest.mark.parametrize("name", CASES)
def test_the_axes_of_a_part_have_the_sizes_of_their_groups(name):
    arch = CASES[name]
    for part in parts(arch):
        assert len(part.shape) == len(part.axes)
        for count, group in zip(part.shape, part.axes, strict=True):
            assert group is None or count == size(arch, group), part


@pytest.mark.parametrize("name", CASES)
def test_every_group_owns_a_slice(name):
    arch = CASES[name]
    assert set(groups(arch)) == {group for part in parts(arch) for group in part.axes if group is not None}


def test_groups_are_the_stream_then_four_per_block():
    assert groups(UNEQUAL) == [EMBED] + [Group(unit, block) for block in range(3) for unit in BLOCK_UNITS]
    assert [str(group) for group in groups(UNEQUAL)[:5]] == [
        "embed",
        "blocks.0.head",
        "blocks.0.qk",
        "blocks.0.v",
        "blocks.0.mlp",
    ]


def test_sizes_are_those_of_the_architecture():
    assert [size(UNEQUAL, group) for group in groups(UNEQUAL)] == [
        12,
        *(3, 2, 5, 7),
        *(1, 6, 3, 18),
        *(2, 4, 4, 11),
    ]


def _rows_of(arch, group, index, parameter="blocks.0.attn.qkv.weight"):
    """Rows of a parameter in which one unit has any number."""
    tensors = {n: torch.zeros(p.shape) for n, p in VisionTransformer(arch).named_parameters()}
    for part in parts(arch):
        for axis, kind in enumerate(part.axes):
            if kind == group:
                view(part, tensors).select(axis, index).fill_(1)
    return tensors[parameter].reshape(len(tensors[parameter]), -1).any(dim=1).nonzero().flatten().tolist()


def test_units_own_the_rows_of_qkv_that_timms_order_gives_them():
    # block 0 of UNEQUAL: 3 heads, QK 2, V 5, so Q is rows 0-5, K 6-11, V 12-26
    assert _rows_of(UNEQUAL, QK, 1) == [1, 3, 5, 7, 9, 11]  # of Q and of K, in every head
    assert _rows_of(UNEQUAL, V, 4) == [16, 21, 26]  # in every head
    assert _rows_of(UNEQUAL, HEAD, 1) == [2, 3, 8, 9, 17, 18, 19, 20, 21]
    assert _rows_of(UNEQUAL, EMBED, 0) == list(range(27))
    assert _rows_of(UNEQUAL, MLP, 3) == []
    assert _rows_of(UNEQUAL, MLP, 3, "blocks.0.mlp.fc1.bias") == [3]
    assert _rows_of(UNEQUAL, Group(QK.unit, 1), 0) == []


def test_resize_changes_what_is_named_and_keeps_the_softmax_scale():
    sizes = {EMBED: 8, HEAD: 2, QK: 3, V: 1, Group(Unit.MLP, 1): 9}
    small = resize(CLASS_TOKEN, sizes)
    assert small.embed_dim == 8
    assert small.blocks == (BlockShape(2, 3, 1, 16), BlockShape(3, 4, 4, 9))
    assert small.softmax_scale == (0.5, 0.5)
    assert small.replace(embed_dim=12, blocks=CLASS_TOKEN.blocks) == CLASS_TOKEN


def test_resizing_nothing_gives_the_same_architecture():
    for arch in CASES.values():
        assert resize(arch, {}) == arch


@pytest.mark.parametrize("name", CASES)
def test_a_smaller_architecture_has_the_parameters_of_the_kept_slices(name):
    arch = CASES[name]
    keep = some_units(arch, Unit, seed=5)
    kept = 0
    for part in parts(arch):
        sizes = [n if g is None else len(keep.indices[g]) for n, g in zip(part.shape, part.axes, strict=True)]
        kept += int(np.prod(sizes))
    assert params(keep.architecture(arch)) == kept


def test_groups_that_are_not_named_stay_whole():
    keep = Keep.of(CLASS_TOKEN, {QK: [0, 3]})
    assert list(keep.indices) == groups(CLASS_TOKEN)
    for group, chosen in keep.indices.items():
        assert chosen.tolist() == ([0, 3] if group == QK else list(range(size(CLASS_TOKEN, group))))


def test_kept_indices_are_copied_and_read_only():
    mine = np.array([0, 2], dtype=np.int64)
    keep = Keep.of(CLASS_TOKEN, {QK: mine})
    mine[0] = 1
    assert keep.indices[QK].tolist() == [0, 2]
    with pytest.raises(ValueError, match="read-only"):
        keep.indices[QK][0] = 1


@pytest.mark.parametrize(
    "indices",
    [
        [],
        [1, 0],
        [1, 1],
        [-1, 0],
        [0, 4],
        [[0, 1]],
        0,
        [0.0, 1.5],
        [False, True],
        [False, True, True, True],
    ],
)
def test_indices_that_are_not_sorted_distinct_whole_numbers_in_range_are_refused(indices):
    with pytest.raises(ArchitectureError, match=r"blocks\.0\.qk: kept indices must be"):
        Keep.of(CLASS_TOKEN, {QK: indices})


@pytest.mark.parametrize("group", [Group(Unit.QK, 2), Group(Unit.QK), Group(Unit.EMBED, 0)])
def test_a_group_that_the_architecture_has_not_is_refused(group):
    with pytest.raises(ArchitectureError, match="no group of this architecture"):
        Keep.of(CLASS_TOKEN, {group: [0]})
