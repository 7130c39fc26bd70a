"""Which way to train a sparse model gets further at equal epochs: oViT's sweep, magnitude's, AC/DC or RigL?

    $ python benchmarks/gradual.py [--quick] [--seeds 3] [--data gratings,digits] [--epochs 32] [--workers 2]
        [--keep FOLDER]

The models of oneshot.py, trained first; then as many epochs for everybody:

    ovit            40 % first, then to 90 % in 16 phases, a cycle of the learning rate each: all targets in one run
    magnitude       the same with magnitude in oViT's place
    ovit, cosine    the same with a single cosine in the place of the cycles
    ac/dc           dense and sparse phases in turn, of the published shares; a run a target
    rigl            one sparsity, weights exchanged in every phase (SViTE's way, from the trained model); a run a target

oViT's learning rates (5e-4 to 1e-5), batches of 128, no teacher, no augmentation but the data's own. Targets of a sweep
that come early have had fewer epochs than AC/DC and RigL give each of theirs; at 90 % all have had the same.
"""

import argparse
import itertools
import multiprocessing
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import add_keep, kept, print_goal, print_machine
from compress import trained
from oneshot import BATCH, TASKS

from api.sparsify_run import Calibrating, SparseRecovery, mean_loss
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, Trainer, accuracy
from sparsity.gradual import Change, ac_dc, gradual, rigl, sweep
from sparsity.layers import SELECTIONS
from sparsity.oneshot import Sparsify
from sparsity.schedule import ACDC, TARGETS, levels
from vit.masks import SparsityMask
from vit.model import VisionTransformer

PHASES = 16
GRADIENTS = 128
SINGLE = (0.75, 0.9)
"""Targets of those that take a run for each."""

Found = dict[tuple[str, float], float]


def recipe(schedule: str, steps: int, seed: int) -> Recipe:
    cycles = PHASES if schedule == "cyclic" else 1
    return Recipe(
        steps=steps, batch_size=128, lr=5e-4, min_lr=1e-5, schedule=schedule, cycles=cycles, warmup=0,
        weight_decay=0.03, distillation=0.0, seed=seed,
    )  # fmt: skip


class Shares:
    """Trains phases of unequal length, as AC/DC has them."""

    def __init__(self, data: Dataset, training: Recipe) -> None:
        self.data, self.training, self.trainer = data, training, None
        self.ends = [round((training.steps or 0) * end) for end in itertools.accumulate(ACDC)]

    def __call__(self, model: VisionTransformer, mask: SparsityMask | None, phase: int) -> VisionTransformer:
        if self.trainer is None:
            self.trainer = Trainer(model, self.data, self.training, mask=mask)
        else:
            self.trainer.prune(model, mask)
        for _ in self.trainer.train(self.ends[phase]):
            pass
        return self.trainer.model.eval()


def last(changes: Sequence[Change], dense: VisionTransformer, recover: object) -> VisionTransformer:
    *_, phase = gradual(dense, changes, recover)  # type: ignore[arg-type]
    return phase.model  # type: ignore[return-value]


def one(epochs: int, quick: bool, keep: Path | None, job: tuple[str, int]) -> tuple[str, int, float, Found]:
    torch.set_num_threads(1)
    task, seed = job
    dense, rows = kept(keep, f"{task}-{seed}", lambda: of_seed(epochs, quick, task, seed))
    return task, seed, dense, {(name, target): right for name, target, right in rows}


def of_seed(epochs: int, quick: bool, task: str, seed: int) -> tuple[float, list[tuple[str, float, float]]]:
    """Accuracy of the dense model, and of every way and target."""
    data = load_dataset(TASKS[task].data.format(seed=seed))
    dense = trained(TASKS[task], data, seed, 20 if quick else None)
    each = max(1, epochs * len(data.train) // 128 // PHASES)
    steps = each * PHASES
    batches = Calibrating(gradients=4 if quick else GRADIENTS, batch_size=BATCH, seed=seed).of(data)
    selection, found = SELECTIONS["vit"], Found()
    on_the_way = levels(TARGETS, 0.4, PHASES)
    for name, method, schedule in (
        ("ovit", "ovit", "cyclic"),
        ("magnitude", "magnitude", "cyclic"),
        ("ovit, cosine", "ovit", "cosine"),
    ):
        changes = sweep(on_the_way, Sparsify(sparsity=TARGETS[-1], method=method), batches, mean_loss)
        recover = SparseRecovery(data, recipe(schedule, steps, seed), PHASES)
        for phase, level in zip(gradual(dense, changes, recover), on_the_way, strict=True):
            if level in TARGETS:
                found[name, level] = accuracy(phase.model, data.test)  # type: ignore[arg-type]
    for target in SINGLE[-1:] if quick else SINGLE:
        training = recipe("cosine", steps, seed)
        small = last(ac_dc(PHASES, target, selection), dense, Shares(data, training))
        found["ac/dc", target] = accuracy(small, data.test)
        exchange = rigl(PHASES, target, selection, batches, mean_loss)
        small = last(exchange, dense, SparseRecovery(data, training, PHASES))
        found["rigl", target] = accuracy(small, data.test)
    return accuracy(dense, data.test), [(*key, right) for key, right in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--epochs", type=int, default=32, help="after the dense model's training")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    add_keep(parser)
    options = parser.parse_args()
    tasks = ["digits"] if options.quick else options.data.split(",")
    seeds, epochs = (1, 1) if options.quick else (options.seeds, options.epochs)
    print_machine("torch", "timm", "numba")
    print(f"seeds 0 to {seeds - 1}, {epochs} epochs in {PHASES} phases")
    jobs = [(task, seed) for seed in range(seeds) for task in tasks]
    found: dict[str, list[Found]] = defaultdict(list)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for task, seed, dense, results in pool.map(partial(one, epochs, options.quick, options.keep), jobs):
            found[task].append(results)
            print(f"{task} {seed}: dense {dense:.1%}", flush=True)
    for task in tasks:
        print(f"{task}: accuracy in percent, mean [every seed]")
        for key in found[task][0]:
            values = [100 * results[key] for results in found[task]]
            print(f"{task} {key[1]:.0%} {key[0]:13} {np.mean(values):5.1f} [{' '.join(f'{v:.1f}' for v in values)}]")
        for name, other in (("ovit", "magnitude"), ("ovit", "ac/dc"), ("ovit", "rigl"), ("ovit", "ovit, cosine")):
            lead = [100 * (results[name, 0.9] - results[other, 0.9]) for results in found[task]]
            label = other.replace("ovit, cosine", "one-cosine").replace("/", "")
            print_goal(f"{task}-ovit-over-{label}-at-90", float(np.mean(lead)), 0, at_least=True)


if __name__ == "__main__":
    main()
