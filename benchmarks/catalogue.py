"""How long do questions to a catalogue of 100,000 architectures take, on SQLite and on PostgreSQL?

    $ python benchmarks/catalogue.py [--quick] [--count 100000] [--url postgresql://user@host/name]

Architectures of 12 blocks with sizes drawn at random, each with an accuracy (made up, rising with its MACs) on one data
set, in a database of their own: SQLite in a temporary folder, and the PostgreSQL of --url, or one that is started for
this where its programs are installed. Every question is asked 20 times of an open catalogue, by other budgets and
names each time; the figure is the median and range, and the goal is for the slowest question's median.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from common import postgresql, print_goal, print_machine, spread

from api.catalogue import Catalogue
from api.catalogue_values import Accuracy, Entry, Question
from api.db import Database, normal_url
from latency.analytic import MacsModel
from vit.architecture import BlockShape
from vit.cost import macs
from vit.presets import preset

DATA, TARGET = "digits:made-up", "macs"
KINDS = ("compressed", "pruned", "study", "told")
ASKED = 20


def made_up(count: int, seed: int = 0) -> Iterator[Entry]:
    rng = np.random.default_rng(seed)
    template = preset("deit-s")
    ids: list[str] = []
    for index in range(count):
        embed = int(rng.integers(8, 96)) * 8
        rows = rng.integers((1, 1, 1, 2), (13, 9, 9, 384), (12, 4)) * (1, 8, 8, 8)
        arch = template.replace(embed_dim=embed, blocks=tuple(BlockShape(*row) for row in rows.tolist()))
        value = float(np.clip(0.5 + 0.03 * np.log2(macs(arch) / 1e8) + 0.02 * rng.standard_normal(), 0, 1))
        parent = ids[int(rng.integers(len(ids)))] if ids and rng.random() < 0.5 else None
        ids.append(arch.id)
        accuracy = Accuracy(DATA, value, "measured", "made up", (0,))
        yield Entry(
            f"made-up:{index}", f"model {index}", KINDS[index % 4], arch, "made up", parent, accuracies=(accuracy,)
        )


def questions(catalogue: Catalogue, low: float, high: float) -> dict[str, Callable[[int], object]]:
    def budget(index: int) -> float:
        return low + (high - low) * (0.03 + 0.9 * index / ASKED)

    def ask(**given: object) -> Callable[[int], object]:
        return lambda index: catalogue.find(Question(**{k: v(index) if callable(v) else v for k, v in given.items()}))

    parents = [one.architecture for one in catalogue.find(Question(limit=ASKED, order="params"))]
    return {
        "budget": ask(target=TARGET, budget_ms=budget),
        "budget, by accuracy": ask(target=TARGET, budget_ms=budget, data=DATA),
        "budget, by accuracy, of a kind": ask(target=TARGET, budget_ms=budget, data=DATA, kind=lambda i: KINDS[i % 4]),
        "budget and parameters": ask(target=TARGET, budget_ms=budget, data=DATA, max_params=lambda i: (5 + i) * 10**6),
        "by accuracy": ask(data=DATA),
        "kind": ask(kind=lambda i: KINDS[i % 4]),
        "part of a name": ask(name=lambda i: f"model {i}9"),
        "lineage": ask(ancestor=lambda i: parents[i]),
        "fastest": ask(target=TARGET, order="latency"),
        "Pareto": lambda index: catalogue.pareto(TARGET, DATA, KINDS[index % 4] if index % 2 else None),
        "by id": lambda index: catalogue.architecture(parents[index]),
    }


def asked(url: str, name: str, count: int) -> float:
    """Prints a line a question; the median of the slowest, in ms."""
    catalogue = Catalogue(Database(normal_url(url)))
    start = time.perf_counter()
    catalogue.add(made_up(count))
    added = time.perf_counter()
    catalogue.price(MacsModel(preset("deit-s")))
    priced = time.perf_counter()
    print(
        f"\n{name}: {catalogue.count():,} entries added in {added - start:.0f} s, latencies in {priced - added:.0f} s"
    )
    ends = [catalogue.find(Question(target=TARGET, order="latency", limit=1))[0].latency_ms]
    ends += [catalogue.find(Question(target=TARGET, limit=1))[0].latency_ms]
    slowest = 0.0
    for question, ask in questions(catalogue, *ends).items():
        times = []
        ask(0)
        for index in range(ASKED):
            start = time.perf_counter()
            ask(index)
            times.append(1e3 * (time.perf_counter() - start))
        slowest = max(slowest, float(np.median(times)))
        print(f"  {question:32} {spread(times)} ms")
    catalogue.database.close()
    return slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 architectures: figures mean nothing")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--url", help="of an empty PostgreSQL database")
    options = parser.parse_args()
    count = 2_000 if options.quick else options.count

    print_machine("sqlalchemy", "psycopg")
    print(f"{count:,} architectures, seed 0; each question {ASKED} times, median and range")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print_goal(
            "catalogue-sqlite-ms",
            asked(f"sqlite:///{folder / 'catalogue.sqlite'}", "SQLite", count),
            50,
            at_least=False,
        )
        url = options.url or stack.enter_context(postgresql())
        if url is None:
            print("PostgreSQL is not installed here: not measured")
        else:
            print_goal("catalogue-postgresql-ms", asked(url, "PostgreSQL", count), 50, at_least=False)


if __name__ == "__main__":
    main()
