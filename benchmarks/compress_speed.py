"""How long does compress take on a model of real size, and what does its gate pass cost?

    $ python benchmarks/compress_speed.py [--quick] [--device cpu|cuda]

CPU: DeiT-S, 256 images, all cores; GPU: DeiT-B, 1,024 images. Weights and images are random, for time does not depend
on them; the budget is half of the MACs. The gate pass is compared with forward and backward through the same model,
in one interleaved run.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable

import torch
from common import print_goal, print_machine, spread

from api.compress import Calibration, fit, images_at_once, in_its_basis, score
from latency.analytic import MacsModel
from latency.bench import random_weights
from recovery.losses import cross_entropy
from search.frontier import Frontier
from search.gates import gate_derivatives
from vit.architecture import Architecture
from vit.model import VisionTransformer
from vit.presets import preset


def pictures(arch: Architecture, count: int) -> torch.Tensor:
    return torch.randn(count, arch.in_chans, *arch.image_size, generator=torch.Generator().manual_seed(0))


def whole_way(model: VisionTransformer, images: int, batch_size: int) -> float:
    """Seconds of all stages; prints each."""
    given = Calibration.of(pictures(model.arch, images), batch_size=batch_size)
    started = last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        print(f"  {stage:9} {now - last:6.1f} s", flush=True)
        last = now

    based = in_its_basis(model, given)
    lap("basis")
    saliency = score(based.model, given)
    lap("saliency")
    frontier = Frontier(saliency, MacsModel(model.arch))
    lap("frontier")
    fit(based, saliency, frontier.best(0.5 * frontier.full_ms), given)
    lap("refit")
    return time.perf_counter() - started


def gate_pass(model: VisionTransformer, batch: int, rounds: int) -> list[float]:
    """Time of the gate pass over that of forward and backward, round by round."""
    images, labels = pictures(model.arch, batch).to(next(model.parameters()).device), torch.arange(batch) % 10
    labels = labels.to(images.device)

    def forward_and_backward() -> None:
        model.zero_grad()
        cross_entropy(model, images, labels).backward()

    def timed(call: Callable[[], object]) -> float:
        if images.is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    ratios = []
    for turn in range(rounds + 1):
        gates = timed(lambda: gate_derivatives(model, images, labels, cross_entropy))
        ratio = gates / timed(forward_and_backward)
        if turn:  # the first one warms up
            ratios.append(ratio)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT-T, 8 images: seconds, figures mean nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    name, images, batch_size = ("deit-b", 1024, 64) if on_gpu else ("deit-s", 256, 0)
    if options.quick:
        name, images = "deit-t", 8
    batch_size = batch_size or images_at_once(preset(name))

    print_machine("torch")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    device = torch.cuda.get_device_name() if on_gpu else threads
    print(f"{name}, {images} images in batches of {batch_size}, on {device}; seed 0")
    model = random_weights(VisionTransformer(preset(name))).to(options.device)
    ratios = gate_pass(model, 8 if options.quick else batch_size, 2 if options.quick else 7)
    print(f"gate pass over forward and backward: {spread(ratios)}, {len(ratios)} rounds")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = whole_way(model, images, batch_size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"whole way {seconds:.1f} s, peak {peak:.2f} GiB ({before:.2f} before)")
    print_goal("gate-pass-over-forward-and-backward", sorted(ratios)[len(ratios) // 2], 1.3, at_least=False)
    print_goal("whole-way-seconds", seconds, 30 if on_gpu else 300, at_least=False)
    if not on_gpu:
        print_goal("peak-gib", peak, 6, at_least=False)


if __name__ == "__main__":
    main()
