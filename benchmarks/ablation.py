"""What do head alignment, awareness of latency, a narrower EMB and the size of groups bring, at the same latency?

    $ python benchmarks/ablation.py [--quick] [--seeds 3] [--data gratings,digits] [--workers 2] [--keep FOLDER]

A model a seed (EMB 96, 3 heads of 32, 6 blocks) is pruned to shares of its latency on this CPU (batch 64, one thread)
and fine-tuned; every variant trains as many steps. All are chosen to the same latency on one table; what they take is
measured in one interleaved run at the end and printed as a ratio to the first variant's.

NViT in rounds with training in between (criterion nvit, greedy, η found):
    nvit         QK, V, MLP and EMB in steps of 8
    macs         saliency against MACs in place of latency, down to the same latency
    whole-emb    EMB stays as it is
    steps-of-1   units of their own; heads whole, as always
    steps-of-16  groups of 16

Head alignment, in one shot, so that only the choice differs (criterion nvit, steps of 8):
    shared       all heads of a block keep the same QK and V channels: NViT's alignment
    own          each head keeps its own, all of a block as many: the same sizes, so the same latency
    free         channels of all heads of a block compete; heads are as wide as the widest of them, which is what a
                 batched product takes, and the budget is met by cutting deeper
"""

import argparse
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_keep, cpu_table, kept, print_machine
from compress import trained
from criteria import SCHEDULE, TUNED, tuned
from criteria import TASKS as CRITERIA_TASKS
from torch import Tensor

from api.profiling import measure
from api.prune_run import Recovery
from api.workflow import calibration
from latency.analytic import MacsModel
from latency.estimate import LatencyModel, estimate
from latency.runtimes import find_device
from latency.table import LatencyTable
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy
from recovery.losses import cross_entropy
from search.constraints import WHOLE, Constraints
from search.criteria import compute_saliency
from search.errors import BudgetError
from search.frontier import Choice
from search.gradients import visit_gradients
from search.greedy import greedy_choice
from search.prune import Select, prune
from search.saliency import Saliency
from search.schedule import Schedule
from vit.architecture import SIZE_FIELD, Architecture, BlockShape, Unit
from vit.groups import Group, Keep, Part, parts, resize
from vit.model import VisionTransformer
from vit.surgery import shrink, view

BLOCKS = (BlockShape(3, 32, 32, 384),) * 6
TASKS = {name: replace(task, arch=task.arch.replace(blocks=BLOCKS)) for name, task in CRITERIA_TASKS.items()}
SHARES = (0.6, 0.45)
CHANNELS = (Unit.EMBED, Unit.QK, Unit.V, Unit.MLP)


def in_steps_of(step: int) -> Constraints:
    return Constraints(multiples=dict.fromkeys(CHANNELS, step))


def by_macs(
    saliency: Saliency, latency: LatencyModel, budget_ms: float, constraints: Constraints | None = None
) -> Choice:
    """The greedy choice on the target `macs` with the most MACs that meets a budget of milliseconds."""
    macs = MacsModel(saliency.arch)
    lows = {unit: latency.bounds[name][0] for unit, name in SIZE_FIELD.items()}  # MACs know no smallest size
    constraints = replace(constraints or Constraints(), minimum=lows)
    low, high = 0.0, estimate(macs, saliency.arch).latency_ms
    best = None
    for _ in range(20):
        middle = (low + high) / 2
        try:
            choice = greedy_choice(saliency, macs, middle, constraints)
        except BudgetError:
            low = middle
            continue
        if estimate(latency, choice.arch).latency_ms <= budget_ms:
            low, best = middle, choice
        else:
            high = middle
    if best is None:
        return greedy_choice(saliency, latency, budget_ms, constraints)  # says what is out of reach
    return Choice(best.arch, estimate(latency, best.arch).latency_ms, budget_ms, best.kept, None)


@dataclass(frozen=True)
class Variant:
    constraints: Constraints
    select: Select = greedy_choice


IN_ROUNDS = {
    "nvit": Variant(in_steps_of(8)),
    "macs": Variant(in_steps_of(8), by_macs),
    "whole-emb": Variant(Constraints(multiples=dict.fromkeys(CHANNELS, 8), fix_embed_dim=WHOLE)),
    "steps-of-1": Variant(in_steps_of(1)),
    "steps-of-16": Variant(in_steps_of(16)),
}
ALIGNMENT = ("shared", "own", "free")


def in_rounds(
    variant: Variant, dense: VisionTransformer, data: Dataset, table: LatencyModel, share: float, seed: int, quick: bool
) -> VisionTransformer:
    def score(left: VisionTransformer, index: int) -> Saliency:
        return compute_saliency(left, calibration(data, 16, 64, 1000 * seed + index), "nvit", cross_entropy)

    schedule = Schedule(2, 1) if quick else SCHEDULE
    between = Recipe(steps=1, lr=3e-4, schedule="constant", warmup=0, distillation=0.5, temperature=3.0, seed=seed)
    *_, step = prune(
        dense,
        score,
        table,
        share * estimate(table, dense.arch).latency_ms,
        select=variant.select,
        schedule=schedule,
        constraints=variant.constraints,
        recover=Recovery(data, schedule, between, dense),
    )
    return tuned(step.model, data, 3 if quick else TUNED - schedule.interval * (schedule.rounds - 1), seed)


# --- head by head ------------------------------------------------------------------------------------------------

ByHead = dict[Group, Tensor]
"""QK and V of every block -> (heads, channels)."""


def scores_by_head(model: VisionTransformer, data: Dataset, seed: int) -> ByHead:
    """NViT's criterion with each head's channels as units of their own."""
    total: ByHead = {}
    of_heads = [(part, *_head_axes(part)) for part in parts(model.arch) if _channels(part) is not None]
    batches = 16
    for images, labels in calibration(data, batches, 64, 1000 * seed):
        sums: ByHead = {}

        def visit(name: str, weight: Tensor, gradient: Tensor, sums: ByHead = sums) -> None:
            for part, channels, axes in of_heads:
                if part.parameter == name:
                    products = view(part, {name: weight * gradient}).movedim(axes, (0, 1))
                    by_head = products.reshape(*products.shape[:2], -1).sum(dim=2)
                    sums[channels] = sums.get(channels, 0.0) + by_head

        visit_gradients(model, images, labels, cross_entropy, visit)
        for group, summed in sums.items():
            total[group] = total.get(group, 0.0) + summed.square() / batches
    return total


def _channels(part: Part) -> Group | None:
    """QK or V, where a part has one of them for every head (norms of qk-norm are all heads' together)."""
    if not any(group is not None and group.unit is Unit.HEAD for group in part.axes):
        return None
    return next((group for group in part.axes if group is not None and group.unit in (Unit.QK, Unit.V)), None)


def _head_axes(part: Part) -> tuple[Group, tuple[int, int]]:
    channels = _channels(part)
    assert channels is not None
    return channels, (part.axes.index(Group(Unit.HEAD, channels.block)), part.axes.index(channels))


@torch.no_grad()
def sorted_by_head(
    model: VisionTransformer, scores: ByHead, widths: Mapping[Group, Tensor] | None
) -> VisionTransformer:
    """The same function with each head's channels from its most salient to its least; beyond `widths` zero."""
    model = shrink(model, Keep.of(model.arch, {}))
    state = model.state_dict()
    for part in parts(model.arch):
        if _channels(part) is None:
            continue
        channels, axes = _head_axes(part)
        moved = view(part, state).movedim(axes, (0, 1))
        order = scores[channels].argsort(dim=1, descending=True, stable=True)
        ordered = torch.stack([head[index] for head, index in zip(moved, order, strict=True)])
        if widths is not None:
            for head, width in enumerate(widths[channels].tolist()):
                ordered[head, width:] = 0
        moved.copy_(ordered)
    model.load_state_dict(state)
    return model


def aligned(
    how: str, dense: VisionTransformer, data: Dataset, table: LatencyModel, share: float, seed: int
) -> VisionTransformer:
    """Cut in one shot to the same latency, with the channels of heads chosen in one of three ways."""
    saliency = compute_saliency(dense, calibration(data, 16, 64, 1000 * seed), "nvit", cross_entropy)
    budget_ms = share * estimate(table, dense.arch).latency_ms
    constraints = in_steps_of(8)
    if how == "shared":
        return shrink(dense, saliency.keep(greedy_choice(saliency, table, budget_ms, constraints).sizes()))
    scores = scores_by_head(dense, data, seed)
    ranks = {  # of rank r: what all heads lose with their r-th channels
        group: by_head.sort(dim=1, descending=True).values.sum(dim=0).numpy() for group, by_head in scores.items()
    }
    by_rank = Saliency(dense.arch, {**saliency.values, **ranks}, "nvit", "", "", 0)
    if how == "own":
        sizes = greedy_choice(by_rank, table, budget_ms, constraints).sizes()
        return shrink(sorted_by_head(dense, scores, None), by_rank.keep(sizes))
    low, high, best = 0.0, budget_ms, None
    for _ in range(12):
        middle = (low + high) / 2
        try:
            sizes = greedy_choice(by_rank, table, middle, constraints).sizes()
        except BudgetError:
            low = middle
            continue
        widths = {group: _competing(by_head, sizes[group]) for group, by_head in scores.items()}
        padded = sizes | {group: -(-int(width.max()) // 8) * 8 for group, width in widths.items()}
        if estimate(table, resize(dense.arch, padded)).latency_ms <= budget_ms:
            low, best = middle, (padded, widths)
        else:
            high = middle
    assert best is not None, "no budget is deep enough"
    return shrink(sorted_by_head(dense, scores, best[1]), by_rank.keep(best[0]))


def _competing(by_head: Tensor, mean_width: int) -> Tensor:
    """Channels that each head keeps when the best of all heads stay, as many as `mean_width` a head; at least one."""
    chosen = torch.zeros(by_head.numel(), dtype=torch.bool)
    chosen[by_head.flatten().argsort(descending=True)[: mean_width * len(by_head)]] = True
    return chosen.view_as(by_head).sum(dim=1).clamp_min(1)


# --- runs --------------------------------------------------------------------------------------------------------

Found = dict[tuple[str, float], tuple[Architecture, float]]


def one(
    tables: dict[str, LatencyTable], quick: bool, keep: Path | None, job: tuple[str, int]
) -> tuple[str, int, float, Found]:
    torch.set_num_threads(1)
    task, seed = job
    first, *rows = kept(keep, f"{task}-{seed}", lambda: list(_variants(task, seed, tables[task], quick)))
    found = {(name, share): (Architecture.from_dict(arch), right) for name, share, arch, right in rows}
    return task, seed, first[-1], found


def _variants(
    task: str, seed: int, table: LatencyTable, quick: bool
) -> Iterator[tuple[str, float, dict[str, Any], float]]:
    """Name, share of the latency, architecture and accuracy; first of the dense model."""
    data = load_dataset(TASKS[task].data.format(seed=seed))
    dense = trained(TASKS[task], data, seed, 20 if quick else None)
    yield "dense", 1.0, dense.arch.to_dict(), accuracy(dense, data.test)
    for share in SHARES[-1:] if quick else SHARES:
        for name, variant in IN_ROUNDS.items():
            small = in_rounds(variant, dense, data, table, share, seed, quick)
            yield name, share, small.arch.to_dict(), accuracy(small, data.test)
        for how in ALIGNMENT:
            small = tuned(aligned(how, dense, data, table, share, seed), data, 3 if quick else TUNED, seed)
            yield how, share, small.arch.to_dict(), accuracy(small, data.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    add_keep(parser)
    options = parser.parse_args()
    tasks = ["gratings"] if options.quick else options.data.split(",")
    seeds = 1 if options.quick else options.seeds
    torch.set_num_threads(1)
    print_machine("torch", "timm")
    print(f"seeds 0 to {seeds - 1}, {TUNED} steps of pruning and fine-tuning, {SCHEDULE}")
    tables: dict[str, LatencyTable] = {}
    for task in tasks:
        rounds = 1 if options.quick else 3
        tables[task] = cpu_table(TASKS[task].arch, options.keep, f"table-{task}", rounds=rounds)
    jobs = [(task, seed) for seed in range(seeds) for task in tasks]
    found: dict[str, list[Found]] = defaultdict(list)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for task, seed, dense, results in pool.map(partial(one, tables, options.quick, options.keep), jobs):
            found[task].append(results)
            print(f"{task} {seed}: dense {dense:.1%}", flush=True)
    for task in tasks:
        report(task, found[task], tables[task], 1 if options.quick else 9)


def report(task: str, found: list[Found], table: LatencyTable, rounds: int) -> None:
    archs = [arch for results in found for arch, _ in results.values()]
    measured = measure(archs, find_device(), table.target, rounds=rounds)
    ms = iter([m.latency_ms for m in measured])
    timed = [{key: next(ms) for key in results} for results in found]
    print(f"{task}: share of the latency, variant, points of accuracy over the first of its kind: mean [every seed];")
    print("    accuracy in percent, mean; measured ms over the first variant's, mean")
    for share in dict.fromkeys(share for _, share in found[0]):
        for names in (list(IN_ROUNDS), list(ALIGNMENT)):
            first = (names[0], share)
            for name in names:
                key = (name, share)
                lead = [100 * (results[key][1] - results[first][1]) for results in found]
                over = np.mean([times[key] / times[first] for times in timed])
                mean = np.mean([100 * results[key][1] for results in found])
                each = " ".join(f"{points:+.1f}" for points in lead)
                print(f"{task} {share:.0%}  {name:11}  {np.mean(lead):+.2f} [{each}]  {mean:.1f}  {over:.3f}")


if __name__ == "__main__":
    main()
