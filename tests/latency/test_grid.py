"""A grid is five rising axes; the default one covers everything that can be cut out of a model."""

import itertools

import pytest

from latency.errors import TableError
from latency.grid import AXES, Grid, grid_below
from tests.cases import CASES
from tests.reference import GRID
from vit.architecture import BlockShape
from vit.presets import PRESETS

ARCHS = {**PRESETS, **CASES}


def test_points_count_the_last_axis_fastest():
    slow = [(e, BlockShape(h, q, v, m)) for e, h, q, v, m in itertools.product(*GRID.axes)]
    assert list(GRID.points()) == slow
    assert [GRID.point(index) for index in range(len(GRID))] == slow
    assert len(GRID) == len(slow)


def test_a_grid_survives_its_document():
    assert Grid.from_dict(GRID.to_dict()) == GRID


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "is empty"),
        ([0, 1], "sizes are whole numbers from 1, got 0"),
        ([-1], "sizes are whole numbers from 1, got -1"),
        ([1.5], "sizes are whole numbers from 1, got 1.5"),
        ([True], "sizes are whole numbers from 1, got True"),
        ([1, 65_537], "sizes go up to 65536, as in architectures, got 65537"),
        (["8"], "sizes are whole numbers from 1, got '8'"),
        ([8, 4], "must be strictly increasing, got 4 after 8"),
        ([4, 4], "must be strictly increasing, got 4 after 4"),
        ("48", "must be a list"),
        (None, "must be a list"),
    ],
)
def test_an_axis_that_does_not_rise_in_whole_numbers_is_refused_by_name(axis, sizes, message):
    with pytest.raises(TableError, match=f"grid axis {axis}") as caught:
        Grid.from_dict(GRID.to_dict() | {axis: sizes})
    assert message in str(caught.value)


@pytest.mark.parametrize("document", [None, [], {}, {"embed_dim": [1]}, {**GRID.to_dict(), "depth": [1]}])
def test_a_document_with_other_axes_is_refused(document):
    with pytest.raises(TableError, match="a grid has the axes embed_dim, num_heads, qk_dim, v_dim, mlp_dim"):
        Grid.from_dict(document)


@pytest.mark.parametrize("name", ARCHS)
def test_the_grid_below_a_model_reaches_from_one_step_to_the_models_own_sizes(name):
    arch = ARCHS[name]
    grid = grid_below(arch)
    smallest = {"embed_dim": 16, "num_heads": 1, "qk_dim": 8, "v_dim": 8, "mlp_dim": 16}
    for axis, sizes in zip(AXES, grid.axes, strict=True):
        largest = arch.embed_dim if axis == "embed_dim" else max(getattr(block, axis) for block in arch.blocks)
        assert sizes[-1] == largest
        assert sizes[0] == min(smallest[axis], largest)


@pytest.mark.parametrize("planes", [(1, 1, 1, 1, 1), (2, 2, 2, 2, 2), (4, 3, 3, 3, 4), (9, 9, 9, 9, 9)])
@pytest.mark.parametrize("name", ARCHS)
def test_the_grid_below_a_model_has_at_most_the_planes_asked_for_or_its_two_ends(name, planes):
    for count, asked in zip(grid_below(ARCHS[name], planes=planes).shape, planes, strict=True):
        assert count <= max(asked, 2)


@pytest.mark.parametrize("name", PRESETS)
def test_inner_planes_of_channels_are_multiples_of_eight(name):
    for axis, sizes in zip(AXES, grid_below(PRESETS[name]).axes, strict=True):
        if axis != "num_heads":
            assert all(size % 8 == 0 for size in sizes[1:-1])
