"""How many whole-model estimates per second on one core?

    $ python benchmarks/estimate.py            # --quick for a few seconds

vitfit (`latency.estimate.model_times`) against SciPy's RegularGridInterpolator called once a block, as NViT's authors
do, and called once for the whole batch. All three time the same random models of 12 blocks on the same table of 9,375
points, take turns in random order, and must agree on every latency.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

import numpy as np
import numpy.typing as npt
from common import print_goal, print_machine
from scipy.interpolate import RegularGridInterpolator

from latency.estimate import model_times
from latency.grid import Grid
from latency.measurement import Measurement
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target

Array = npt.NDArray[np.float64]

DEPTH = 12
MODELS = 500
"""A call; SciPy is fastest at about this many, larger arrays leave the cache."""
GRID = Grid(
    embed_dim=(64, 192, 384, 576, 768),
    num_heads=(1, 3, 6, 9, 12),
    qk_dim=(8, 16, 32, 48, 64),
    v_dim=(8, 16, 32, 48, 64),
    mlp_dim=(16, 64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 2688, 3072),
)


def affine_table() -> LatencyTable:
    """Made-up milliseconds, affine in every size: estimates cost the same on any numbers."""
    embed, heads, qk, v, mlp = np.meshgrid(*map(np.array, GRID.axes), indexing="ij")
    block_ms = 0.05 + 1e-4 * embed + 1e-2 * heads + 1e-3 * (qk + v) + 1e-4 * mlp
    outside_ms = 0.1 + 1e-4 * np.array(GRID.embed_dim)
    return LatencyTable(
        target=Target("synthetic", "none", "fp32", 1, 197),
        grid=GRID,
        block_ms=block_ms,
        block_iqr_ms=np.zeros(GRID.shape),
        outside=Outside((224, 224), (16, 16), 3, 1000),
        outside_ms=outside_ms,
        outside_iqr_ms=np.zeros(len(GRID.embed_dim)),
        norm="layer",
        provenance=Provenance("modelled", "", "affine numbers for a benchmark", interval=(1.0, 1.0)),
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

    return {
        "vitfit": lambda models: model_times(table, models),
        "scipy-batched": scipy_batched,
        "scipy-per-block": scipy_per_block,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    rounds, effort = (5, 1) if options.quick else (25, 4)
    models = random_models(MODELS, options.seed)
    calls = {"vitfit": 10 * effort, "scipy-batched": 2 * effort, "scipy-per-block": 1}
    count = {"vitfit": MODELS, "scipy-batched": MODELS, "scipy-per-block": 5 * effort}
    runs = contestants(affine_table())
    truth = runs["scipy-batched"](models)
    for name, run in runs.items():  # agreement, and warm-up
        np.testing.assert_allclose(run(models[: count[name]]), truth[: count[name]], rtol=1e-9)

    draw = np.random.default_rng(options.seed)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in draw.permutation(list(runs)):
            run, batch = runs[name], models[: count[name]]
            started = time.perf_counter()
            for _ in range(calls[name]):
                run(batch)
            samples[name].append(1e3 * (time.perf_counter() - started) / (calls[name] * len(batch)))

    print_machine("numpy", "scipy", "numba")
    print(f"one core; models of {DEPTH} blocks, a table of {len(GRID):,} points")
    print(f"{rounds} samples each, taken in turns in random order, seed {options.seed}\n")
    print(f"{'':16} {'models a sample':>15} {'models/s':>10} {'µs a model':>11} {'IQR':>6}")
    rates = {}
    for name, ms in samples.items():
        measured = Measurement.of(ms)
        rates[name] = 1e3 / measured.median_ms
        taken = f"{calls[name]} x {count[name]}"
        share = f"{measured.iqr_ms / measured.median_ms:.1%}"
        note = "" if measured.is_stable else "  unstable"
        print(f"{name:16} {taken:>15} {rates[name]:10,.0f} {1e3 * measured.median_ms:11.3g} {share:>6}{note}")
    print()
    print_goal("estimates-per-second", rates["vitfit"], 100_000, at_least=True)
    per_block, batched = (rates["vitfit"] / rates[name] for name in ("scipy-per-block", "scipy-batched"))
    print_goal("estimates-over-scipy-per-block", per_block, 100, at_least=True)
    print_goal("estimates-over-scipy-batched", batched, 1, at_least=True)


if __name__ == "__main__":
    main()
