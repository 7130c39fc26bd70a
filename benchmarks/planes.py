"""Which 15 MLP planes should the default grid have?

    $ python benchmarks/planes.py [--quick]

Blocks of three widths are timed at a dense line of MLP sizes. For sets of 15 planes: the error of interpolating between
them at all other sizes, in percent of the block's time, on a second measurement of the line (so that noise is not
rewarded). The best set is found by dynamic programming on the first measurement.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import print_goal, print_machine

from latency.grid import GRIDS, Grid
from latency.plan import ProfilePlan, corrected
from latency.profiler import open_journal, profile
from latency.runtimes import find_device, local_target
from vit.presets import preset

Array = npt.NDArray[np.float64]

WIDTHS = ((64, 3, 32), (192, 3, 64), (384, 6, 64), (768, 12, 64))
"""EMB, H and QK = V of the lines."""


def lines(sizes: tuple[int, ...], rounds: int, widths: tuple[tuple[int, int, int], ...]) -> Array:
    """Measured ms, shape (2, lines, sizes): the median of odd and of even visits."""
    device = find_device()
    found = []
    for embed, heads, dim in widths:
        plan = ProfilePlan(
            local_target(device, "eager", "fp32", 1, 197),
            Grid((embed,), (heads,), (dim,), (dim,), sizes),
            preset("deit-b"),
            rounds=2 * rounds,
            extra=0,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "journal"
            for _ in profile(plan, device, path):
                pass
            with open_journal(plan, path) as journal:
                visits = corrected(journal.lines)
        ms = np.array([visits[point] for point in range(len(sizes))])
        found.append([np.median(ms[:, 0::2], axis=1), np.median(ms[:, 1::2], axis=1)])
    return np.array(found).transpose(1, 0, 2)


def error(sizes: Array, ms: Array, truth: Array, planes: list[int]) -> Array:
    """|interpolated / truth - 1| at every size that is no plane; `planes` are indices."""
    rest = np.setdiff1d(np.arange(len(sizes)), planes)
    guess = np.array([np.interp(sizes[rest], sizes[planes], line[planes]) for line in ms])
    return np.abs(guess / truth[:, rest] - 1)


def best_planes(sizes: Array, ms: Array, count: int) -> list[int]:
    """The planes with the least sum of relative errors between them: shortest path with `count` stops."""
    n = len(sizes)
    cost = np.full((n, n), np.inf)
    for i in range(n):
        for j in range(i + 1, n):
            inner = slice(i, j + 1)
            weight = (sizes[inner] - sizes[i]) / (sizes[j] - sizes[i])
            guess = ms[:, [i]] * (1 - weight) + ms[:, [j]] * weight
            cost[i, j] = np.abs(guess / ms[:, inner] - 1).sum()
    total, came = np.full((count, n), np.inf), np.zeros((count, n), int)
    total[0, 0] = 0.0
    for stop in range(1, count):
        through = total[stop - 1][:, None] + cost
        came[stop], total[stop] = through.argmin(axis=0), through.min(axis=0)
    path = [n - 1]
    for stop in range(count - 1, 0, -1):
        path.insert(0, int(came[stop, path[0]]))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one width, few sizes, one visit")
    quick = parser.parse_args().quick
    step, rounds, widths = (192, 1, WIDTHS[:1]) if quick else (32, 5, WIDTHS)
    chosen = GRIDS["vitfit"].mlp_dim
    sizes = tuple(sorted({16, *range(step, 3073, step), *chosen}))
    print_machine("torch")
    print(
        f"{len(sizes)} MLP sizes at {len(widths)} widths, 2 x {rounds} visits, seed 0; errors in % of the block's time"
    )
    first, second = lines(sizes, rounds, widths)
    axis = np.array(sizes, float)
    noise = 100 * np.abs(first / second - 1)
    print(f"measured twice          mean {noise.mean():.2f}  p95 {np.percentile(noise, 95):.2f}")
    count = len(chosen)
    nearest = lambda values: sorted({int(np.abs(axis - v).argmin()) for v in values})  # noqa: E731
    sets = {
        "vitfit": nearest(chosen),
        "equal steps": nearest(np.linspace(16, 3072, count)),
        "equal ratios": nearest(np.geomspace(16, 3072, count)),
        "best on first": best_planes(axis, first, count),
        "8 equal steps": nearest(np.linspace(16, 3072, 8)),
    }
    errors = {name: 100 * error(axis, first, second, planes) for name, planes in sets.items()}
    for name, e in errors.items():
        by_line = " ".join(f"{m:.2f}" for m in e.mean(axis=1))
        print(
            f"{name:22}  mean {e.mean():.2f}  p95 {np.percentile(e, 95):.2f}  worst {e.max():.2f}  by width {by_line}"
        )
    print("best on first:", [sizes[i] for i in sets["best on first"]])
    print_goal("planes-error-over-measuring-twice", errors["vitfit"].mean() / noise.mean(), 2.0, at_least=False)


if __name__ == "__main__":
    main()
