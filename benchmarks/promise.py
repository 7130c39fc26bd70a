"""Do exported models run as much faster as the table promised?

    $ python benchmarks/promise.py [--quick] [--cuts 4] [--points 100] [--clock processor]

timm's DeiT-B with random weights is profiled on one thread of this CPU in PyTorch eager and in ONNX Runtime, few points
each. On each table, sizes within 0.54 of its latency (NViT-B's budget; Yang et al. 2023) are chosen for several made-up
saliencies, certified and by NViT's greedy ranking in turn; the models are cut and exported: as a stand-alone model.py
for eager, as ONNX for ONNX Runtime. A fresh process loads the files and times them in interleaved rounds, the dense one
twice in each, and the table's reference block.

Speed-ups are medians over the rounds of dense / cut within a round, so a machine that is slower for a while slows both.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from common import print_goal, print_machine, spread

from api.profiling import profile_plan, run_profile
from api.workflow import import_timm
from latency.estimate import estimate
from latency.grid import grid_below
from latency.measurement import STABLE
from latency.profiler import reference_of
from latency.runtimes import device_of, find_device
from latency.storage import load_table
from latency.table import LatencyTable
from latency.timer import Clocks, CpuStopwatch, Effort, time_call
from search.frontier import Choice
from search.prune import SELECTIONS
from search.saliency import Saliency
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint
from vit.export import EXPORTS
from vit.groups import groups, size
from vit.surgery import shrink

BUDGET = 0.54
PLANES = (5, 5, 5, 5, 15)
"""Of the grid that the few points fill; as many as the default grid has."""
FILES = {"eager": ("standalone", ""), "onnxruntime": ("onnx", ".onnx")}
"""Runtime -> the format of `vitfit export` that runs in it, and its suffix."""


EFFORT = Effort(warmup=1, samples=3, most=6)
"""Of one timing in one round: where cores are shared, more rounds tell more than more samples in a row."""


CLOCKS = {"wall": Clocks(), "processor": Clocks(time.process_time, time.process_time)}
"""The second one stands still while somebody else has the core."""


class Job(NamedTuple):
    """What the fresh process times, as JSON."""

    table: str
    files: list[str]
    rounds: int
    clock: str


# --- the files -----------------------------------------------------------------------------------------------------


def made_up_saliency(arch: Architecture, seed: int) -> Saliency:
    """Random units, and groups between which they differ by a factor of e or so: sizes come out unlike in each block
    and for each seed."""
    draw = np.random.default_rng(seed)
    scores = {group: draw.lognormal() * draw.random(size(arch, group)) for group in groups(arch)}
    return Saliency(arch, scores, "random", f"seed {seed}", "none", 0)


def profiled(arch: Architecture, runtime: str, batch: int, points: int, rounds: int, folder: Path) -> LatencyTable:
    device = find_device()
    plan = profile_plan(
        arch,
        device,
        runtime=runtime,
        batch=batch,
        grid=grid_below(arch, planes=PLANES),
        points=points,
        rounds=rounds,
    )
    path = folder / f"{plan.target.slug}.parquet"
    for _ in run_profile(plan, device, path):
        pass
    return load_table(path)


def choices(table: LatencyTable, arch: Architecture, count: int) -> list[tuple[str, Saliency, Choice]]:
    """Sizes within the budget, by each selection in turn."""
    budget_ms = BUDGET * estimate(table, arch).latency_ms
    names = list(SELECTIONS)
    found = []
    for seed in range(count):
        name, saliency = names[seed % len(names)], made_up_saliency(arch, seed)
        found.append((f"{name} {seed}", saliency, SELECTIONS[name](saliency, table, budget_ms, None)))
    return found


# --- a fresh process -----------------------------------------------------------------------------------------------


def call_of(path: Path, runtime: str, images: torch.Tensor) -> Callable[[], Any]:
    """One run of an exported file."""
    if runtime == "onnxruntime":
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": images.numpy()})
    spec = importlib.util.spec_from_file_location(path.name, path / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load()

    def run() -> Any:
        with torch.inference_mode():
            return model(images)

    return run


def time_files(job: Job) -> None:
    """Print ms as JSON: `files` and `reference`, one number a round; and the share of disturbed samples."""
    table = load_table(Path(job.table))
    device, outside = device_of(table.target), table.outside
    images = torch.randn(table.target.batch, outside.in_chans, *outside.image_size)
    stopwatch = CpuStopwatch(device.single_threaded, CLOCKS[job.clock])
    order, ms, reference, disturbed = np.random.default_rng(0), [], [], []
    with device.active():
        calls = [call_of(Path(path), table.target.runtime, images) for path in job.files]
        calls.append(calls[0])
        time_reference = reference_of(table, device)
        for _ in range(job.rounds):
            row = [0.0] * len(calls)
            reference.append(time_reference())
            for index in order.permutation(len(calls)):
                timing = time_call(calls[index], EFFORT, stopwatch=stopwatch)
                row[index] = timing.measurement.median_ms
                disturbed.append(timing.disturbed)
            ms.append(row)
    print(json.dumps({"ms": ms, "reference": reference, "disturbed": float(np.mean(disturbed))}))


def timed(job: Job) -> dict[str, Any]:
    command = [sys.executable, __file__, "--time", json.dumps(job._asdict())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- the promise ---------------------------------------------------------------------------------------------------


def report(
    table: LatencyTable, dense: Architecture, found: list[tuple[str, Architecture]], run: dict[str, Any]
) -> float:
    """Print promise and measurement of every cut; the largest error of a speed-up in percent."""
    ms = np.array(run["ms"])  # rounds x (dense, cuts..., dense again)
    full, again = ms[:, 0], ms[:, -1]
    iqr = float(np.subtract(*np.percentile(full, (75, 25))) / np.median(full))
    drift = float(np.median(run["reference"])) / table.provenance.quality["reference_ms"]
    twice = float(np.median(full / again)) - 1
    print(
        f"noise: dense IQR {iqr:.1%}{' (unstable)' if iqr > STABLE else ''}, dense over itself {twice:+.1%}, "
        f"{run['disturbed']:.0%} of the samples disturbed, the reference block at {drift:.3f} times the table's ms"
    )
    promised_ms = estimate(table, dense).latency_ms
    print(f"dense            promised {promised_ms:8.2f} ms, measured {np.median(full):8.2f} ms")
    errors = []
    for index, (name, arch) in enumerate(found, start=1):
        small_ms = estimate(table, arch).latency_ms
        ratios = full / ms[:, index]
        errors.append(100 * (float(np.median(ratios)) / (promised_ms / small_ms) - 1))
        print(
            f"{name:16} promised {small_ms:8.2f} ms, measured {np.median(ms[:, index]):8.2f} ms; speed-up promised "
            f"{promised_ms / small_ms:.3f}, measured {spread(ratios)}, {errors[-1]:+.1f} %",
            flush=True,
        )
    return max(map(abs, errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, few points and rounds: seconds")
    parser.add_argument("--cuts", type=int, default=4)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runtimes", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="that times the files; of the table: wall")
    parser.add_argument("--time", metavar="JSON", help="what the fresh process is started with")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.time:
        return time_files(Job(**json.loads(args.time)))
    cuts, points, visits, rounds = (1, 32, 1, 3) if args.quick else (args.cuts, args.points, 3, 11)
    options: dict[str, object] = {"depth": 2, "embed_dim": 192, "num_heads": 3, "img_size": 64} if args.quick else {}
    torch.manual_seed(0)
    checkpoint = import_timm("deit_base_patch16_224", None, options=options)
    arch = checkpoint.arch
    print_machine("torch", "timm", "onnxruntime")
    print(
        f"deit_base_patch16_224, random weights: EMB {arch.embed_dim}, {arch.depth} blocks, {arch.tokens} tokens; "
        f"batch {args.batch}, one thread; {points} points a table, saliency seeds 0 to {cuts - 1}, {rounds} rounds, "
        f"{args.clock} clock"
    )
    worst = {}
    for runtime in args.runtimes:
        format_, suffix = FILES[runtime]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            table = profiled(arch, runtime, args.batch, points, visits, folder)
            quality = table.provenance.quality
            print(
                f"{table.target.slug}: {quality['timed_points']:.0f} points, {quality['visits']:.0f} visits, held-out "
                f"error {quality['heldout_mape']:.1%}, drift p95 over p05 {quality['drift_p95_over_p05']:.2f}",
                flush=True,
            )
            files, found = [folder / f"dense{suffix}"], []
            EXPORTS[format_](checkpoint, files[0])
            model = checkpoint.model()
            for name, saliency, choice in choices(table, arch, cuts):
                small = Checkpoint.of(shrink(model, saliency.keep(choice.sizes())))
                files.append(folder / f"{name.replace(' ', '-')}{suffix}")
                EXPORTS[format_](small, files[-1])
                found.append((name, small.arch))
            job = Job(str(folder / f"{table.target.slug}.parquet"), [str(path) for path in files], rounds, args.clock)
            worst[runtime] = report(table, arch, found, timed(job))
    for runtime, error in worst.items():
        print_goal(f"promised-speedup-error-percent-{runtime}", error, 5.0, at_least=False)


if __name__ == "__main__":
    main()
