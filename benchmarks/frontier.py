"""How long does a frontier take to build and to ask, what does it hold on to, and how far from the best is its answer?

    $ python benchmarks/frontier.py [--quick]

DeiT-B (EMBED in steps of 16, all other sizes in steps of 8 channels) with made-up heavy-tailed saliency on three
targets: `macs`, a modelled GPU, and the measured CPU table that comes with vitfit. Each build has a process of its own;
memory is its peak resident set (VmHWM) over what was resident after the imports, with all compiled code on disk. A
budget is asked five times and counts with the median, which leaves out what else the machine does. Last, one
architecture for budgets on the GPU and the CPU at once, which no frontier holds.
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import print_goal, print_machine, spread

import latency.interpolate  # noqa: F401  (here and below for the memory that imports take)
import lut_data
import search.planes  # noqa: F401
from latency.analytic import MacsModel
from latency.devices import device_model
from latency.estimate import LatencyModel, estimate
from latency.storage import load_table
from search.constraints import Constraints
from search.frontier import Frontier
from search.frontier_storage import load_frontier, save_frontier
from search.joint import joint_choice
from search.saliency import Saliency
from vit.architecture import Architecture, Unit
from vit.groups import groups, size
from vit.presets import preset

TARGETS = ("macs", "v100-eager-amp-b256-n197", "amd-epyc-1t-eager-fp32-b1-n197")
CONSTRAINTS = Constraints(multiples={Unit.EMBED: 16})
SHARES = np.linspace(0.2, 0.95, 301)


class Run(NamedTuple):
    """One build, and what was asked of it; gaps in percent of the saliency."""

    build_s: float
    peak_mb: float
    answers: int
    file_mb: float
    load_ms: float
    query_ms: list[float]
    gaps: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT-T, one seed; its figures are no goals")
    quick = parser.parse_args().quick
    name, seeds = ("deit-t", 1) if quick else ("deit-b", 3)
    print_machine("numpy", "numba")
    print(f"{name}, seeds 0 to {seeds - 1}, {len(SHARES)} budgets from 20 to 95 % of the latency; median [range]")
    in_own_process("deit-t", TARGETS[-1], 0)  # compiles what is not yet compiled
    runs: list[Run] = []
    for target in TARGETS:
        own = [in_own_process(name, target, seed) for seed in range(seeds)]
        runs += own
        shown = {field: spread([getattr(run, field) for run in own]) for field in Run._fields[:5]}
        print(f"{target}: build {shown['build_s']} s, peak {shown['peak_mb']} MB")
        print(f"    {shown['answers']} answers, {shown['file_mb']} MB, loaded in {shown['load_ms']} ms")
        queries, gaps = ([value for run in own for value in getattr(run, field)] for field in Run._fields[5:])
        print(f"    a budget {spread(queries)} ms, certified gap {spread(gaps)} %")
    joint = [answer for seed in range(seeds) for answer in on_two_targets(name, seed)]
    seconds, gaps = zip(*joint, strict=True)
    print(f"GPU and CPU at once, {len(joint)} pairs of budgets: {spread(seconds)} s, certified gap {spread(gaps)} %")
    p99 = np.percentile([ms for run in runs for ms in run.query_ms], 99)
    print_goal("frontier-build-seconds", max(run.build_s for run in runs), 5, at_least=False)
    print_goal("frontier-build-mb", max(run.peak_mb for run in runs), 500, at_least=False)
    print_goal("frontier-file-mb", max(run.file_mb for run in runs), 20, at_least=False)
    print_goal("frontier-query-p99-ms", float(p99), 1, at_least=False)
    print_goal("frontier-gap-percent", max(gap for run in runs for gap in run.gaps), 0.05, at_least=False)


def in_own_process(name: str, target: str, seed: int) -> Run:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(measure, name, target, seed).result()


def measure(name: str, target: str, seed: int) -> Run:
    arch = preset(name)
    model, saliency = latency_of(target, arch), made_up(arch, seed)
    before = memory_mb("VmRSS")
    started = time.perf_counter()
    frontier = Frontier(saliency, model, CONSTRAINTS)
    build_s = time.perf_counter() - started
    peak_mb = memory_mb("VmHWM") - before
    query_ms, gaps = [], []
    for share in SHARES[SHARES * frontier.full_ms >= frontier.smallest_ms]:  # DeiT-T is mostly overhead on a GPU
        elapsed = []
        for _ in range(5):
            started = time.perf_counter()
            choice = frontier.best(share * frontier.full_ms)
            elapsed.append(1e3 * (time.perf_counter() - started))
        query_ms.append(float(np.median(elapsed)))
        gaps.append(100 * (choice.gap or 0.0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frontier.safetensors"
        save_frontier(frontier, path)
        started = time.perf_counter()
        load_frontier(path, saliency, model, CONSTRAINTS)
        load_ms = 1e3 * (time.perf_counter() - started)
        file_mb = path.stat().st_size / 1e6
    return Run(build_s, peak_mb, len(frontier.staircase.ms), file_mb, load_ms, query_ms, gaps)


def on_two_targets(name: str, seed: int) -> Iterator[tuple[float, float]]:
    """(seconds, certified gap in percent) of budgets that are 40 and 70 % of the latency on either target."""
    arch = preset(name)
    saliency, latencies = made_up(arch, seed), [latency_of(target, arch) for target in TARGETS[1:]]
    full_ms = [estimate(latency, arch).latency_ms for latency in latencies]
    for shares in itertools.product((0.4, 0.7), repeat=2):
        budgets = [(latency, share * ms) for latency, share, ms in zip(latencies, shares, full_ms, strict=True)]
        started = time.perf_counter()
        choice = joint_choice(saliency, budgets, CONSTRAINTS)
        yield time.perf_counter() - started, 100 * choice.gap


def latency_of(slug: str, arch: Architecture) -> LatencyModel:
    if slug == "macs":
        return MacsModel(arch)
    if slug.startswith("v100"):
        return device_model("v100-eager-amp", arch, batch=256)
    (path,) = (path for path in lut_data.tables() if path.stem == slug)
    return load_table(path)


def made_up(arch: Architecture, seed: int) -> Saliency:
    draw = np.random.default_rng(seed)
    values = {group: draw.pareto(1.5, size(arch, group)) for group in groups(arch)}
    return Saliency(arch, values, "fisher", "made up", f"seed {seed}", 1)


def memory_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (its peak so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
