"""From scratch and at equal latency, does a redistributed shape learn more than DeiT's?

    $ python benchmarks/revit.py [--quick] [--seeds 5] [--data gratings,digits] [--steps 300] [--json FILE]
        [--keep FOLDER]

Models of 12 blocks, trained from scratch by one recipe, on equal batches in equal order, all with the latency of
NVIDIA's ReViT of EMB 104, its narrowest (a table of this CPU, batch 64, one thread; nothing else decides):

    deit       EMB/64 heads, QK and V 64, MLP 4 EMB, all blocks alike
    nvidia     ReViT as released: ten heads at both ends
    poster     ReViT as the formula is printed: no block apart
    learned    what `vitfit compress` leaves of models of other seeds and both tasks at 60, 45 and 30 % of their
               latency, as `search.trends` reads it: trends with depth and with EMB where they are there, none where not
    random     every size of every block by a factor between 1/2 and 2, another draw each seed

All but nvidia take the widest EMB within the budget, in steps of 8, and then as much MLP as it still allows. The figure
is the difference to deit of the same seed, in points of accuracy, with Student's 95 % interval over seeds. (The poster
says +0.2 for S and +1.4 for T, on ImageNet, one run each.)
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import add_keep, cpu_table, kept, print_machine
from scipy.stats import t as student
from torch import nn

from api.compress import in_its_basis, score
from api.compress_job import calibration_of
from api.profiling import measure
from latency.estimate import LatencyModel, estimate
from latency.grid import Grid
from latency.runtimes import find_device
from recovery.data import load_dataset
from recovery.loop import Recipe, accuracy, finetune
from search.constraints import Constraints
from search.errors import BudgetError
from search.frontier import Frontier
from search.profiles import DEIT, NVIDIA, POSTER, SIZES, Profile, SizeRule
from search.redistribute import revit, widths
from search.trends import Trends, from_frontiers, learn
from vit.architecture import Architecture, BlockShape, Unit
from vit.cost import macs, params
from vit.model import VisionTransformer

DEPTH = 12
GRATINGS = Architecture(
    image_size=(24, 24),
    patch_size=(8, 8),
    in_chans=1,
    num_classes=16,
    embed_dim=128,
    blocks=(BlockShape(4, 32, 32, 512),) * DEPTH,
)
"""What rules are learned from; for the others it is the template."""
DIGITS = GRATINGS.replace(image_size=(16, 16), patch_size=(4, 4), num_classes=10)
TASKS = {"gratings": ("gratings:noise=1.2,seed={seed}", GRATINGS), "digits": ("digits", DIGITS)}
GRID = Grid(
    embed_dim=(64, 104, 160, 224),
    num_heads=(1, 2, 4, 10),
    qk_dim=(4, 16, 32, 64),
    v_dim=(4, 32, 64),
    mlp_dim=(16, 256, 640, 1400, 4096),
)
SHARES = (0.6, 0.45, 0.3)
LEARNED_FROM = (100, 101, 102)
"""Seeds that are not among those compared."""
IN_STEPS = Constraints(
    multiples={Unit.EMBED: 8, Unit.QK: 4, Unit.V: 4, Unit.MLP: 16}, minimum={Unit.EMBED: 64, Unit.MLP: 16}
)
BATCH, IMAGES = 32, 512
CONTENDERS = ("deit", "nvidia", "poster", "learned", "random")


class Result(NamedTuple):
    arch: Architecture
    latency_ms: float
    accuracy: float


def random_profile(seed: int) -> Profile:
    rng = np.random.default_rng(seed)
    eps = {size: tuple(np.exp(rng.uniform(np.log(0.5), np.log(2), DEPTH)).tolist()) for size in SIZES}
    return Profile(
        "random",
        num_heads=SizeRule(2, power=0.0, eps=eps["num_heads"]),
        qk_dim=SizeRule(32, power=0.0, eps=eps["qk_dim"], step=4),
        v_dim=SizeRule(32, power=0.0, eps=eps["v_dim"], step=4),
        mlp_dim=SizeRule(3, eps=eps["mlp_dim"], step=8),
    )


def filled(profile: Profile, latency: LatencyModel, budget_ms: float, template: Architecture) -> Architecture:
    """The widest of a profile within the budget, with as much more MLP as it still allows."""
    fitting = [arch for arch, (ms,) in widths([latency], template, DEPTH, profile) if ms <= budget_ms]
    if not fitting:
        raise BudgetError(f"no width of {profile.name} runs in {budget_ms:.4g}")
    arch, low, high = fitting[-1], 1.0, 3.0
    most = latency.bounds["mlp_dim"][1]
    for _ in range(40):
        factor = (low + high) / 2
        blocks = tuple(replace(b, mlp_dim=int(b.mlp_dim * factor)) for b in fitting[-1].blocks)
        wider = fitting[-1].replace(blocks=blocks)
        within = max(b.mlp_dim for b in blocks) <= most and estimate(latency, wider).latency_ms <= budget_ms
        arch, low, high = (wider, factor, high) if within else (arch, low, factor)
    return arch


def contender(name: str, learned: Profile, latency: LatencyModel, template: Architecture, seed: int) -> Architecture:
    nvidia = revit(NVIDIA.least_embed_dim(DEPTH) // 8 * 8 + 8, template, DEPTH)
    if name == "nvidia":
        return nvidia
    profiles = {"deit": DEIT, "poster": POSTER, "learned": learned, "random": random_profile(seed)}
    return filled(profiles[name], latency, estimate(latency, nvidia).latency_ms, template)


def trained(arch: Architecture, data_name: str, seed: int, steps: int) -> tuple[VisionTransformer, float]:
    """From PyTorch's own initialisation: wider than DeiT's, learns these few images in fewer steps."""
    torch.manual_seed(seed)
    model = VisionTransformer(arch)
    nn.init.normal_(model.pos_embed, std=0.02)
    data = load_dataset(data_name.format(seed=seed))
    recipe = Recipe(
        steps=steps, batch_size=BATCH, lr=1e-3, warmup=steps // 10, distillation=0.0, seed=seed, report_every=steps
    )
    for _ in finetune(model, data, recipe):
        pass
    return model, accuracy(model, data.test)


def pruned(
    latencies: dict[str, LatencyModel], steps: int, keep: Path | None, job: tuple[str, int]
) -> list[Architecture]:
    """What compress leaves of one model at every share."""
    torch.set_num_threads(1)
    task, seed = job

    def make() -> list[dict[str, Any]]:
        return [arch.to_dict() for arch in shapes(latencies, steps, task, seed)]

    return [Architecture.from_dict(arch) for arch in kept(keep, f"pruned-{task}-{seed}", make)]


def shapes(latencies: dict[str, LatencyModel], steps: int, task: str, seed: int) -> list[Architecture]:
    name, arch = TASKS[task]
    model, _ = trained(arch, name, seed, steps)
    given = calibration_of(load_dataset(name.format(seed=seed)), IMAGES, 64, seed)
    saliency = score(in_its_basis(model, given).model, given)
    (group,) = from_frontiers([Frontier(saliency, latencies[task], IN_STEPS)], SHARES)
    return group


def compared(
    latencies: dict[str, LatencyModel], learned: Profile, steps: int, keep: Path | None, job: tuple[str, int]
) -> tuple[str, int, dict[str, Result]]:
    torch.set_num_threads(1)
    task, seed = job
    name, template = TASKS[task]

    def make() -> dict[str, Any]:
        found = {}
        for who in CONTENDERS:
            arch = contender(who, learned, latencies[task], template, seed)
            _, right = trained(arch, name, seed, steps)
            found[who] = (arch.to_dict(), estimate(latencies[task], arch).latency_ms, right)
        return found

    rows = kept(keep, f"{task}-{seed}", make).items()
    return task, seed, {who: Result(Architecture.from_dict(arch), ms, right) for who, (arch, ms, right) in rows}


# --- report ------------------------------------------------------------------------------------------------------


def interval(differences: list[float]) -> str:
    """Mean and Student's 95 % interval."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return f"{mean:+.2f} (one seed: no interval)"
    half = float(student.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def report(task: str, found: list[dict[str, Result]], latency: LatencyModel, learned: Profile, rounds: int) -> None:
    measured = measure([one.arch for one in found[0].values()], find_device(), latency.target, rounds=rounds)
    print(f"\n{task}: {len(found)} seeds, {len(found[0])} shapes at {found[0]['nvidia'].latency_ms:.3f} ms a batch")
    head = ("shape", "EMB", "ms estimated", "measured (seed 0)", "params M", "MACs M", "accuracy % [range]", "to deit")
    print(" | ".join(head))
    for index, who in enumerate(CONTENDERS):
        results = [one[who] for one in found]
        right = [100 * one.accuracy for one in results]
        differences = [100 * (one[who].accuracy - one["deit"].accuracy) for one in found]
        arch = results[0].arch
        ms = [one.latency_ms for one in results]
        cells = (
            who,
            f"{arch.embed_dim}",
            f"{min(ms):.3f} to {max(ms):.3f}",
            f"{measured[index].latency_ms:.3f} ± {measured[index].iqr_ms:.3f}",
            f"{params(arch) / 1e6:.2f}",
            f"{macs(arch) / 1e6:.1f}",
            f"{np.mean(right):.2f} [{min(right):.2f}, {max(right):.2f}]",
            "" if who == "deit" else interval(differences),
        )
        print(" | ".join(cells))
    budget_ms = found[0]["nvidia"].latency_ms
    for who in CONTENDERS:
        least = min(one[who].latency_ms for one in found)
        if least < 0.99 * budget_ms:
            print(f"{who} is not at equal latency: it takes {least / budget_ms:.1%}, the table covers no larger one")
    if (note := learned.note(found[0]["learned"].arch.embed_dim)) is not None:
        print(note)


def print_trends(trends: Trends) -> None:
    print(f"learned: {trends.sentence()}")
    for size in SIZES:
        depth, width = trends.depth[size], trends.width[size]
        eps = " ".join(f"{one:.2f}" for one in depth.eps)
        power = "unknown" if width.interval is None else f"{width.interval[0]:.2f} to {width.interval[1]:.2f}"
        p = "unknown" if depth.p is None else f"{depth.p:.3g}"
        print(f"  {size:9} eps {eps} (p {p}); power of EMB {width.power:.2f} ({power})")


def document(trends: Trends, learned: Profile, by_task: dict[str, list[dict[str, Result]]]) -> dict[str, object]:
    return {
        "trends": trends.to_dict(),
        "profile": learned.to_dict(),
        "accuracy": {
            task: {who: [one[who].accuracy for one in found] for who in CONTENDERS} for task, found in by_task.items()
        },
        "architectures": {
            task: {who: found[0][who].arch.to_dict() for who in CONTENDERS} for task, found in by_task.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: figures mean nothing")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--steps", type=int, default=300, help="training steps of every model")
    parser.add_argument("--workers", type=int, default=1)
    add_keep(parser)
    parser.add_argument("--json", type=Path, help="write trends, the learned profile and accuracies here")
    options = parser.parse_args()
    tasks = ["gratings"] if options.quick else options.data.split(",")
    seeds, steps = (1, 6) if options.quick else (options.seeds, options.steps)
    learned_from = LEARNED_FROM[:2] if options.quick else LEARNED_FROM

    torch.set_num_threads(1)
    print_machine("torch", "timm")
    print(f"seeds 0 to {seeds - 1}, {steps} steps of {BATCH} images; rules learned from seeds {learned_from}")
    points, rounds = (40, 1) if options.quick else (100, 3)
    latencies: dict[str, LatencyModel] = {
        task: cpu_table(TASKS[task][1], options.keep, f"table-{task}", grid=GRID, points=points, rounds=rounds)
        for task in tasks
    }
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [(task, seed) for task in tasks for seed in learned_from]
        groups = list(pool.map(partial(pruned, latencies, steps, options.keep), jobs))
        trends = learn(groups, source=f"compress on {' and '.join(tasks)}")
        learned = trends.profile("learned")
        print_trends(trends)
        by_task: dict[str, list[dict[str, Result]]] = {task: [] for task in tasks}
        jobs = [(task, seed) for seed in range(seeds) for task in tasks]
        for task, seed, found in pool.map(partial(compared, latencies, learned, steps, options.keep), jobs):
            by_task[task].append(found)
            print(f"{task} {seed}: " + ", ".join(f"{who} {one.accuracy:.1%}" for who, one in found.items()), flush=True)
            if options.json and all(by_task.values()):
                text = json.dumps(document(trends, learned, by_task), indent=1)
                options.json.write_text(text + "\n", encoding="utf-8")
    for task in tasks:
        report(task, by_task[task], latencies[task], learned, 3 if options.quick else 9)


if __name__ == "__main__":
    main()
