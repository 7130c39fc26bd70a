"""Who wins at equal training budget: pruning in rounds, compress and then training, or ReViT from scratch?

    $ python benchmarks/longrun.py [--quick] [--seeds 3] [--data gratings,digits] [--steps 100] [--workers 2]
        [--keep FOLDER]

One dense model per task and seed. Every contender comes to 60, 45 and 30 % of its latency (a table of this CPU, batch
64, one thread; nothing else decides) and takes as many optimiser steps on equal batches, rounds included:

    NViT                 its criterion and greedy ranking in rounds with training in between, then a fine-tune
    ours in rounds       likewise with gates and the frontier, in the rotated basis
    compress             `vitfit compress`, then a fine-tune
    compress in rounds   three times basis, saliency, frontier, cut, refit, training; then a fine-tune
    ReViT                the published rule at this latency, from scratch with those steps
    ReViT, longer        from scratch with those steps and the dense model's
    dense, longer        the dense model, trained on for those steps: the upper reference, at its own latency

Each trains by the best of the same three recipes for its kind, chosen once for all tasks, seeds and budgets: on
gratings, seed 0, at 45 %, by a fifth of the training images that are held out of everything. NViT chooses for itself
and ours in rounds, compress for itself, its rounds and the dense model, ReViT for both lengths. Test images decide
nothing.

The dense model is wide and sees few tokens (EMB 224, 6 blocks, 5 tokens): ReViT has 10 heads of 64 channels at its ends
whatever its width, so its narrowest is slower than any smaller model and needs about 40 % of this one's time. Where no
ReViT is fast enough, that is said.
"""

import argparse
import copy
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_keep, cpu_table, kept, print_machine
from torch import nn

from api.compress import Based, Calibration, fit, in_its_basis, score
from api.compress_job import calibration_of
from api.profiling import measure
from api.prune_run import Recovery
from api.workflow import calibration
from latency.estimate import estimate
from latency.grid import Grid
from latency.runtimes import find_device
from latency.table import LatencyTable
from recovery.data import Dataset, TensorSplit, load_dataset
from recovery.loop import Recipe, accuracy, finetune
from recovery.losses import cross_entropy
from search.constraints import Constraints
from search.criteria import compute_saliency
from search.errors import BudgetError
from search.frontier import Frontier
from search.prune import SELECTIONS, prune
from search.redistribute import redistribute
from search.saliency import Saliency
from search.schedule import Schedule
from vit.architecture import Architecture, BlockShape, Unit
from vit.model import VisionTransformer

ARCH = Architecture(
    image_size=(24, 24),
    patch_size=(12, 12),
    in_chans=1,
    num_classes=16,
    embed_dim=224,
    blocks=(BlockShape(7, 32, 32, 896),) * 6,
)
DIGITS = ARCH.replace(image_size=(16, 16), patch_size=(8, 8), num_classes=10)
TASKS = {"gratings": ("gratings:noise=1.2,seed={seed}", ARCH), "digits": ("digits", DIGITS)}
GRID = Grid(
    embed_dim=(32, 104, 160, 224),
    num_heads=(1, 4, 7, 10),
    qk_dim=(4, 16, 32),
    v_dim=(4, 32, 64),
    mlp_dim=(16, 320, 640, 960),
)
"""Covers the dense model and all that is cut from it, and ReViT up to EMB 160."""
IN_STEPS = Constraints(
    multiples={Unit.EMBED: 8, Unit.QK: 4, Unit.V: 4, Unit.MLP: 16},
    minimum={Unit.EMBED: 32, Unit.MLP: 16},
)
BUDGETS = (0.6, 0.45, 0.3)
CHOOSING = ("gratings", 0, 0.45)
HELD_OUT = 5
"""Every so manieth training image is held out to choose recipes by."""
BATCH = 32
IMAGES = 512
"""Calibration images: of a basis and its saliency, and of all rounds of the iterative contenders together."""
ROUNDS, COMPRESS_ROUNDS = 6, 3
RECIPES = {
    "labels, 1e-3": Recipe(steps=1, batch_size=BATCH, lr=1e-3, distillation=0.0),
    "half, 5e-4": Recipe(steps=1, batch_size=BATCH, lr=5e-4, distillation=0.5),
    "teacher, 1e-4": Recipe(
        steps=1, batch_size=BATCH, lr=1e-4, distillation=1.0, weight_decay=0.0, label_smoothing=0.0
    ),
}
"""Cosine with a tenth of warm-up; between two rounds constant."""
Times = tuple[int, int]
"""Training steps of the dense model, and after it."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the contenders of one task and seed share."""

    data: Dataset
    dense: VisionTransformer
    table: LatencyTable
    seed: int
    times: Times
    given: Calibration
    based: Based
    saliency: Saliency

    @classmethod
    def of(cls, data: Dataset, dense: VisionTransformer, table: LatencyTable, seed: int, times: Times) -> "Setting":
        given = calibration_of(data, IMAGES, 64, seed)
        based = in_its_basis(dense, given)
        return cls(data, dense, table, seed, times, given, based, score(based.model, given))


@dataclass(frozen=True, slots=True)
class Result:
    arch: Architecture
    accuracy: float


def nvit(setting: Setting, budget_ms: float, recipe: Recipe) -> VisionTransformer:
    return _in_rounds(setting, setting.dense, budget_ms, recipe, "nvit", "greedy")


def ours_in_rounds(setting: Setting, budget_ms: float, recipe: Recipe) -> VisionTransformer:
    return _in_rounds(setting, setting.based.model, budget_ms, recipe, "gates", "frontier")


def _in_rounds(
    setting: Setting, start: VisionTransformer, budget_ms: float, recipe: Recipe, criterion: str, select: str
) -> VisionTransformer:
    """A third of the steps between the rounds, the rest after them."""
    steps = setting.times[1]
    schedule = Schedule(ROUNDS, interval=steps // (3 * (ROUNDS - 1)))

    def rank(model: VisionTransformer, index: int) -> Saliency:
        images = calibration(setting.data, max(IMAGES // ROUNDS // 64, 1), 64, 1000 * setting.seed + index)
        return compute_saliency(model, images, criterion, cross_entropy)

    between = replace(recipe, schedule="constant", warmup=0, seed=setting.seed + 3)
    *_, step = prune(
        start,
        rank,
        setting.table,
        budget_ms,
        select=SELECTIONS[select],
        schedule=schedule,
        constraints=IN_STEPS,
        recover=Recovery(setting.data, schedule, between, setting.dense),
    )
    return trained(step.model, setting, recipe, steps - schedule.interval * (ROUNDS - 1))


def compress(setting: Setting, budget_ms: float, recipe: Recipe) -> VisionTransformer:
    choice = Frontier(setting.saliency, setting.table, IN_STEPS).best(budget_ms)
    small = fit(setting.based, setting.saliency, choice, setting.given).model
    return trained(small, setting, recipe, setting.times[1])


def compress_in_rounds(setting: Setting, budget_ms: float, recipe: Recipe) -> VisionTransformer:
    """A third of the steps between the rounds. Each refits to the model of the round before, which was trained."""
    steps, model, based, saliency = setting.times[1], setting.dense, setting.based, setting.saliency
    interval = steps // (3 * (COMPRESS_ROUNDS - 1))
    full_ms = estimate(setting.table, model.arch).latency_ms
    for index, step_ms in enumerate(Schedule(COMPRESS_ROUNDS).budgets(full_ms, budget_ms)):
        if index:
            between = replace(recipe, schedule="constant", seed=setting.seed + 10 * index)
            model = trained(model, setting, between, interval)
            based = in_its_basis(model, setting.given)
            saliency = score(based.model, setting.given)
        choice = Frontier(saliency, setting.table, IN_STEPS).best(step_ms)
        model = fit(based, saliency, choice, setting.given).model
    return trained(model, setting, recipe, steps - interval * (COMPRESS_ROUNDS - 1))


def revit(setting: Setting, budget_ms: float, recipe: Recipe) -> VisionTransformer:
    return _from_scratch(setting, budget_ms, recipe, setting.times[1])


def revit_longer(setting: Setting, budget_ms: float, recipe: Recipe) -> VisionTransformer:
    return _from_scratch(setting, budget_ms, recipe, sum(setting.times))


def _from_scratch(setting: Setting, budget_ms: float, recipe: Recipe, steps: int) -> VisionTransformer:
    arch = redistribute(setting.table, budget_ms, setting.dense.arch, setting.dense.arch.depth)
    return trained(fresh(arch, setting.seed), setting, recipe, steps)


def dense_longer(setting: Setting, budget_ms: float, recipe: Recipe) -> VisionTransformer:
    """Whatever the budget."""
    return trained(setting.dense, setting, recipe, setting.times[1])


CONTENDERS: dict[str, Callable[[Setting, float, Recipe], VisionTransformer]] = {
    "NViT": nvit,
    "ours in rounds": ours_in_rounds,
    "compress": compress,
    "compress in rounds": compress_in_rounds,
    "ReViT": revit,
    "ReViT, longer": revit_longer,
    "dense, longer": dense_longer,
}
CHOOSES = {
    "NViT": ("NViT", "ours in rounds"),
    "compress": ("compress", "compress in rounds", "dense, longer"),
    "ReViT": ("ReViT", "ReViT, longer"),
}
"""Whose recipe is for whom: a half of the trainings that a choice for everyone would take."""


def fresh(arch: Architecture, seed: int) -> VisionTransformer:
    """PyTorch's own initialisation: wider than DeiT's, learns these few images in fewer steps."""
    torch.manual_seed(seed)
    model = VisionTransformer(arch)
    nn.init.normal_(model.pos_embed, std=0.02)
    return model


def trained(model: VisionTransformer, setting: Setting, recipe: Recipe, steps: int) -> VisionTransformer:
    model = copy.deepcopy(model)
    whole = replace(recipe, steps=steps, warmup=steps // 10, seed=setting.seed + 5, report_every=steps)
    for _ in finetune(model, setting.data, whole, setting.dense):
        pass
    return model


# --- jobs of a process -------------------------------------------------------------------------------------------


def data_of(task: str, seed: int, *, held_out: bool = False) -> Dataset:
    """A task's data; with `held_out` only training images, every HELD_OUT-th of them to test on."""
    data = load_dataset(TASKS[task][0].format(seed=seed))
    if not held_out:
        return data
    assert isinstance(data.train, TensorSplit)
    judge = torch.arange(len(data.train)) % HELD_OUT == 0
    images, labels = data.train.images, data.train.labels
    train = TensorSplit(images[~judge], labels[~judge], data.train.augment)
    return replace(data, train=train, test=TensorSplit(images[judge], labels[judge]))


def dense_of(steps: int, task: str, seed: int, *, held_out: bool = False) -> VisionTransformer:
    model = fresh(TASKS[task][1], seed)
    recipe = replace(RECIPES["labels, 1e-3"], steps=steps, warmup=steps // 10, seed=seed, report_every=steps)
    for _ in finetune(model, data_of(task, seed, held_out=held_out), recipe):
        pass
    return model


def judged(table: LatencyTable, times: Times, keep: Path | None, name: str) -> tuple[str, dict[str, float]]:
    """Accuracy of a contender with every recipe on the images held out."""
    torch.set_num_threads(1)
    task, seed, share = CHOOSING

    def make() -> dict[str, float]:
        data = data_of(task, seed, held_out=True)
        dense = dense_of(times[0], task, seed, held_out=True)
        setting, right = Setting.of(data, dense, table, seed, times), {}
        for label, recipe in RECIPES.items():
            try:
                small = CONTENDERS[name](setting, share * estimate(table, dense.arch).latency_ms, recipe)
            except BudgetError:  # no ReViT is as fast on this machine: nothing to choose by, the first recipe stays
                return dict.fromkeys(RECIPES, float("nan"))
            right[label] = accuracy(small, data.test)
        return right

    return name, kept(keep, f"judged-{name}", make)


def results(
    tables: Mapping[str, LatencyTable],
    budgets: tuple[float, ...],
    chosen: Mapping[str, str],
    times: Times,
    keep: Path | None,
    job: tuple[str, int],
) -> tuple[str, int, dict[tuple[float, str], Result]]:
    torch.set_num_threads(1)
    task, seed = job
    rows = kept(keep, f"{task}-{seed}", lambda: list(_contest(tables[task], budgets, chosen, times, task, seed)))
    return task, seed, {(share, name): Result(Architecture.from_dict(arch), right) for share, name, arch, right in rows}


def _contest(
    table: LatencyTable, budgets: tuple[float, ...], chosen: Mapping[str, str], times: Times, task: str, seed: int
) -> Iterator[tuple[float, str, dict[str, Any], float]]:
    """Share of the latency, contender, architecture and accuracy."""
    data, dense = data_of(task, seed), dense_of(times[0], task, seed)
    setting = Setting.of(data, dense, table, seed, times)
    yield 1.0, "dense", dense.arch.to_dict(), accuracy(dense, data.test)
    for name, contender in CONTENDERS.items():
        for share in (1.0,) if contender is dense_longer else budgets:
            try:
                model = contender(setting, share * estimate(table, dense.arch).latency_ms, RECIPES[chosen[name]])
            except BudgetError:
                if contender not in (revit, revit_longer):
                    raise
                continue
            yield share, name, model.arch.to_dict(), accuracy(model, data.test)


def timed(table: LatencyTable, rounds: int, archs: list[Architecture]) -> list[float]:
    """Measured latency of every architecture in ms, in one interleaved run."""
    torch.set_num_threads(1)
    return [one.latency_ms for one in measure(archs, find_device(), table.target, rounds=rounds)]


# --- report ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--dense-steps", type=int, default=300, help="training steps of the dense model")
    parser.add_argument("--steps", type=int, default=100, help="training steps of every contender")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    add_keep(parser)
    options = parser.parse_args()
    tasks = ["gratings"] if options.quick else options.data.split(",")
    seeds = 1 if options.quick else options.seeds
    times = (5, 15) if options.quick else (options.dense_steps, options.steps)
    budgets = BUDGETS[1:2] if options.quick else BUDGETS
    points, rounds = (32, 1) if options.quick else (192, 3)

    torch.set_num_threads(1)
    print_machine("torch", "timm")
    print(f"seeds 0 to {seeds - 1}; dense {times[0]} steps, then {times[1]}, of {BATCH} images; {IMAGES} to calibrate")
    tables = {
        task: cpu_table(TASKS[task][1], options.keep, f"table-{task}", grid=GRID, points=points, rounds=rounds)
        for task in dict.fromkeys([*tasks, CHOOSING[0]])
    }
    for (
        task,
        table,
    ) in tables.items():  # made under load, nobody keeps the budget
        error = table.provenance.quality["heldout_mape"]
        print(f"{task}: table of {points} points, off by {error:.1%} on points that were held out", flush=True)
    jobs = [(task, seed) for seed in range(seeds) for task in tasks]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        chosen = best_recipes(pool.map(partial(judged, tables[CHOOSING[0]], times, options.keep), CHOOSES))
        found: dict[str, dict[tuple[float, str], list[Result]]] = {task: defaultdict(list) for task in tasks}
        for task, seed, made in pool.map(partial(results, tables, budgets, chosen, times, options.keep), jobs):
            for cell, result in made.items():
                found[task][cell].append(result)
            row = "  ".join(f"{name} {share:.0%}: {result.accuracy:.1%}" for (share, name), result in made.items())
            print(f"{task} {seed}: {row}", flush=True)
    for task in tasks:
        archs = list(dict.fromkeys(result.arch for made in found[task].values() for result in made))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            ms = alone.submit(timed, tables[task], rounds, archs).result()
        report(task, found[task], dict(zip(archs, ms, strict=True)), budgets)


def best_recipes(judged: Iterator[tuple[str, dict[str, float]]]) -> dict[str, str]:
    """By contender."""
    chosen = {}
    for name, by_recipe in judged:
        best = max(by_recipe, key=lambda recipe: by_recipe[recipe])
        chosen.update(dict.fromkeys(CHOOSES[name], best))
        tried = "  ".join(f"{recipe}: {right:.1%}" for recipe, right in by_recipe.items())
        print(f"held out  {tried}  -> {best} for {', '.join(CHOOSES[name])}", flush=True)
    return chosen


def report(
    task: str,
    found: Mapping[tuple[float, str], list[Result]],
    latency_ms: Mapping[Architecture, float],
    budgets: tuple[float, ...],
) -> None:
    print(f"{task}: accuracy in percent, mean [every seed]; latency over budget, both as shares of the dense model's")
    full_ms = latency_ms[found[1.0, "dense"][0].arch]
    for name in ("dense", "dense, longer"):
        print(f"{task} 100%  {name:18}  {each(found[1.0, name])}")
    for share in budgets:
        present = [name for name in CONTENDERS if (share, name) in found]
        for name in present:
            ratios = [latency_ms[result.arch] / full_ms / share for result in found[share, name]]
            print(f"{task} {share:4.0%}  {name:18}  {each(found[share, name])}  {np.mean(ratios):.2f} of the budget")
        if "ReViT" not in present:
            print(f"{task} {share:4.0%}  {'ReViT':18}  none is as fast")
        winner = max(present, key=lambda name: np.mean(percent(found[share, name])))
        for name in present:
            if name != winner:
                lead = np.subtract(percent(found[share, winner]), percent(found[share, name]))
                print(
                    f"{task} {share:4.0%}  {winner} over {name}: {np.mean(lead):.1f} "
                    f"[{' '.join(f'{points:.1f}' for points in lead)}] points"
                )


def percent(made: list[Result]) -> list[float]:
    return [100 * result.accuracy for result in made]


def each(made: list[Result]) -> str:
    return f"{np.mean(percent(made)):5.1f} [{' '.join(f'{value:.1f}' for value in percent(made))}]"


if __name__ == "__main__":
    main()
