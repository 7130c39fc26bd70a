"""What does scoring cost beside forward and backward of the same batch, in time and in memory?

    $ python benchmarks/saliency.py [--quick] [--batch 8] [--rounds 7] [--device cpu|cuda]

DeiT-S with random weights and images; on a CPU one thread, timed by its processor time, for the machine may be shared.
Every round takes forward and backward and all criteria in random order. Memory is what PyTorch allocates at its peak
beyond what was there before, less that of forward and backward, which ends with one copy of the gradients; it is
counted in copies of the gradients.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from common import print_goal, print_machine, spread
from torch.profiler import ProfilerActivity, profile

from latency.bench import random_weights
from recovery.losses import cross_entropy
from search.criteria import compute_saliency
from vit.model import VisionTransformer
from vit.presets import preset

CRITERIA = ("nvit", "fisher", "taylor-abs", "gates")
Work = Callable[[], object]


def seconds(work: Work, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def peak_bytes(work: Work, device: str) -> int:
    """The most that was allocated at once, beyond what was before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    records = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(records, key=lambda e: e.start_ns())]
    return int(max(np.cumsum(changes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT-T, 2 images, 1 round: figures mean nothing")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    name, batch, rounds = ("deit-t", 2, 1) if options.quick else ("deit-s", options.batch, options.rounds)
    torch.set_num_threads(1)
    print_machine("torch")
    print(f"{name}, {batch} images, float32, {rounds} rounds on {options.device}; seed 0")

    model = random_weights(VisionTransformer(preset(name))).to(options.device).eval()
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(options.device)
    labels = (torch.arange(batch) % 10).to(options.device)
    gradient_bytes = sum(parameter.nbytes for parameter in model.parameters())

    def forward_and_backward(pieces: int = 1) -> None:
        model.zero_grad()
        for some, theirs in zip(images.chunk(pieces), labels.chunk(pieces), strict=True):
            (cross_entropy(model, some, theirs) / pieces).backward()

    def scoring(criterion: str, pieces: int = 1) -> Work:
        given = [(images, labels)]
        return partial(compute_saliency, model, given, criterion, cross_entropy, micro_batch=batch // pieces)

    works: dict[str, Work] = {"forward and backward": forward_and_backward}
    works |= {criterion: scoring(criterion) for criterion in CRITERIA}
    times: dict[str, list[float]] = {work: [] for work in works}
    order = np.random.default_rng(0)
    for turn in range(rounds + 1):
        for work in order.permutation(list(works)):
            took = seconds(works[work], options.device)
            if turn:  # the first one warms up
                times[work].append(took)
    ratios = {work: np.divide(times[work], times["forward and backward"]) for work in CRITERIA}
    print(f"forward and backward: {spread(times['forward and backward'])} s")
    for criterion, ratio in ratios.items():
        print(f"  {criterion:10} {spread(ratio)} of it")

    copies = {}
    for pieces in (1, 2):
        model.zero_grad()
        base = peak_bytes(partial(forward_and_backward, pieces), options.device)
        model.zero_grad()
        print(f"peak memory of forward and backward in pieces of {batch // pieces}: {base / 2**20:.0f} MiB, "
              f"{base / gradient_bytes:.2f} copies of the gradients")  # fmt: skip
        for criterion in CRITERIA:
            extra = (peak_bytes(scoring(criterion, pieces), options.device) - base) / gradient_bytes
            copies[criterion, pieces] = extra
            print(f"  {criterion:10} {extra:+.2f} copies beyond it")
    for criterion in CRITERIA:
        time_of = float(np.median(ratios[criterion]))
        print_goal(f"{criterion}-time-over-forward-and-backward", time_of, 1.15, at_least=False)
    for criterion in CRITERIA:
        most = max(copies[criterion, pieces] for pieces in (1, 2))
        print_goal(f"{criterion}-extra-copies-of-the-gradients", most, 1, at_least=False)


if __name__ == "__main__":
    main()
