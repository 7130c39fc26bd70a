"""How much faster is the oViT step than the paper's algorithm written plainly, and how long does a whole model take?

    $ python benchmarks/obs_speed.py [--quick] [--rounds 5] [--small]

One layer: fc1 of DeiT-Tiny's size (147,456 weights, random), 256 gradients of its own batches, half of the weights to
go. Beside ours, in interleaved rounds, Algorithm 1 in plain vectorised torch with rank-one updates and a trace of every
step (tests/sparsity/plain.py), and WoodFisher on the same statistics. Losses are ½ δᵀ F δ in float64; masks and losses
are compared with those of the plain one in float64, beside what it gives in float32 itself.

Whole models: DeiT-Tiny, and with --small DeiT-Small, all linear layers of the blocks to 50 %, with gradients of 17
tokens an image; the time is that of everything but the gradients themselves. Memory is that of the process.
"""

import argparse
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from common import print_goal, print_machine, spread
from torch import Tensor

from recovery.losses import cross_entropy
from sparsity.choice import cheapest
from sparsity.gradients import gradients
from sparsity.layers import SELECTIONS, prunable
from sparsity.methods import METHODS, Problem
from sparsity.pattern import UNSTRUCTURED, Layout
from sparsity.solvers import Solver
from vit.architecture import Architecture, BlockShape
from vit.model import VisionTransformer, initialise

sys.path.append(str(Path(__file__).parents[1]))  # the plain one is the tests'

from tests.sparsity.plain import ovit, quadratic_loss

TINY = Architecture(
    image_size=(64, 64),
    patch_size=(16, 16),
    in_chans=3,
    num_classes=100,
    embed_dim=192,
    blocks=(BlockShape(3, 64, 64, 768),) * 12,
)
SMALL = TINY.replace(embed_dim=384, blocks=(BlockShape(6, 64, 64, 1536),) * 12)
LAYER = "blocks.5.mlp.fc1.weight"
DAMP = 1e-8
BLOCKS = {64: (20, 5, 25), 192: (40, 12, 60)}
"""Block size -> goals: times faster than the plain one, seconds for DeiT-Tiny, for DeiT-Small."""
PLAIN_LOSS, AGREEMENT, OVER_WOODFISHER = 1.001, 0.999, 1.15


def batches(arch: Architecture, count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(4, arch.in_chans, *arch.image_size, generator=generator),
            torch.randint(arch.num_classes, (4,), generator=generator),
        )
        for _ in range(count)
    ]


def problem(weights: Tensor, count: int, merge: str) -> Problem:
    alive = torch.ones_like(weights, dtype=torch.bool)
    room = torch.full((len(weights), 1), weights.shape[1])
    return Problem(weights, alive, room, 1, count, DAMP, merge)


def ours(name: str, found: Tensor, flat: Tensor, size: int, merge: str = "marginal") -> tuple[Tensor, Tensor]:
    """A layer's pruning step by one of our methods: weights, and what stays."""
    method, weights = METHODS[name], flat.view(-1, size)
    statistic = method.statistic(weights)
    for gradient in found:
        statistic.add(gradient.view_as(weights))
    solver = method.solve(problem(weights, len(found), merge), statistic)
    (counts,) = cheapest([solver], flat.numel() // 2)
    made, keep = solver.result(counts)
    return made.reshape(-1), keep.reshape(-1)


def layer(model: VisionTransformer, count: int, rounds: int, size: int) -> None:
    weight = model.get_parameter(LAYER)
    start = time.perf_counter()
    each = gradients(model, batches(model.arch, count), cross_entropy, {LAYER: weight})
    found = torch.stack([of[LAYER].reshape(-1) for of in each])
    collecting = time.perf_counter() - start
    flat = weight.detach().reshape(-1)
    truth, stays = ovit(found.double(), flat.double(), size, DAMP, flat.numel() // 2)
    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "plain": lambda: ovit(found, flat, size, DAMP, flat.numel() // 2),
        "cumulative": lambda: ours("ovit", found, flat, size, "cumulative"),
        "marginal": lambda: ours("ovit", found, flat, size),
        "woodfisher": lambda: ours("woodfisher", found, flat, size),
    }
    results = {name: way() for name, way in ways.items()}  # also compiles
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    loss = {name: quadratic_loss(found, flat, made, size, DAMP) for name, (made, _) in results.items()}
    least = quadratic_loss(found, flat, truth, size, DAMP)
    agree = {name: float((results[name][1] == stays).double().mean()) for name in ways}
    print(f"B = {size}, {len(found)} gradients, {rounds} rounds; beside the plain one in float64:")
    for name in ways:
        print(
            f"    {name:10}  {spread(seconds[name])} s; loss {loss[name] / least:.5f}; masks agree in {agree[name]:.5f}"
        )
    faster = [a / b for a, b in zip(seconds["plain"], seconds["marginal"], strict=True)]
    over = [a / b for a, b in zip(seconds["marginal"], seconds["woodfisher"], strict=True)]
    whole_step = [
        (collecting + a) / (collecting + b) for a, b in zip(seconds["marginal"], seconds["woodfisher"], strict=True)
    ]
    print(
        f"    plain / marginal {spread(faster)}; marginal / woodfisher {spread(over)}, "
        f"with the gradients' {collecting:.1f} s {spread(whole_step)}"
    )
    goals = BLOCKS[size]
    print_goal(f"times-plain-b{size}", sorted(faster)[len(faster) // 2], goals[0], at_least=True)
    print_goal(f"cumulative-loss-over-plain-b{size}", loss["cumulative"] / least, PLAIN_LOSS, at_least=False)
    print_goal(f"mask-agreement-b{size}", agree["cumulative"], AGREEMENT, at_least=True)
    print_goal(f"marginal-loss-over-plain-b{size}", loss["marginal"] / least, 1.0, at_least=False)
    print_goal(f"step-over-woodfisher-b{size}", sorted(over)[len(over) // 2], OVER_WOODFISHER, at_least=False)


def whole(name: str, model: VisionTransformer, count: int, size: int, goal: float) -> None:
    """Every layer at once, as `sparsify` does it; only what comes after each gradient is timed."""
    weights, method, spent = prunable(model, SELECTIONS["vit"]), METHODS["ovit"], 0.0
    layouts = {at: Layout(at, tuple(weight.shape), UNSTRUCTURED, size) for at, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    blocks = {at: layouts[at].blocks(weight.detach()) for at, weight in weights.items()}
    statistics = {at: method.statistic(blocks[at]) for at in weights}
    for found in gradients(model, batches(model.arch, count), cross_entropy, weights):
        start = time.perf_counter()
        for at, gradient in found.items():
            statistics[at].add(layouts[at].blocks(gradient))
        spent += time.perf_counter() - start
    start = time.perf_counter()
    solvers: dict[str, Solver] = {
        at: method.solve(problem(blocks[at], count, "marginal"), statistics.pop(at)) for at in weights
    }
    counts = cheapest(list(solvers.values()), total // 2)
    made = [solver.result(some)[1] for solver, some in zip(solvers.values(), counts, strict=True)]
    spent += time.perf_counter() - start
    assert sum(int((~keep).sum()) for keep in made) == total // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}, B = {size}: {spent:.2f} s; d·B floats are {total * size * 4 / 2**30:.2f} GiB, peak {peak:.2f} GiB")
    print_goal(f"{name.lower()}-seconds-b{size}", spent, goal, at_least=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few gradients and rounds: figures mean nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="DeiT-Small too: B = 192 takes 19 GiB")
    options = parser.parse_args()
    count, rounds = (16, 1) if options.quick else (256, options.rounds)
    print_machine("torch", "numba")
    print(f"seed 1, {torch.get_num_threads()} threads")
    tiny = initialise(VisionTransformer(TINY), torch.Generator().manual_seed(0)).eval()
    for size in (64,) if options.quick else BLOCKS:
        layer(tiny, count, rounds, size)
    if options.quick:
        return
    for size, goals in BLOCKS.items():
        whole("DeiT-Tiny", tiny, count, size, goals[1])
    if options.small:
        small = initialise(VisionTransformer(SMALL), torch.Generator().manual_seed(0)).eval()
        for size, goals in BLOCKS.items():
            whole("DeiT-Small", small, count, size, goals[2])


if __name__ == "__main__":
    main()
