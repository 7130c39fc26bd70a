"""A table checks itself, names the first bad point, and cannot be changed."""

import dataclasses
import json

import numpy as np
import pytest

from latency.errors import TableError
from latency.table import KINDS, Outside, Provenance
from tests.reference import GRID, random_table, table_of

TIMES = np.random.default_rng(0).uniform(1, 2, GRID.shape)
ARRAYS = ("block_ms", "block_iqr_ms", "outside_ms", "outside_iqr_ms")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_a_time_that_is_no_positive_number_is_refused_with_the_first_such_point(wrong):
    times = TIMES.copy()
    times[1, 0, 2, 1, 0] = times[2, 0, 0, 0, 0] = wrong
    with pytest.raises(TableError) as caught:
        table_of(times)
    assert str(caught.value).startswith(
        "2 of 162 points have no valid time, first embed_dim=8 num_heads=1 qk_dim=6 v_dim=5 mlp_dim=4: "
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1e-9])
def test_a_wrong_time_outside_the_blocks_is_refused_with_its_width(wrong):
    with pytest.raises(TableError, match="outside_ms at embed_dim 8 is"):
        table_of(TIMES, outside_ms=np.array([1.0, wrong, wrong]))


@pytest.mark.parametrize("name", ["block_ms", "block_iqr_ms"])
def test_times_of_another_shape_than_the_grid_are_refused(name):
    with pytest.raises(TableError, match=f"{name} has shape"):
        dataclasses.replace(table_of(TIMES), **{name: TIMES[:-1]})


@pytest.mark.parametrize("name", ["outside_ms", "outside_iqr_ms"])
def test_times_outside_the_blocks_are_one_per_embed_dim(name):
    with pytest.raises(TableError, match=f"{name} must have one entry per embed_dim"):
        dataclasses.replace(table_of(TIMES), **{name: np.ones(4)})


@pytest.mark.parametrize("name", ["block_iqr_ms", "outside_iqr_ms"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_a_spread_that_is_no_number_from_zero_is_refused(name, wrong):
    table = table_of(TIMES)
    spread = getattr(table, name).copy()
    spread.flat[0] = wrong
    with pytest.raises(TableError, match=f"{name} holds"):
        dataclasses.replace(table, **{name: spread})


@pytest.mark.parametrize("name", ARRAYS)
def test_the_arrays_are_read_only_copies(name):
    times = TIMES.copy()
    table = table_of(times)
    times[...] = 99.0
    assert np.array_equal(table.block_ms, TIMES)
    with pytest.raises(ValueError, match="read-only"):
        getattr(table, name)[0] = 1.0


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(table_of(TIMES))])
def test_a_table_is_frozen(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(table_of(TIMES), name, None)


def test_bounds_are_the_ends_of_the_axes():
    assert random_table(0).bounds == {
        "embed_dim": (4, 12),
        "num_heads": (1, 3),
        "qk_dim": (2, 6),
        "v_dim": (2, 5),
        "mlp_dim": (4, 18),
    }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "analytic"])
def test_a_tables_kind_is_that_of_its_provenance(kind):
    assert table_of(TIMES, provenance=Provenance(kind, "", "", interval=(0.9, 1.2))).kind == kind


@pytest.mark.parametrize("kind", ["modelled", "partly-modelled"])
def test_what_is_modelled_says_how_far_it_may_be_off(kind):
    with pytest.raises(TableError, match=f"a {kind} table says how far it may be off; give its provenance an interval"):
        Provenance(kind, "", "")


@pytest.mark.parametrize(
    "interval", [(1.1, 0.9), (0.0, 1.1), (0.9, float("inf")), (float("nan"), 1.1), (0.9,), ("a", 1)]
)
def test_an_interval_is_two_increasing_positive_multiples(interval):
    with pytest.raises(TableError, match="interval must be two"):
        Provenance("modelled", "", "", interval=interval)


def test_an_interval_survives_the_way_through_json():
    provenance = Provenance("modelled", "", "", interval=(0.9, 1.2))
    assert Provenance.from_dict(json.loads(json.dumps(provenance.to_dict()))) == provenance
    assert provenance.interval_ms(10.0) == (9.0, 12.0)
    assert Provenance("measured", "", "").interval_ms(10.0) is None


def test_an_unknown_kind_of_provenance_is_refused():
    with pytest.raises(
        TableError, match="must be one of measured, partly-modelled, imported, modelled, analytic, got 'guessed'"
    ):
        Provenance("guessed", "", "")


@pytest.mark.parametrize("document", [None, [], "x", {"kind": "measured"}, {"kind": "measured", "colour": 1}])
def test_a_provenance_document_with_missing_or_unknown_fields_is_refused(document):
    with pytest.raises(TableError, match="provenance"):
        Provenance.from_dict(document)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", None),
        ("method", 3),
        ("versions", []),
        ("versions", {"torch": 2.6}),
        ("quality", {"drift": "much"}),
        ("quality", None),
    ],
)
def test_a_provenance_field_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(TableError, match=f"provenance {name} must"):
        Provenance.from_dict({"kind": "measured", "created_at": "", "method": "", name: value})


def test_an_unknown_norm_is_refused_with_the_known_ones():
    with pytest.raises(TableError, match="norm must be one of layer, rms, got 'batch'"):
        dataclasses.replace(table_of(TIMES), norm="batch")


@pytest.mark.parametrize("size", [-1, 1.5, "8", None, True, 1_000_001, 10**400])
def test_a_geometry_that_is_not_in_whole_numbers_is_refused(size):
    with pytest.raises(TableError, match="outside: sizes are whole numbers from 0"):
        Outside.from_dict({"image_size": [16, size], "patch_size": [8, 8], "in_chans": 3, "num_classes": 5})
