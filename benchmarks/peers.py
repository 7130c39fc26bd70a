"""How does compress compare with Torch-Pruning at the same measured latency, with the same fine-tune?

    $ python benchmarks/peers.py [--quick] [--data gratings|digits] [--seeds 3]

One model trained per seed (see compress.py). compress is given 2,048 training images and no labels. Torch-Pruning (Fang
et al., CVPR 2023; PyPI torch-pruning) prunes the same weights in timm's model, with the same images and their labels:

    taylor       GroupTaylorImportance
    taylor-sum   the same, multivariable: products of weights and gradients are summed before the absolute value
    hessian      GroupHessianImportance. Its accumulate_grad of 1.6.1 looks parameters up by name but stores them by
                 tensor, so only the last image would count; it is given the mean over all images that it documents

in six ways each (WAYS in torch_pruning_ways.py): whole heads or channels of heads or both, with the residual stream
cut or left, to multiples of 8 or any sizes, in one shot or in many steps with new gradients (of 512 of the images)
after each. Of these every budget, seed and column takes the best afterwards, by the test accuracy that is reported.

Left out are ways that were tried once (seed 0) and were nowhere the best by more than 0.2 points: the same share of
every layer, the isomorphic ranking (Fang et al., ECCV 2024), the stream cut by half the ratio, other pairs of attention
and stream, multiples of 4, steps without new gradients; and at 40 % of the MACs magnitude, p = 1, scores normalised by
LAMP or not at all. As in its examples, the factor on q·k follows the new size of the heads, which keeps more accuracy
than the old factor. Pruned models are converted as any model of timm's is, so that one implementation runs all of them.

Budgets are of latency measured on this CPU (batch 64, one thread), namely what the answer of compress takes that is
estimated at a share of the latency. Each way's ratio, in whole percent, is looked for in the table of this CPU. Twice
the table's word is corrected by how much longer the models take, relative to compress's, in an interleaved run: the
median of the ways to multiples of 8, and that of the others, as one model's time is too noisy for 1 %. The ratio
nearest to the budget is taken, of those at most 2 % over it (OVER). What a last run says of it is printed.

Both sides are then fine-tuned for 30 steps: with labels, at 5e-4 (the same fine-tune), or towards the uncut model's
outputs, at 2e-5 (`recovery.loop.after_refit`; of Torch-Pruning the best way of each criterion). Goals are of the first.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from common import cpu_table, print_goal, print_machine, spread
from compress import IMAGES, TASKS, Task, trained
from torch_pruning_ways import GRADIENTS, WAYS, Peer, Setting

from api.compress import fit, in_its_basis, score
from api.compress_job import calibration_of
from api.profiling import measure
from latency.estimate import LatencyModel, estimate
from latency.extrapolate import Extrapolated
from latency.runtimes import find_device
from latency.table import LatencyTable
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy, after_refit, finetune
from search.frontier import Frontier
from vit.architecture import Architecture
from vit.cost import macs
from vit.model import VisionTransformer

SHARES = (0.6, 0.45)
OVER = 1.02
OURS_PER_ROUND = 3
"""Times that compress's model is timed in a round: all others are compared with it."""
FAMILIES = {"taylor": ("taylor", "taylor-sum"), "hessian": ("hessian",), "any": tuple(GRADIENTS)}


class Result(NamedTuple):
    """
    Attributes:
        setting: of Torch-Pruning; None: compress.
        macs: share of the whole model's.
        over: measured latency over that of compress's model.
        cut, labels, teacher: accuracy in percent without training, after the same fine-tune, and after that towards
            the uncut model; NaN where that was not done.
    """

    setting: Setting | None
    macs: float
    over: float
    cut: float
    labels: float
    teacher: float = float("nan")

    @property
    def tuned(self) -> float:
        return float(np.nanmax([self.labels, self.teacher]))


def finetuned(small: VisionTransformer, data: Dataset, recipe: Recipe, teacher: VisionTransformer | None) -> float:
    """Accuracy in percent."""
    model = copy.deepcopy(small)
    for _ in finetune(model, data, recipe, teacher):
        pass
    return 100 * accuracy(model, data.test)


def nearest(
    peer: Peer, settings: list[Setting], ours: Architecture, table: LatencyTable, corrections: int, rounds: int
) -> dict[Setting, tuple[int, float]]:
    """Of each way the pruning ratio in percent that is nearest to compress's latency, and measured ms over its."""
    wide = Extrapolated(table)  # they may leave the range in which compress looks
    own = estimate(wide, ours).latency_ms

    def share(setting: Setting, percent: int) -> float:
        """Estimate over that of compress's model."""
        return estimate(wide, peer.arch(setting, percent)).latency_ms / own

    slower = {setting.round_to: 1.0 for setting in settings}  # than estimated, relative to compress's model
    for _ in range(corrections + 1):
        chosen = {}
        for setting in settings:
            around = peer.around(setting, wide, own / slower[setting.round_to])
            allowed = [p for p in around or () if share(setting, p) * slower[setting.round_to] <= OVER]
            if allowed:
                chosen[setting] = max(allowed, key=lambda p: -abs(share(setting, p) * slower[setting.round_to] - 1))
        over = timed(ours, [peer.arch(*pair) for pair in chosen.items()], table, rounds)
        found = [(setting, percent, over) for (setting, percent), over in zip(chosen.items(), over, strict=True)]
        for size in {setting.round_to for setting in chosen}:
            slower[size] = float(np.median([o / share(s, p) for s, p, o in found if s.round_to == size]))
    return {setting: (percent, over) for setting, percent, over in found}


def timed(ours: Architecture, theirs: list[Architecture], table: LatencyTable, rounds: int) -> list[float]:
    """Of one interleaved run, ms over those of compress's model."""
    measured = measure([ours] * OURS_PER_ROUND + theirs, find_device(), table.target, rounds=rounds)
    ms, iqr = [m.latency_ms for m in measured], [100 * m.iqr_ms / m.latency_ms for m in measured]
    own_ms = float(np.mean(ms[:OURS_PER_ROUND]))
    over = [each / own_ms for each in ms[OURS_PER_ROUND:]]
    print(f"  compress {own_ms:.2f} ms, Torch-Pruning {spread(over)} of it; IQR of {rounds} rounds {spread(iqr)} %")
    return over


class Run:
    """One seed: the trained model on both sides."""

    def __init__(self, task: Task, seed: int, *, steps: int | None, tuning: int, images: int) -> None:
        self.data, self.seed, self.tuning = load_dataset(task.data.format(seed=seed)), seed, tuning
        self.dense = trained(task, self.data, seed, steps)
        self.given = calibration_of(self.data, images, 64, seed)
        self.based = in_its_basis(self.dense, self.given)
        self.saliency = score(self.based.model, self.given)
        self.constraints = task.constraints
        labelled = (calibration_of(self.data, count, 64, seed, labels="data") for count in (images, images // 4))
        self.peer = Peer.of(self.dense, *labelled)

    def compressed(self, latency: LatencyModel, share: float) -> VisionTransformer:
        budget_ms = share * estimate(latency, self.dense.arch).latency_ms
        choice = Frontier(self.saliency, latency, self.constraints).best(budget_ms)
        return fit(self.based, self.saliency, choice, self.given).model

    def result(self, model: VisionTransformer, setting: Setting | None, over: float) -> Result:
        recipe = Recipe(steps=self.tuning, lr=5e-4, warmup=6, distillation=0.0, seed=self.seed + 5)
        labels = finetuned(model, self.data, recipe, None)
        share = macs(model.arch) / macs(self.dense.arch)
        return Result(setting, share, over, 100 * accuracy(model, self.data.test), labels)

    def taught(self, model: VisionTransformer, result: Result) -> Result:
        teacher = finetuned(model, self.data, after_refit(self.tuning, self.seed), self.dense)
        return result._replace(teacher=teacher)

    def at(
        self, share: float, table: LatencyTable, settings: list[Setting], corrections: int, rounds: int
    ) -> Iterator[Result]:
        """compress first."""
        small = self.compressed(table, share)
        yield self.taught(small, self.result(small, None, 1.0))
        chosen = nearest(self.peer, settings, small.arch, table, corrections, rounds)
        found = {
            setting: self.result(self.peer.pruned(setting, percent), setting, over)
            for setting, (percent, over) in chosen.items()
        }
        for criterion in GRADIENTS:
            of_it = [result for setting, result in found.items() if setting.criterion == criterion]
            for best in (max(of_it, key=lambda result: result.labels),) if of_it else ():
                assert best.setting is not None
                found[best.setting] = self.taught(self.peer.pruned(best.setting, chosen[best.setting][0]), best)
        yield from found.values()


STAGES: dict[str, tuple[Callable[[Result], float], Callable[[Result], float]]] = {
    "neither trained": (lambda ours: ours.cut, lambda theirs: theirs.cut),
    "same fine-tune": (lambda ours: ours.labels, lambda theirs: theirs.labels),
    "each its own": (lambda ours: ours.teacher, lambda theirs: theirs.tuned),
    "only theirs": (lambda ours: ours.cut, lambda theirs: theirs.tuned),
}
"""What is compared: accuracies of compress and of Torch-Pruning."""


def each(values: list[float]) -> str:
    """Mean, and every seed."""
    return f"{np.mean(values):5.1f} [{' '.join(f'{v:5.1f}' for v in values)}]"


def best_of(results: list[Result], criteria: tuple[str, ...], accuracy_of: Callable[[Result], float]) -> float:
    """NaN where no way came to the budget."""
    found = [accuracy_of(r) for r in results if r.setting is not None and r.setting.criterion in criteria]
    return max(found, default=float("nan"))


def report(results: dict[tuple[float, int], list[Result]], seeds: int, settings: list[Setting]) -> None:
    print("accuracy in percent, mean [every seed that a way came to the budget in]; mean MACs; latency over compress's")
    print("budget  criterion  of heads stream  size steps   MACs   ratio  no training, fine-tuned, towards uncut")
    for share in SHARES:
        for setting in (None, *settings):
            found = [r for seed in range(seeds) for r in results[share, seed] if r.setting == setting]
            name = "compress" if setting is None else str(setting)
            columns = [[r.cut for r in found], [r.labels for r in found], [r.teacher for r in found]]
            shown = "  ".join(each(column) for column in columns) if found else "out of reach"
            means = f"{np.mean([r.macs for r in found]):5.1%}  {np.mean([r.over for r in found]):.3f}" if found else ""
            print(f"{share:4.0%}    {name:35}  {means}  {shown}")
    print("points by which compress leads Torch-Pruning's best way of each seed, mean [every seed]")
    for share in SHARES:
        for stage, (of_ours, of_theirs) in STAGES.items():
            for family, criteria in FAMILIES.items():
                own = [of_ours(results[share, seed][0]) for seed in range(seeds)]
                best = [best_of(results[share, seed][1:], criteria, of_theirs) for seed in range(seeds)]
                lead = [a - b for a, b in zip(own, best, strict=True)]
                print(f"{share:4.0%}  {stage:15}  {family:7}  {each(own)} over {each(best)}: {each(lead)}")
                if stage == "same fine-tune":
                    name = f"seeds-ahead-of-torch-pruning-{family}-at-{share:.0%}".rstrip("%")
                    print_goal(name, sum(points > 0 for points in lead), seeds, at_least=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--data", choices=("gratings", "digits"), default="gratings")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if find_spec("torch_pruning") is None:
        print_machine("torch", "timm")
        print("torch-pruning is not installed; python -m pip install 'vitfit[bench]'")
        return
    print_machine("torch", "timm", "torch-pruning")
    task, quick = TASKS[options.data], options.quick
    seeds, steps, tuning, images = (1, 30, 10, 256) if quick else (options.seeds, None, 30, IMAGES)
    corrections, rounds = (0, 1) if quick else (2, 11)
    settings = [Setting(criterion, *way) for criterion in GRADIENTS for way in (WAYS[:2] if quick else WAYS)]
    print(
        f"{options.data}, seeds 0 to {seeds - 1}, {tuning} fine-tuning steps, {images} calibration images at most, "
        f"medians of {rounds} rounds"
    )
    table = cpu_table(task.arch, rounds=1 if quick else 3)
    assert isinstance(table, LatencyTable)
    results: dict[tuple[float, int], list[Result]] = {}
    for seed in range(seeds):
        run = Run(task, seed, steps=steps, tuning=tuning, images=images)
        print(f"seed {seed}: dense {accuracy(run.dense, run.data.test):.1%}", flush=True)
        for share in SHARES:
            results[share, seed] = list(run.at(share, table, settings, corrections, rounds))
            print(f"seed {seed}, {share:.0%}: {len(results[share, seed]) - 1} ways came to the budget", flush=True)
    report(results, seeds, settings)


if __name__ == "__main__":
    main()
