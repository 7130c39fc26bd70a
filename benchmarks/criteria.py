"""Which saliency criterion keeps the most accuracy at the same budget?

    $ python benchmarks/criteria.py [--quick] [--seeds 3] [--data gratings,digits] [--workers 2] [--keep FOLDER]

One model trained per seed (EMB 96, 6 blocks; see compress.py), cut to shares of the analytic target `macs` (free of
noise) and of this CPU's estimated latency by every criterion and NViT's greedy ranking, in two bases and two ways, then
the same fine-tune without a teacher:

    basis       as trained (plain), or re-parametrised without changing the function (rotated: `vitfit rebase`)
    one-shot    scored and cut once
    iterative   in rounds with training in between; the fine-tune is shorter by as many steps

All see 512 calibration images a score (anew every round), and train as many steps in all. Nothing is refitted:
that is `vitfit compress` (benchmarks/compress.py), which also has the certified frontier in the ranking's place. Goals
compare the best of ours (gates, fisher, taylor-abs, in any basis and way, chosen by its mean over the seeds) with
magnitude and with NViT's square of the sum as people would use them: in the plain basis, in whichever of one shot and
rounds is better by the same measure.
"""

import argparse
import copy
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import add_keep, cpu_table, kept, print_goal, print_machine
from compress import TASKS as COMPRESS_TASKS
from compress import trained

from api.compress import in_its_basis
from api.compress_job import calibration_of
from api.prune_run import Recovery
from api.workflow import calibration
from latency.analytic import MacsModel
from latency.estimate import LatencyModel, estimate
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy, finetune
from recovery.losses import cross_entropy
from search.criteria import CRITERIA, compute_saliency
from search.greedy import greedy_choice
from search.prune import prune
from search.saliency import Saliency
from search.schedule import Schedule
from vit.model import VisionTransformer

TASKS = {name: COMPRESS_TASKS[name] for name in ("gratings", "digits")}
BUDGETS = (("macs", 0.75), ("macs", 0.5), ("macs", 0.3), ("cpu", 0.6), ("cpu", 0.45))
BASES = ("plain", "rotated")
WAYS = ("one-shot", "iterative")
OURS = ("gates", "fisher", "taylor-abs")
SCHEDULE = Schedule(rounds=5, interval=6)
TUNED = 50
BATCHES = 8
"""Training steps after the dense model: of the fine-tune, or of the rounds and the fine-tune together."""


class Cell(NamedTuple):
    target: str
    share: float
    basis: str
    way: str
    criterion: str


class Result(NamedTuple):
    """Accuracy as cut (iterative: trained between rounds, not after the last), and fine-tuned."""

    cut: float
    tuned: float


def tuned(model: VisionTransformer, data: Dataset, steps: int, seed: int) -> VisionTransformer:
    model = copy.deepcopy(model)
    recipe = Recipe(steps=steps, lr=5e-4, warmup=steps // 5, distillation=0.0, seed=seed + 5, report_every=steps)
    for _ in finetune(model, data, recipe):
        pass
    return model


def cells(
    task: str, seed: int, latencies: dict[str, LatencyModel], quick: bool, budgets: tuple[tuple[str, float], ...]
) -> Iterator[tuple[Cell, Result]]:
    """All of one trained model; first of them the uncut model itself."""
    arch, constraints = TASKS[task].arch, TASKS[task].constraints
    data = load_dataset(TASKS[task].data.format(seed=seed))
    dense = trained(TASKS[task], data, seed, 20 if quick else None)
    right = accuracy(dense, data.test)
    yield Cell("", 1.0, "", "", "dense"), Result(right, right)
    rotated = in_its_basis(dense, calibration_of(data, 1024, 64, seed)).model
    schedule = Schedule(2, 1) if quick else SCHEDULE
    after = 3 if quick else TUNED
    for basis, start in (("plain", dense), ("rotated", rotated)):
        for criterion in CRITERIA:

            def score(model: VisionTransformer, index: int, criterion: str = criterion) -> Saliency:
                images = calibration(data, BATCHES, 64, 1000 * seed + index)
                return compute_saliency(model, images, criterion, cross_entropy)

            first = score(start, 0)

            def again(model: VisionTransformer, index: int, first: Saliency = first, score: object = score) -> Saliency:
                return first if index == 0 else score(model, index)  # type: ignore[operator,no-any-return]

            for target, share in budgets:
                latency = latencies[target]
                for way in WAYS:
                    rounds = schedule if way == "iterative" else Schedule()
                    between = Recipe(steps=1, lr=3e-4, schedule="constant", warmup=0, distillation=0.0, seed=seed)
                    *_, step = prune(
                        start,
                        again,
                        latency,
                        share * estimate(latency, arch).latency_ms,
                        select=greedy_choice,
                        schedule=rounds,
                        constraints=constraints,
                        recover=Recovery(data, rounds, between, dense),
                    )
                    left = after - rounds.interval * (rounds.rounds - 1)
                    small = tuned(step.model, data, left, seed)
                    found = Result(accuracy(step.model, data.test), accuracy(small, data.test))
                    yield Cell(target, share, basis, way, criterion), found


def one(
    latencies: dict[str, dict[str, LatencyModel]],
    quick: bool,
    budgets: tuple[tuple[str, float], ...],
    keep: Path | None,
    job: tuple[str, int],
) -> tuple[str, int, dict[Cell, Result]]:
    torch.set_num_threads(1)
    task, seed = job
    rows = kept(keep, f"{task}-{seed}", lambda: list(cells(task, seed, latencies[task], quick, budgets)))
    return task, seed, {Cell(*cell): Result(*result) for cell, result in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--each", action="store_true", help="print every result as it comes, too")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    add_keep(parser)
    options = parser.parse_args()
    tasks = ["gratings"] if options.quick else options.data.split(",")
    seeds = 1 if options.quick else options.seeds
    budgets = (BUDGETS[2],) if options.quick else BUDGETS

    torch.set_num_threads(1)
    print_machine("torch", "timm")
    print(f"seeds 0 to {seeds - 1}, {TUNED} steps of pruning and fine-tuning, {SCHEDULE}")
    latencies: dict[str, dict[str, LatencyModel]] = {}
    for task in tasks:
        arch = TASKS[task].arch
        latencies[task] = {"macs": MacsModel(arch)}
        if any(target == "cpu" for target, _ in budgets):
            latencies[task]["cpu"] = cpu_table(arch, options.keep, f"table-{task}", rounds=3)
    found: dict[str, dict[Cell, list[Result]]] = {task: defaultdict(list) for task in tasks}
    jobs = [(task, seed) for seed in range(seeds) for task in tasks]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for task, seed, results in pool.map(partial(one, latencies, options.quick, budgets, options.keep), jobs):
            for cell, result in results.items():
                found[task][cell].append(result)
            print(f"{task} {seed}: dense {results[Cell('', 1.0, '', '', 'dense')].cut:.1%}", flush=True)
            if options.each:
                for cell, result in results.items():
                    print(f"{task} {seed}: {' '.join(map(str, cell))} {result.cut:.4f} {result.tuned:.4f}", flush=True)
    for task in tasks:
        report(task, found[task], budgets)


def each(results: list[Result], stage: str) -> str:
    values = [100 * getattr(result, stage) for result in results]
    return f"{np.mean(values):5.1f} [{' '.join(f'{value:.1f}' for value in values)}]"


def mean_of(results: list[Result], stage: str) -> float:
    return 100 * float(np.mean([getattr(result, stage) for result in results]))


def report(task: str, found: dict[Cell, list[Result]], budgets: tuple[tuple[str, float], ...]) -> None:
    print(f"{task}: accuracy in percent, mean [every seed], as cut | fine-tuned")
    for target, share in budgets:
        for basis in BASES:
            for way in WAYS:
                for criterion in CRITERIA:
                    results = found[Cell(target, share, basis, way, criterion)]
                    print(
                        f"{task} {share:4.0%} {target:4}  {basis:7}  {way:9}  {criterion:10}  "
                        f"{each(results, 'cut'):28} | {each(results, 'tuned')}"
                    )
        for stage in Result._fields:
            own = max(
                (Cell(target, share, basis, way, criterion) for basis in BASES for way in WAYS for criterion in OURS),
                key=lambda cell: mean_of(found[cell], stage),
            )
            for other in ("magnitude", "nvit"):
                theirs = max(
                    (Cell(target, share, "plain", way, other) for way in WAYS),
                    key=lambda cell: mean_of(found[cell], stage),
                )
                pairs = zip(found[own], found[theirs], strict=True)
                lead = [100 * (getattr(a, stage) - getattr(b, stage)) for a, b in pairs]
                print(
                    f"{task} {share:4.0%} {target:4}  {stage:5}  {own.basis} {own.way} {own.criterion} over {other} "
                    f"({theirs.way}): {np.mean(lead):.1f} [{' '.join(f'{points:.1f}' for points in lead)}] points"
                )
                if (target, share, stage) == ("macs", 0.3, "tuned"):
                    bound = {"magnitude": 12, "nvit": 5}[other]
                    print_goal(f"{task}-points-over-{other}-at-30", float(np.mean(lead)), bound, at_least=True)


if __name__ == "__main__":
    main()
