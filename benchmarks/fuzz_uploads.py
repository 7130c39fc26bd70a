"""Is every damaged upload refused cleanly or harmless, in bounded memory, and is no file left behind?

    $ python benchmarks/fuzz_uploads.py [--quick] [--count 10000] [--seed 0]

Tables (Parquet, CSV, NViT's JSON), checkpoints and saliencies are cut, flipped, doubled and filled with numbers that
claim too much, and each noun is sent each bomb: archives, nested JSON, columns that unpack to gigabytes. The service is
asked in this process, without a worker. What it takes is listed, fetched, downloaded and deleted again; a file in the
data folder that was not there before is a failure, as is any answer but 200, 201 or a problem of 4xx. Memory is the
process's peak over what it was once the good files were through, with the uploads themselves in it.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import print_goal, print_machine

sys.path.append(str(Path(__file__).parents[1]))  # the uploads are the tests'

from tests.reliability.uploads import FuzzedService, fuzzed, good_files

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few uploads")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = 120 if options.quick else options.count
    print_machine("fastapi", "pyarrow", "safetensors")
    print(f"seed {options.seed}")
    statuses, failed, slowest, started = Counter[int](), list[str](), 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "first").mkdir()
        with FuzzedService(folder) as service:
            for upload in good_files(folder / "first"):
                status, wrong = service.send(upload)
                if wrong or status > 201:
                    raise SystemExit(f"the good {upload.name} is answered with {status}: nothing can be said; {wrong}")
            before = service.peak_bytes()
            for upload in fuzzed(count, options.seed, folder):
                at = time.perf_counter()
                status, wrong = service.send(upload)
                slowest = max(slowest, time.perf_counter() - at)
                statuses[status] += 1
                if wrong:
                    failed.append(f"{upload.name}: {wrong}")
            grown, left = (service.peak_bytes() - before) / MIB, service.left()
    took = time.perf_counter() - started
    print(f"{count:,} uploads in {took:.0f} s, the slowest {slowest:.1f} s; {dict(sorted(statuses.items()))}")
    print(f"memory grew by {grown:.0f} MiB; left behind: {', '.join(left) or 'nothing'}")
    for line in failed[:20]:
        print(f"FAILED {line}")
    print_goal("uploads-failures", len(failed), 0, at_least=False)
    print_goal("uploads-left-behind", len(left), 0, at_least=False)
    if not options.quick:
        print_goal("uploads-memory-mib", grown, 512, at_least=False)


if __name__ == "__main__":
    main()
