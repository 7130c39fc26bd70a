"""How long does a frontier take to build, how long a budget, and how far from the best is the answer?

    $ python benchmarks/frontier.py [--quick]

DeiT-S and DeiT-B on the target `macs` with made-up heavy-tailed saliency, all sizes in steps of 8 channels.
"""

import argparse
import resource
import time

import numpy as np
from common import print_machine, spread

from latency.analytic import MacsModel
from search.frontier import Frontier
from search.saliency import Saliency
from vit.groups import groups, size
from vit.presets import preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT-T alone, one seed")
    quick = parser.parse_args().quick
    names, seeds = (("deit-t",), 1) if quick else (("deit-s", "deit-b"), 3)
    print_machine("numpy")
    print(f"seeds 0 to {seeds - 1}; 100 budgets from 20 to 95 % each; median [range]")
    for name in names:
        arch = preset(name)
        build, query, gaps = [], [], []
        for seed in range(seeds):
            draw = np.random.default_rng(seed)
            values = {group: draw.pareto(1.5, size(arch, group)) for group in groups(arch)}
            saliency = Saliency(arch, values, "fisher", "made up", f"seed {seed}", 1)
            started = time.perf_counter()
            frontier = Frontier(saliency, MacsModel(arch))
            build.append(time.perf_counter() - started)
            for share in np.linspace(0.2, 0.95, 100):
                started = time.perf_counter()
                choice = frontier.best(share * frontier.full_ms)
                query.append(1e3 * (time.perf_counter() - started))
                gaps.append(100 * (choice.gap or 0.0))
        print(f"{name}: build {spread(build)} s, a budget {spread(query)} ms, certified gap {spread(gaps)} %")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
