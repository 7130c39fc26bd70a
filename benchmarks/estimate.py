"""How many whole-model estimates per second on one core?

    $ python benchmarks/estimate.py            # --quick for a few seconds

vitfit (`LatencyTable.model_times`) against SciPy's RegularGridInterpolator called once for the whole batch, for batches
of several sizes, and called once a block, as NViT's authors do. All time the same random models of 12 blocks on the same
table of 9,375 points, take turns in random order, and must agree on every latency. Beside it: what a million models
take in memory, input included, and how long a table takes to load.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

import numpy as np
import numpy.typing as npt
from common import print_goal, print_machine
from scipy.interpolate import RegularGridInterpolator

from latency.grid import GRIDS
from latency.measurement import Measurement
from latency.storage import load_table, save_table
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target

Array = npt.NDArray[np.float64]

DEPTH = 12
BATCHES = (1, 10, 100, 500, 5_000, 50_000)
USUAL = 500
"""Models a call; SciPy is fastest at about this many, larger arrays leave the cache."""
MILLION = 1_000_000
GRID = GRIDS["vitfit"]


def noisy_table(seed: int) -> LatencyTable:
    """Made-up milliseconds: estimates cost the same on any numbers."""
    embed, heads, qk, v, mlp = np.meshgrid(*map(np.array, GRID.axes), indexing="ij")
    block_ms = 0.05 + 1e-4 * embed + 1e-2 * heads + 1e-3 * (qk + v) + 1e-4 * mlp
    outside_ms = 0.1 + 1e-4 * np.array(GRID.embed_dim)
    return LatencyTable(
        target=Target("synthetic", "none", "fp32", 1, 197),
        grid=GRID,
        block_ms=block_ms * np.random.default_rng(seed).uniform(0.9, 1.1, GRID.shape),
        block_iqr_ms=np.zeros(GRID.shape),
        outside=Outside((224, 224), (16, 16), 3, 1000),
        outside_ms=outside_ms,
        outside_iqr_ms=np.zeros(len(GRID.embed_dim)),
        norm="layer",
        provenance=Provenance("modelled", "", "made-up numbers for a benchmark", interval=(1.0, 1.0)),
    )


def random_models(count: int, seed: int) -> Array:
    """Sizes between the grid's ends, one embed_dim per model; shape (count, DEPTH, 5)."""
    low, high = ([axis[end] for axis in GRID.axes] for end in (0, -1))
    sizes = np.random.default_rng(seed).integers(low, high, (count, DEPTH, 5), endpoint=True).astype(np.float64)
    sizes[:, :, 0] = sizes[:, :1, 0]
    return sizes


def contestants(table: LatencyTable) -> dict[str, Callable[[Array], Array]]:
    """Name -> models (count, DEPTH, 5) to milliseconds (count,)."""
    blocks = RegularGridInterpolator(GRID.axes, table.block_ms)
    rest = RegularGridInterpolator(GRID.axes[:1], table.outside_ms)

    def scipy_per_block(models: Array) -> Array:
        return np.array([sum(blocks(block)[0] for block in model) + rest(model[0, :1])[0] for model in models])

    def scipy_batched(models: Array) -> Array:
        total: Array = blocks(models).sum(axis=-1) + rest(models[:, 0, 0])
        return total

    return {"vitfit": table.model_times, "scipy-batched": scipy_batched, "scipy-per-block": scipy_per_block}


def million_mb(seed: int) -> float:
    """Peak growth of this process in MB while a million models are made, as 16-bit numbers, and timed.

    The kernel's own count (/proc) of resident memory: high-water mark after the call less what was resident before the
    models were made; so the input counts, and so do temporaries of compiled code.
    """
    table = noisy_table(seed)
    table.model_times(random_models(1, seed).astype(np.int16))
    before = _status_kb("VmRSS")
    models = np.empty((MILLION, DEPTH, 5), np.int16)
    for start in range(0, MILLION, 10_000):
        models[start : start + 10_000] = random_models(10_000, seed + start)
    assert np.isfinite(table.model_times(models)).all()
    return 1024 * (_status_kb("VmHWM") - before) / 1e6


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def load_ms(table: LatencyTable, rounds: int) -> Measurement:
    """Milliseconds to load and check a table's file; the first time, which imports pyarrow, is left out."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        save_table(table, path)
        load_table(path)
        for _ in range(rounds):
            started = time.perf_counter()
            load_table(path)
            samples.append(1e3 * (time.perf_counter() - started))
    return Measurement.of(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    rounds, effort = (5, 1) if options.quick else (25, 2)
    batches = BATCHES[:-1] if options.quick else BATCHES
    table = noisy_table(options.seed)
    runs = contestants(table)
    models = random_models(max(batches), options.seed)
    samples: dict[tuple[str, int], list[float]] = {
        (name, count): [] for count in batches for name in ("vitfit", "scipy-batched")
    } | {("scipy-per-block", 10 * effort): []}
    # About 50 ms of work a sample, and at least one call.
    per_model = {"vitfit": 20_000 * effort, "scipy-batched": 2_000 * effort, "scipy-per-block": 1}
    truth = runs["scipy-batched"](models)
    for name, count in samples:  # agreement, and warm-up
        np.testing.assert_allclose(runs[name](models[:count]), truth[:count], rtol=1e-9)

    draw = np.random.default_rng(options.seed)
    keys = list(samples)
    for _ in range(rounds):
        for index in draw.permutation(len(keys)):
            name, count = keys[index]
            run, batch, calls = runs[name], models[:count], min(max(1, per_model[name] // count), 200)
            started = time.perf_counter()
            for _ in range(calls):
                run(batch)
            samples[name, count].append(1e3 * (time.perf_counter() - started) / (calls * count))

    print_machine("numpy", "scipy", "numba", "pyarrow")
    print(f"one core; models of {DEPTH} blocks, a table of {len(GRID):,} points")
    print(f"{rounds} samples each, taken in turns in random order, seed {options.seed}\n")
    print(f"{'':16} {'models a call':>13} {'models/s':>10} {'µs a model':>11} {'IQR':>6}")
    rates = {}
    for (name, count), ms in samples.items():
        measured = Measurement.of(ms)
        rates[name, count] = 1e3 / measured.median_ms
        share = f"{measured.iqr_ms / measured.median_ms:.1%}"
        note = "" if measured.is_stable else "  unstable"
        print(f"{name:16} {count:13,} {rates[name, count]:10,.0f} {1e3 * measured.median_ms:11.3g} {share:>6}{note}")
    over_batched = {count: rates["vitfit", count] / rates["scipy-batched", count] for count in batches}
    print("\nover scipy-batched: " + ", ".join(f"{ratio:.1f} at {count:,}" for count, ratio in over_batched.items()))
    loading = load_ms(table, rounds)
    print(f"loading a table takes {loading.median_ms:.2f} ms, IQR {loading.iqr_ms:.2f} (without pyarrow's import)\n")
    print_goal("estimates-per-second", rates["vitfit", USUAL], 1_000_000, at_least=True)
    per_block = rates["vitfit", USUAL] / rates["scipy-per-block", 10 * effort]
    print_goal("estimates-over-scipy-per-block", per_block, 100, at_least=True)
    print_goal("estimates-over-scipy-batched", min(over_batched.values()), 8, at_least=True)
    print_goal("table-load-ms", loading.median_ms, 20, at_least=False)
    if Path("/proc/self/status").exists():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
            mb = child.submit(million_mb, options.seed).result()
        print_goal("million-models-mb", mb, 200, at_least=False)


if __name__ == "__main__":
    main()
