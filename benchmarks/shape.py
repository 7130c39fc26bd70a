"""Which sizes does pruning leave block by block: do they come out less - more - less, as NViT found on ImageNet?

    $ python benchmarks/shape.py [--quick] [--seeds 3] [--data gratings,digits] [--workers 2] [--json FILE]

Models of 12 blocks (EMB 96), cut to 45 and 30 % of the MACs in three ways:

    NViT         its criterion and greedy ranking in rounds of 5 % of the MACs, with training towards the uncut model in
                 between (the schedule that `vitfit prune` takes by default)
    one shot     the same criterion and ranking at once, without training
    compress     `vitfit compress`

Of every block the share of H, QK, V and MLP that stays. Thirds of the blocks: the statistic is the mean share of the
middle third less that of the outer two, in points, by seed. The shape appears where that is positive in every seed and
the middle has on average more than the first third and more than the last; it is reversed where all of that is the
other way. It does not appear where neither holds; where every seed has less in every third than in the one before, it
falls instead. `docs/images/shape.py` draws the JSON.
"""

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from common import print_machine
from torch import nn

from api.compress import fit, in_its_basis, score
from api.compress_job import calibration_of
from api.prune_run import Recovery
from api.workflow import calibration
from latency.analytic import MacsModel
from latency.estimate import estimate
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy, finetune
from recovery.losses import cross_entropy
from search.constraints import Constraints
from search.criteria import compute_saliency
from search.frontier import Frontier
from search.prune import SELECTIONS, prune
from search.saliency import Saliency
from search.schedule import Schedule, default_schedule
from vit.architecture import Architecture, BlockShape, Unit
from vit.model import VisionTransformer
from vit.surgery import shrink

ARCH = Architecture(
    image_size=(24, 24),
    patch_size=(8, 8),
    in_chans=1,
    num_classes=16,
    embed_dim=96,
    blocks=(BlockShape(4, 24, 24, 192),) * 12,
)
DIGITS = ARCH.replace(image_size=(16, 16), patch_size=(4, 4), num_classes=10)
TASKS = {"gratings": ("gratings:noise=1.0,seed={seed}", ARCH, 400), "digits": ("digits", DIGITS, 600)}
"""Data by seed, model, and steps of its training."""
IN_STEPS = Constraints(multiples={Unit.QK: 4, Unit.V: 4})
SIZES = {"H": "num_heads", "QK": "qk_dim", "V": "v_dim", "MLP": "mlp_dim"}
SHARES = (0.45, 0.3)
WAYS = ("NViT", "one shot", "compress")
IMAGES, IN_A_ROUND = 1024, 256
"""Calibration images: of one shot and of compress, and of every round of NViT (other ones each time)."""
BATCH = 32


class Cut(NamedTuple):
    """What one way left of one model.

    Attributes:
        kept: by size, the share of each block.
        embed: share of EMB.
        accuracy: as cut.
    """

    kept: dict[str, list[float]]
    embed: float
    accuracy: float


def trained(data: Dataset, arch: Architecture, seed: int, steps: int) -> VisionTransformer:
    """From PyTorch's own initialisation: wider than DeiT's, learns these few images in fewer steps."""
    torch.manual_seed(seed)
    model = VisionTransformer(arch)
    nn.init.normal_(model.pos_embed, std=0.02)
    recipe = Recipe(
        steps=steps, batch_size=BATCH, lr=1e-3, warmup=steps // 10, distillation=0.0, seed=seed, report_every=steps
    )
    for _ in finetune(model, data, recipe):
        pass
    return model


def cuts(data: Dataset, dense: VisionTransformer, seed: int, *, quick: bool) -> Iterator[tuple[str, float, Cut]]:
    """Every way and share."""
    latency = MacsModel(dense.arch)
    full = estimate(latency, dense.arch).latency_ms

    def cut(model: VisionTransformer) -> Cut:
        pairs = list(zip(model.arch.blocks, dense.arch.blocks, strict=True))
        kept = {name: [getattr(a, field) / getattr(b, field) for a, b in pairs] for name, field in SIZES.items()}
        return Cut(kept, model.arch.embed_dim / dense.arch.embed_dim, accuracy(model, data.test))

    def rank(model: VisionTransformer, index: int, images: int = IN_A_ROUND) -> Saliency:
        given = calibration(data, images // 64, 64, 1000 * seed + index)
        return compute_saliency(model, given, "nvit", cross_entropy)

    schedule = Schedule(2, 1) if quick else default_schedule(dense.arch, min(SHARES))
    recipe = Recipe(
        steps=1, batch_size=BATCH, lr=3e-4, schedule="constant", warmup=0, distillation=0.9, temperature=3.0, seed=seed
    )
    left = list(SHARES)
    for step in prune(
        dense,
        rank,
        latency,
        min(SHARES) * full,
        select=SELECTIONS["greedy"],
        schedule=schedule,
        constraints=IN_STEPS,
        recover=Recovery(data, schedule, recipe, dense),
    ):
        while left and step.choice.budget_ms <= left[0] * full * (1 + 1e-9):
            yield "NViT", left.pop(0), cut(step.model)

    at_once = rank(dense, 0, IMAGES)
    given = calibration_of(data, IMAGES, 64, seed)
    based = in_its_basis(dense, given)
    saliency = score(based.model, given)
    frontier = Frontier(saliency, latency, IN_STEPS)
    for share in SHARES:
        greedy = SELECTIONS["greedy"](at_once, latency, share * full, IN_STEPS)
        yield "one shot", share, cut(shrink(dense, at_once.keep(greedy.sizes())))
        yield "compress", share, cut(fit(based, saliency, frontier.best(share * full), given).model)


def job(quick: bool, of: tuple[str, int]) -> tuple[str, int, float, dict[tuple[str, float], Cut]]:
    torch.set_num_threads(1)
    task, seed = of
    name, arch, steps = TASKS[task]
    data = load_dataset(name.format(seed=seed))
    dense = trained(data, arch, seed, 5 if quick else steps)
    found = {(way, share): made for way, share, made in cuts(data, dense, seed, quick=quick)}
    return task, seed, accuracy(dense, data.test), found


# --- the statistic -----------------------------------------------------------------------------------------------


VERDICTS = ("appears", "reversed", "falls", "does not appear")


def thirds(kept: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Mean share of the first, the middle and the last third of the blocks, in percent; shape (3,)."""
    return np.array([100 * np.mean(part) for part in np.array_split(np.asarray(kept), 3)])


def middle_less_outer(kept: npt.ArrayLike) -> float:
    first, middle, last = thirds(kept)
    return float(middle - (first + last) / 2)


def verdict(by_seed: list[list[float]]) -> str:
    """Of one size: its shares by seed and block."""
    differences = [middle_less_outer(kept) for kept in by_seed]
    first, middle, last = np.mean([thirds(kept) for kept in by_seed], axis=0)
    if min(differences) > 0 and middle > max(first, last):
        return "appears"
    if max(differences) < 0 and middle < min(first, last):
        return "reversed"
    if all(np.all(np.diff(thirds(kept)) < 0) for kept in by_seed):
        return "falls"
    return "does not appear"


def report(task: str, found: Mapping[tuple[str, float], list[Cut]]) -> dict[tuple[str, str], list[str]]:
    """Prints a task; returns the verdicts by way and size, one a share."""
    verdicts: dict[tuple[str, str], list[str]] = defaultdict(list)
    print(f"{task}: percent kept, mean of the seeds by block; middle third less outer thirds in points, by seed")
    for way, share in product(WAYS, SHARES):
        made = found[way, share]
        right = " ".join(f"{100 * one.accuracy:.1f}" for one in made)
        print(f"{task} {share:.0%} {way:9}  EMB {100 * np.mean([one.embed for one in made]):.0f}; accuracy {right}")
        for size in SIZES:
            by_seed = [one.kept[size] for one in made]
            blocks = " ".join(f"{100 * value:3.0f}" for value in np.mean(by_seed, axis=0))
            differences = [middle_less_outer(kept) for kept in by_seed]
            each = " ".join(f"{value:+.0f}" for value in differences)
            verdicts[way, size].append(verdict(by_seed))
            print(
                f"{task} {share:.0%} {way:9}  {size:3}  {blocks}   {np.mean(differences):+5.1f} [{each}]  "
                f"{verdicts[way, size][-1]}"
            )
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--json", type=Path, help="file for the shares by task, way, share, seed and block")
    options = parser.parse_args()
    tasks = ["gratings"] if options.quick else options.data.split(",")
    seeds = 1 if options.quick else options.seeds

    torch.set_num_threads(1)
    print_machine("torch", "timm")
    print(f"seeds 0 to {seeds - 1}, steps of {BATCH} images, {default_schedule(ARCH, min(SHARES))}")
    found: dict[str, dict[tuple[str, float], list[Cut]]] = {task: defaultdict(list) for task in tasks}
    dense: dict[str, list[float]] = defaultdict(list)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [(task, seed) for seed in range(seeds) for task in tasks]
        for task, seed, right, made in pool.map(partial(job, options.quick), jobs):
            dense[task].append(right)
            for cell, one in made.items():
                found[task][cell].append(one)
            print(f"{task} {seed}: dense {right:.1%}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(document(dense, found), indent=1) + "\n", encoding="utf-8")
    verdicts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for task in tasks:
        for cell, reached in report(task, found[task]).items():
            verdicts[cell] += reached
    for size, way in product(SIZES, WAYS):
        counts = ", ".join(f"{name} in {verdicts[way, size].count(name)}" for name in VERDICTS)
        print(f"less - more - less in {size:3} by {way:9}: {counts} of {len(verdicts[way, size])}")


def document(
    dense: Mapping[str, list[float]], found: Mapping[str, Mapping[tuple[str, float], list[Cut]]]
) -> list[dict[str, object]]:
    """One entry a task, way and share; `kept` by size, seed and block."""
    return [
        {
            "task": task,
            "way": way,
            "share": share,
            "dense": dense[task],
            "accuracy": [one.accuracy for one in made],
            "embed": [one.embed for one in made],
            "kept": {size: [one.kept[size] for one in made] for size in SIZES},
        }
        for task, cells in found.items()
        for (way, share), made in cells.items()
    ]


if __name__ == "__main__":
    main()
