"""A fingerprint changes with whatever the answers depend on, and with nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from latency.analytic import MacsModel
from latency.devices import calibrations, device_model
from latency.extrapolate import Extrapolated
from search.saliency import Saliency
from tests.cases import CLASS_TOKEN
from tests.reference import monotone_table, random_saliency
from vit.fingerprint import fingerprint

ARCH = CLASS_TOKEN
OTHER = ARCH.replace(image_size=(24, 24))
TABLE = monotone_table(0, arch=ARCH)
FIRST, SECOND, *_ = sorted(calibrations())


def nudged(array):
    changed = array.copy()
    changed.flat[-1] = np.nextafter(changed.flat[-1], 9)
    return changed


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (TABLE, replace(TABLE, block_ms=nudged(TABLE.block_ms))),
        (TABLE, replace(TABLE, outside_ms=nudged(TABLE.outside_ms))),
        (TABLE, replace(TABLE, target=replace(TABLE.target, batch=3))),
        (TABLE, Extrapolated(TABLE)),
        (MacsModel(ARCH), MacsModel(OTHER)),
        (MacsModel(ARCH), MacsModel(ARCH.replace(num_classes=7))),
        (device_model(FIRST, ARCH, 8), device_model(SECOND, ARCH, 8)),
        (device_model(FIRST, ARCH, 8), device_model(FIRST, ARCH, 9)),
        (device_model(FIRST, ARCH, 8), device_model(FIRST, ARCH.replace(layer_scale=True), 8)),
        (random_saliency(ARCH, 0), random_saliency(ARCH, 1)),
        (random_saliency(ARCH, 0), Saliency(ARCH, random_saliency(ARCH, 0).values, "random", "another", "", 0)),
    ],
)
def test_what_answers_differently_has_another_fingerprint(one, another):
    assert one.fingerprint != another.fingerprint


@pytest.mark.parametrize(
    "make",
    [
        lambda: monotone_table(0, arch=ARCH),
        lambda: MacsModel(ARCH),
        lambda: device_model(FIRST, ARCH, 8),
        lambda: random_saliency(ARCH, 0),
    ],
)
def test_what_is_made_twice_has_one_fingerprint(make):
    assert make().fingerprint == make().fingerprint


def test_evidence_is_no_part_of_a_tables_answers():
    dated = replace(TABLE, provenance=replace(TABLE.provenance, created_at="2027-01-01T00:00:00+00:00"))
    assert dated.fingerprint == TABLE.fingerprint


def test_types_and_shapes_count():
    zeros = np.zeros(4)
    found = [fingerprint([], zeros), fingerprint([], zeros.reshape(2, 2)), fingerprint([], zeros.astype(np.int64))]
    assert len({*found, fingerprint({}, zeros), fingerprint([])}) == 5
