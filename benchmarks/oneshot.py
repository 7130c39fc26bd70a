"""Which method removes single weights at the least loss of accuracy, at once and after a fine-tune?

    $ python benchmarks/oneshot.py [--quick] [--seeds 3] [--data gratings,digits] [--workers 2]

A DeiT-like model a seed (EMB 64, 4 blocks, trained until it no longer gains), all linear layers of its blocks pruned by
every method to 50, 75 and 90 % and to 2:4, with the same gradients; those of oViT, WoodFisher and magnitude then get 20
epochs with the zeros kept, linear decay from 1e-4 to 1e-5 (oViT, Section 4.1, in batches of 128; without a teacher).
Gratings are 1,300 training images, as many as there are digits. Accuracy on the test images.
"""

import argparse
import copy
import itertools
import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from common import print_goal, print_machine
from compress import TASKS as COMPRESS_TASKS
from compress import Task, trained

from api.sparsify_run import Calibrating, mean_loss
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy, finetune
from recovery.recipes import Recipe as Training
from sparsity.methods import METHODS
from sparsity.oneshot import Sparsify, sparsify
from sparsity.pattern import Pattern
from vit.architecture import BlockShape
from vit.masks import SparsityMask
from vit.model import VisionTransformer

TASKS: dict[str, Task] = {
    name: replace(
        COMPRESS_TASKS[name],
        arch=COMPRESS_TASKS[name].arch.replace(embed_dim=64, blocks=(BlockShape(4, 16, 16, 256),) * 4),
        recipe=Recipe(steps=800, lr=1e-3, warmup=80, distillation=0.0),
        data=source,
    )
    for name, source in (("gratings", "gratings:noise=1.0,train=1300,seed={seed}"), ("digits", "digits"))
}
LEVELS: dict[str, tuple[float | None, str]] = {
    "50 %": (0.5, "unstructured"),
    "75 %": (0.75, "unstructured"),
    "90 %": (0.9, "unstructured"),
    "2:4": (None, "2:4"),
}
GRADIENTS, BATCH = 256, 16
ORDER = ("ovit", "woodfisher", "magnitude")
"""Of which the paper's order must show at 75 and 90 %: each above the next one."""

Results = dict[tuple[str, str], tuple[float, float]]


def briefly(epochs: int, seed: int) -> Training:
    """Linear from 1e-4 to 1e-5 in one cycle."""
    return Recipe(
        epochs=epochs, batch_size=128, lr=1e-4, min_lr=1e-5, schedule="cyclic", warmup=0, distillation=0.0, seed=seed
    )


def request(method: str, level: str) -> Sparsify:
    sparsity, pattern = LEVELS[level]
    size = 256 if method == "mfac" else None  # layers here are smaller than the 2,048 that it would take
    return Sparsify(sparsity=sparsity, pattern=Pattern.named(pattern), method=method, block_size=size)


def tuned(
    model: VisionTransformer,
    data: Dataset,
    recipe: Training,
    mask: SparsityMask | None,
    teacher: VisionTransformer | None = None,
) -> VisionTransformer:
    model = copy.deepcopy(model)
    for _ in finetune(model, data, recipe, teacher, mask=mask):
        pass
    return model


def one(quick: bool, job: tuple[str, int]) -> tuple[str, int, float, float, Results]:
    torch.set_num_threads(1)
    task, seed = job
    data = load_dataset(TASKS[task].data.format(seed=seed))
    dense = trained(TASKS[task], data, seed, 20 if quick else None)
    batches = Calibrating(gradients=16 if quick else GRADIENTS, batch_size=BATCH, seed=seed).of(data)
    recipe = briefly(1 if quick else 20, seed)
    found: Results = {}
    for level in ("90 %",) if quick else LEVELS:
        for method in METHODS:
            made = sparsify(dense, batches, mean_loss, request(method, level))
            cut = accuracy(made.model, data.test)
            after = tuned(made.model, data, recipe, made.mask) if method in ORDER else None
            found[level, method] = cut, accuracy(after, data.test) if after else float("nan")
    longer = accuracy(tuned(dense, data, recipe, None), data.test)
    return task, seed, accuracy(dense, data.test), longer, found


def each(values: list[float]) -> str:
    return f"{100 * np.mean(values):5.1f} [{' '.join(f'{100 * value:.1f}' for value in values)}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    tasks = ["digits"] if options.quick else options.data.split(",")
    seeds = 1 if options.quick else options.seeds
    print_machine("torch", "timm", "numba")
    print(f"seeds 0 to {seeds - 1}, {GRADIENTS} gradients of {BATCH} images")
    jobs = [(task, seed) for seed in range(seeds) for task in tasks]
    found: dict[str, list[Results]] = defaultdict(list)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for task, seed, dense, longer, results in pool.map(partial(one, options.quick), jobs):
            found[task].append(results)
            print(f"{task} {seed}: dense {dense:.1%}, trained on for as long {longer:.1%}", flush=True)
    for task in tasks:
        report(task, found[task])


def report(task: str, found: list[Results]) -> None:
    print(f"{task}: accuracy in percent, mean [every seed], as pruned | fine-tuned")
    for level, method in found[0]:
        pruned, tuned_ = zip(*(results[level, method] for results in found), strict=True)
        rest = f" | {each(list(tuned_))}" if method in ORDER else ""
        print(f"{task} {level:5} {method:10}  {each(list(pruned)):26}{rest}")
    for level in ("75 %", "90 %"):
        if (level, ORDER[0]) not in found[0]:
            continue
        for better, worse in itertools.pairwise(ORDER):
            lead = [100 * (results[level, better][0] - results[level, worse][0]) for results in found]
            name = f"{task}-{better}-over-{worse}-at-{level.split()[0]}"
            print_goal(name, float(np.mean(lead)), 0, at_least=True)


if __name__ == "__main__":
    main()
