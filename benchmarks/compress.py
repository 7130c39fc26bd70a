"""How much accuracy does a model lose when compress fits it to a budget, without training, and what brings that about?

    $ python benchmarks/compress.py [--quick] [--tasks gratings,digits] [--seeds 3] [--no-ablation]

One model trained per task and seed, compressed to shares of the analytic target `macs` (free of noise) and of this
CPU's estimated latency. Beside it NViT, iterative with as many images and fine-tuned afterwards, and compress with one
part exchanged at a time.

gratings   16 classes, noise 1.2; EMB 96, 6 blocks
digits     scikit-learn's; EMB 96, 6 blocks
gratings-t gratings with a model of DeiT-T's size (EMB 192, 12 blocks): minutes of training, not among the defaults
plaids     276 classes of two gratings each, harder; the same model, not among the defaults
"""

import argparse
import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from common import cpu_table, print_goal, print_machine
from torch import nn

from api.compress import Based, Calibration, fit, score, sensitivity_of
from api.compress_job import calibration_of
from api.workflow import calibration
from latency.analytic import MacsModel
from latency.estimate import LatencyModel, estimate
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy, finetune
from recovery.losses import cross_entropy
from search.constraints import Constraints
from search.criteria import compute_saliency
from search.frontier import Choice, Frontier
from search.greedy import greedy_choice
from search.prune import SELECTIONS, prune
from search.saliency import Saliency
from search.schedule import Schedule
from vit.architecture import Architecture, BlockShape, Unit
from vit.basis import CHANGES, rebase
from vit.groups import EMBED
from vit.model import VisionTransformer
from vit.surgery import shrink

SMALL = Architecture(
    image_size=(24, 24),
    patch_size=(6, 6),
    in_chans=1,
    num_classes=16,
    embed_dim=96,
    blocks=(BlockShape(4, 24, 24, 192),) * 6,
)
TINY = SMALL.replace(embed_dim=192, blocks=(BlockShape(3, 64, 64, 768),) * 12)
IMAGES = 2048
SHARES = (0.5, 0.3, 0.2, 0.12, 0.08)
ABLATED = (0.3, 0.12, 0.08)
GOALS = dict(zip(SHARES, (0.2, 0.5, 1.0, 2.0, 4.0), strict=True))
"""Points of accuracy that may be lost, by share of the MACs."""


@dataclass(frozen=True, slots=True)
class Task:
    """A data set by seed, a model, and how it is trained.

    Attributes:
        multiples: steps of its sizes; heads of 24 channels are cut in steps of 4.
    """

    data: str
    arch: Architecture
    recipe: Recipe
    constraints: Constraints


FINE = Constraints(multiples={Unit.QK: 4, Unit.V: 4})
RECIPE = Recipe(steps=500, lr=1e-3, warmup=50, distillation=0.0)
TASKS = {
    "gratings": Task("gratings:noise=1.2,seed={seed}", SMALL, RECIPE, FINE),
    "digits": Task("digits", SMALL.replace(image_size=(16, 16), patch_size=(4, 4), num_classes=10), RECIPE, FINE),
    "gratings-t": Task("gratings:noise=1.2,seed={seed}", TINY, RECIPE, Constraints()),
    "plaids": Task(
        "plaids:seed={seed}",
        TINY.replace(image_size=(32, 32), patch_size=(8, 8), num_classes=276),
        Recipe(steps=900, batch_size=32, lr=1e-3, warmup=90, distillation=0.0, label_smoothing=0.0),
        Constraints(),
    ),
}


def trained(task: Task, data: Dataset, seed: int, steps: int | None) -> VisionTransformer:
    """From PyTorch's own initialisation: wider than DeiT's, learns these few images in fewer steps."""
    torch.manual_seed(seed)
    model = VisionTransformer(task.arch)
    nn.init.normal_(model.pos_embed, std=0.02)
    recipe = replace(task.recipe, steps=steps or task.recipe.steps, seed=seed)
    for _ in finetune(model, data, recipe):
        pass
    return model


@dataclass(frozen=True, kw_only=True)
class Way:
    """compress, or with one part exchanged."""

    changes: tuple[str, ...] = CHANGES
    criterion: str = "gates"
    own_labels: bool = True
    weighted: bool = True
    refits: bool = True
    greedy: bool = False


ABLATION = {
    "compress": Way(),
    "criterion fisher": Way(criterion="fisher"),
    "criterion nvit": Way(criterion="nvit"),
    "criterion magnitude": Way(criterion="magnitude"),
    "criterion random": Way(criterion="random"),
    "the data's labels": Way(own_labels=False),
    "greedy, no frontier": Way(greedy=True),
    "all tokens alike": Way(weighted=False),
    "no refit": Way(refits=False),
    "no rotation at all": Way(changes=()),
    "stream not rotated": Way(changes=("qk", "v")),
    "QK not balanced": Way(changes=("stream", "v")),
    "V not balanced": Way(changes=("stream", "qk")),
}


class Compressor:
    """One way, for one model: basis and saliency are computed once."""

    def __init__(self, way: Way, model: VisionTransformer, given: Calibration, constraints: Constraints) -> None:
        self._way, self._constraints = way, constraints
        self._given = replace(given, own_labels=way.own_labels)

        def weigh(folded: VisionTransformer) -> object:
            return sensitivity_of(folded, self._given)

        silent = self._given.pictures("images", lambda *_: None)
        rebased = rebase(model, silent, weigh if way.weighted else None, way.changes)
        rms = model.arch.norm == "layer" and rebased.model.arch.norm == "rms"
        self._based = Based(rebased.model, rms, rebased.sensitivity)
        self._saliency = score(rebased.model, self._given, way.criterion)

    def choices(self, latency: LatencyModel) -> Callable[[float], Choice]:
        if self._way.greedy:
            return lambda budget: greedy_choice(self._saliency, latency, budget, self._constraints)
        return Frontier(self._saliency, latency, self._constraints).best

    def __call__(self, choice: Choice) -> VisionTransformer:
        if self._way.refits:
            return fit(self._based, self._saliency, choice, self._given).model
        sizes = choice.sizes()
        sizes[EMBED] -= int(self._based.layer_norm)
        return shrink(self._based.model, self._saliency.keep(sizes))


def cut_by_nvit(model: VisionTransformer, data: Dataset, budget: float, seed: int) -> VisionTransformer:
    """Ten rounds of NViT's criterion and greedy ranking with IMAGES images in all, to that many M MACs."""
    rounds, batch_size = 10, 64

    def score(left: VisionTransformer, index: int) -> Saliency:
        images = calibration(data, round(IMAGES / rounds / batch_size), batch_size, 1000 * seed + index)
        return compute_saliency(left, images, "nvit", cross_entropy)

    *_, step = prune(
        model,
        score,
        MacsModel(model.arch),
        budget,
        select=SELECTIONS["greedy"],
        schedule=Schedule(rounds),
        constraints=FINE,
    )
    return step.model


def nvit(model: VisionTransformer, data: Dataset, budget: float, seed: int, tuned: int) -> tuple[float, float]:
    """NViT, then a fine-tune.

    Returns:
        Accuracy as cut, and as fine-tuned.
    """
    cut = cut_by_nvit(model, data, budget, seed)
    small = copy.deepcopy(cut)
    recipe = Recipe(steps=tuned, lr=5e-4, warmup=tuned // 5, distillation=0.0, seed=seed + 5, report_every=tuned)
    for _ in finetune(small, data, recipe):
        pass
    return accuracy(cut, data.test), accuracy(small, data.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--tasks", default="gratings,digits", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-ablation", action="store_true")
    options = parser.parse_args()
    names = ["gratings"] if options.quick else options.tasks.split(",")
    seeds, steps, tuned = (1, 20, 5) if options.quick else (options.seeds, None, 30)
    shares = (0.5, 0.12) if options.quick else SHARES

    torch.set_num_threads(1)
    print_machine("torch", "timm")
    print(f"seeds 0 to {seeds - 1}, {IMAGES} calibration images (digits: all of its 1,280), points of accuracy lost")
    for name in names:
        run(name, seeds, steps, tuned, shares, ablation=not options.no_ablation, quick=options.quick)


def run(
    name: str, seeds: int, steps: int | None, tuned: int, shares: tuple[float, ...], *, ablation: bool, quick: bool
) -> None:
    task = TASKS[name]
    table = cpu_table(task.arch, rounds=1 if quick else 3)
    lost: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    lead = []
    for seed in range(seeds):
        data = load_dataset(task.data.format(seed=seed))
        model = trained(task, data, seed, steps)
        dense = accuracy(model, data.test)
        given = calibration_of(data, 256 if quick else IMAGES, 64, seed)
        macs = MacsModel(task.arch)
        for label, way in ABLATION.items() if ablation else [("compress", Way())]:
            compressor = Compressor(way, model, given, task.constraints)
            targets: list[tuple[str, LatencyModel, tuple[float, ...]]] = [("macs", macs, shares)]
            if label == "compress":
                targets.append(("cpu", table, (0.6, 0.45)))
            for target, latency, parts in targets:
                best, full = compressor.choices(latency), estimate(latency, task.arch).latency_ms
                for share in parts:
                    if label != "compress" and share not in ABLATED:
                        continue
                    reached = accuracy(compressor(best(share * full)), data.test)
                    lost[label, target, share].append(100 * (dense - reached))
                    if (label, target, share) == ("compress", "macs", 0.3):
                        cut, recovered = nvit(model, data, share * full, seed, tuned)
                        lead.append(100 * (reached - recovered))
                        print(f"{name} {seed}: NViT at 30 % of the MACs {cut:.1%} as cut, {recovered:.1%} fine-tuned")
        row = "  ".join(f"{share:.0%} {lost['compress', 'macs', share][-1]:+.1f}" for share in shares)
        on_cpu = "  ".join(f"{share:.0%} {lost['compress', 'cpu', share][-1]:+.1f}" for share in (0.6, 0.45))
        print(f"{name} {seed}: dense {dense:.1%}; lost at  {row}  of the MACs;  {on_cpu}  of this CPU's ms", flush=True)
    print_table(name, lost, shares, seeds)
    for share in shares:
        print_goal(
            f"{name}-points-lost-at-{share:.0%}".rstrip("%"),
            float(np.mean(lost["compress", "macs", share])),
            GOALS[share],
            at_least=False,
        )
    if lead:
        print_goal(f"{name}-points-over-nvit-at-30", float(np.mean(lead)), 8, at_least=True)


def print_table(
    name: str, lost: dict[tuple[str, str, float], list[float]], shares: tuple[float, ...], seeds: int
) -> None:
    """Means over the seeds, with the worst seed."""
    print(f"{name}, points lost, mean of {seeds} seeds (worst)")
    print(f"{'':22}" + "".join(f"{share:>14.0%}" for share in shares))
    for label in dict.fromkeys(label for label, _, _ in lost):
        cells = [lost.get((label, "macs", share)) for share in shares]
        print(f"{label:22}" + "".join(f"{np.mean(c):7.2f} ({max(c):4.1f})" if c else " " * 14 for c in cells))
    for share in (0.6, 0.45):
        points = lost["compress", "cpu", share]
        print(f"compress, {share:.0%} of this CPU's ms: {np.mean(points):.2f} ({max(points):.1f})")


if __name__ == "__main__":
    main()
