"""Is every damaged upload refused cleanly or harmless, in bounded memory, and is no file left behind?

    $ python benchmarks/fuzz_uploads.py [--quick] [--count 10000] [--seed 0]

Tables (Parquet, CSV, NViT's JSON), checkpoints and saliencies are cut, flipped, doubled and filled with numbers that
claim too much, and each noun is sent each bomb: archives, nested JSON, columns of twenty million rows. The service is
asked in this process, without a worker. What it takes is deleted again; a file in the data folder that was not there
before is a failure, as is any answer but 200, 201 or a problem of 4xx.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from itertools import chain
from pathlib import Path

from common import print_goal, print_machine
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings

sys.path.append(str(Path(__file__).parents[1]))  # the uploads are the tests'

from tests.reliability.mutated_uploads import mutations, samples, send


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few uploads")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = 100 if options.quick else options.count
    print_machine("fastapi", "pyarrow", "safetensors")
    print(f"seed {options.seed}")
    statuses, failed, started = Counter[int](), list[str](), time.perf_counter()
    with tempfile.TemporaryDirectory() as text:
        root, found = Path(text, "library"), samples(Path(text, "samples"))
        todo = mutations(found, count, options.seed)
        first = next(todo)  # the bombs are made before memory is looked at
        app = create_app(Settings(data_dir=root, shipped_tables=False, worker=False))
        with TestClient(app, raise_server_exceptions=False) as client:
            for name, sample in found.items():
                whole = send(client, root, name, sample, sample.data)
                if whole.status != 201:
                    raise SystemExit(f"the whole {name} is refused with {whole.status}: nothing can be said")
            before = _peak_mib()
            for one in chain([first], todo):
                outcome = send(client, root, *one)
                statuses[outcome.status] += 1
                if outcome.wrong:
                    failed.append(f"{outcome.what}: {outcome.wrong}")
            grown = _peak_mib() - before
    print(f"{count:,} uploads in {time.perf_counter() - started:.0f} s; {dict(sorted(statuses.items()))}")
    for line in failed[:20]:
        print(f"FAILED {line}")
    if not options.quick:
        print_goal("fuzzed-uploads", sum(statuses.values()), 10_000, at_least=True)
    print_goal("fuzzed-failures", len(failed), 0, at_least=False)
    print_goal("fuzzed-peak-growth-mib", grown, 256, at_least=False)


def _peak_mib() -> float:
    """Largest resident memory of this process until now (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
