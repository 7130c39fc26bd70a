"""Which saliency criterion keeps the most accuracy at the same budget?

    $ python benchmarks/criteria.py [--quick]

Gratings (16 classes, noise 1.2), one model trained per seed, cut in one shot to a share of the analytic target `macs`
(free of noise) and of this CPU's estimated latency, then the same short fine-tune without a teacher for all. Two ways
to choose the sizes: the certified frontier, and NViT's greedy ranking.
"""

import argparse
import copy
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from common import print_goal, print_machine

from api.workflow import calibration, profile_plan, run_profile
from latency.analytic import MacsModel
from latency.estimate import LatencyModel, estimate
from latency.runtimes import find_device
from latency.storage import load_table
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy, finetune
from recovery.losses import cross_entropy
from search.constraints import Constraints
from search.criteria import CRITERIA
from search.prune import SELECTIONS, prune
from vit.architecture import Architecture, BlockShape, Unit
from vit.model import VisionTransformer, initialise

ARCH = Architecture(
    image_size=(24, 24),
    patch_size=(6, 6),
    in_chans=1,
    num_classes=16,
    embed_dim=96,
    blocks=(BlockShape(4, 24, 24, 192),) * 6,
)
IN_STEPS = Constraints(multiples={Unit.QK: 4, Unit.V: 4})


def trained(data: Dataset, seed: int, steps: int) -> VisionTransformer:
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(seed))
    recipe = Recipe(steps=steps, lr=1e-3, warmup=50, distillation=0.0, seed=seed, report_every=steps)
    for _ in finetune(model, data, recipe):
        pass
    return model


def cpu_latency(rounds: int) -> LatencyModel:
    """A table of this CPU for the benchmark's model, batch 64."""
    device = find_device()
    plan = profile_plan(ARCH, device, batch=64, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        for _ in run_profile(plan, device, path):
            pass
        return load_table(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    seeds, steps, tuned = (1, 30, 5) if options.quick else (options.seeds, 500, 30)

    torch.set_num_threads(1)
    print_machine("torch", "timm")
    print(f"seeds 0 to {seeds - 1}, {steps} training steps, {tuned} fine-tuning steps, 16 calibration batches of 64")
    table = cpu_latency(1 if options.quick else 3)
    macs = MacsModel(ARCH)
    budgets = [("macs", macs, 0.5), ("macs", macs, 0.3), ("macs", macs, 0.15), ("cpu", table, 0.5)]
    lead: dict[tuple[str, str, float, str], list[float]] = defaultdict(list)
    print("seed  choice    budget     criterion   kept    cut  fine-tuned")
    for seed in range(seeds):
        data = load_dataset(f"gratings:noise=1.2,seed={seed}")
        dense = trained(data, seed, steps)
        print(f"{seed:4}  dense                                       {accuracy(dense, data.test):10.1%}")
        for selection in SELECTIONS:
            for name, latency, share in budgets:
                after: dict[str, float] = {}
                before: dict[str, float] = {}
                for criterion in CRITERIA:
                    *_, step = prune(
                        dense,
                        lambda index, data=data, seed=seed: calibration(data, 16, 64, 1000 * seed + index),
                        latency,
                        share * estimate(latency, ARCH).latency_ms,
                        criterion=criterion,
                        loss=cross_entropy,
                        select=SELECTIONS[selection],
                        constraints=IN_STEPS,
                    )
                    before[criterion] = accuracy(step.model, data.test)
                    model = copy.deepcopy(step.model)
                    recipe = Recipe(steps=tuned, lr=5e-4, warmup=6, distillation=0.0, seed=seed + 5, report_every=tuned)
                    for _ in finetune(model, data, recipe):
                        pass
                    after[criterion] = accuracy(model, data.test)
                    print(
                        f"{seed:4}  {selection:8}  {share:4.0%} {name:5} {criterion:10} {step.choice.kept:6.1%} "
                        f"{before[criterion]:6.1%}  {after[criterion]:10.1%}",
                        flush=True,
                    )
                for stage, result in (("before", before), ("after", after)):
                    best = max(result["fisher"], result["nvit"])
                    lead[selection, name, share, stage].append(100 * (best - result["magnitude"]))
    print("points of the best criterion over magnitude, seed by seed, before and after the fine-tune")
    for (selection, name, share, stage), points in lead.items():
        print(f"{selection:8}  {share:4.0%} {name:5} {stage:6}  {'  '.join(f'{p:5.1f}' for p in points)}")
    for selection in SELECTIONS:
        worst = min(lead[selection, "macs", 0.3, "after"])
        print_goal(f"points-over-magnitude-at-30-percent-{selection}", worst, 10, at_least=True)


if __name__ == "__main__":
    main()
