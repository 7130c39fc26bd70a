"""A table a thousand times off is refused wherever physics can tell, and no real device is."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from latency.errors import TableError
from latency.grid import GRIDS, Grid
from latency.interop.plausible import PEAK_TFLOPS, check_speed, speeds
from latency.storage import load_table
from latency.target import Target
from tests.reference import mesh, table_of
from vit.cost import block_macs
from vit.presets import preset

DEIT = preset("deit-b")
SHIPPED = sorted(Path(str(path)) for path in files("lut_data").iterdir() if path.name.endswith(".parquet"))

DEVICES = [
    # device, dtype, batch, MAC/s that a large block reaches, ms that a block takes at least
    ("raspberry-pi-3-1t", "fp32", 1, 6e8, 5.0),
    ("raspberry-pi-5-4t", "fp32", 1, 4e10, 1.0),
    ("amd-epyc-1t", "fp32", 8, 4.3e10, 0.3),
    ("amd-epyc-64t", "bf16", 64, 3e12, 0.5),
    ("apple-m4-1t", "fp32", 1, 8e11, 0.2),
    ("nvidia-tesla-t4", "fp16", 1, 1e13, 0.6),
    ("v100", "fp32", 256, 5.6e12, 0.44),
    ("tesla-v100-sxm2-16gb", "amp", 256, 2.4e13, 0.44),
    ("nvidia-h100-80gb-hbm3", "bf16", 1, 2e14, 0.1),
    ("nvidia-b200", "fp32", 256, 3e13, 0.1),
    ("nvidia-b200", "bf16", 1024, 8e14, 0.02),
    ("nvidia-b200", "fp4", 1024, 4e15, 0.02),
]


def table(device, dtype, batch, speed, least_ms, scale=1.0, grid=GRIDS["nvit"], outside_scale=1.0):
    """Overhead, then multiply-adds at one speed; small blocks are ten times less efficient."""
    points = mesh(grid)
    macs = batch * block_macs(197, *np.moveaxis(points, -1, 0))
    outside = 1e3 * batch * 3 * 224**2 * np.array(grid.embed_dim) / speed
    return table_of(
        scale * (least_ms + 1e3 * macs / speed + 1e3 * batch * 197 * points[..., 0] * 100 / speed),
        grid,
        arch=DEIT.replace(dist_token=False),
        target=Target(device, "eager", dtype, batch, 197),
        outside_ms=scale * outside_scale * (least_ms + outside),
    )


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"{d[0]}-{d[1]}-b{d[2]}")
def test_real_devices_pass(device):
    check_speed(table(*device))
    check_speed(table(*device, grid=Grid((16,), (1,), (8,), (8,), (16,))))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_shipped_tables_pass_and_a_thousand_times_off_they_are_refused(path, scale):
    shipped = load_table(path)
    changed = table_of(
        scale * shipped.block_ms,
        shipped.grid,
        arch=DEIT.replace(dist_token=False),
        target=shipped.target,
        outside_ms=scale * shipped.outside_ms,
    )
    if scale == 1:
        check_speed(changed)
        return
    with pytest.raises(TableError, match="are the unit"):
        check_speed(changed)


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"{d[0]}-{d[1]}-b{d[2]}")
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_named_device_a_thousand_times_off_is_refused_and_the_point_named(device, scale):
    with pytest.raises(TableError, match=r"embed_dim=.* num_heads=.* are the unit"):
        check_speed(table(*device, scale=scale))


def test_an_unnamed_device_is_refused_where_no_device_can_be_meant():
    gpu = ("something", "amp", 256, 2.4e13, 0.44)
    with pytest.raises(TableError, match="any device does at most"):
        check_speed(table(*gpu, scale=1e-3))
    check_speed(table(*gpu, scale=1e3))  # a fair table of a slow CPU: cannot be decided
    cpu = ("something", "fp32", 1, 2e9, 2.0)
    with pytest.raises(TableError, match="any device takes at most"):
        check_speed(table(*cpu, scale=1e3))


def test_less_than_any_kernel_is_refused():
    with pytest.raises(TableError, match=r"less than the 0\.001 ms of any kernel"):
        check_speed(table("something", "fp32", 1, 4.3e10, 0.3, scale=1e-3, grid=Grid((16,), (1,), (8,), (8,), (16,))))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_only_the_part_outside_the_blocks_a_thousand_times_off_is_refused(scale):
    with pytest.raises(TableError, match=r"outside_ms at embed_dim=\d+ is"):
        check_speed(table("v100", "amp", 256, 2.4e13, 0.44, outside_scale=scale))


@pytest.mark.parametrize("name", PEAK_TFLOPS)
def test_a_known_device_is_bounded_around_its_peak(name):
    peak = PEAK_TFLOPS[name] * 1e12 / 2
    found = speeds(Target(f"nvidia-{name}-16gb", "eager", "fp16", 1, 197))
    assert found.slowest < peak < found.fastest
    assert found.fastest < speeds(Target(name, "eager", "fp8", 1, 197)).fastest


def test_names_are_matched_as_words():
    assert speeds(Target("a100", "eager", "fp16", 1, 1)).of == "a a100"
    assert speeds(Target("a1000", "eager", "fp16", 1, 1)).of == "any device"
    assert speeds(Target("intel-16t", "eager", "fp16", 1, 1)).of == "16 CPU thread(s)"
