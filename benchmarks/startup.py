"""How long do the command line and the service take to load, and do they load torch?

    $ python benchmarks/startup.py [--quick]

Fresh interpreters in turn; the bare interpreter beside them.
"""

import argparse
import subprocess
import sys
import time
from collections import defaultdict

from common import print_machine, spread

PROGRAMS = {
    "bare python": "",
    "command line": "import api.cli",
    "service": "from api.app import create_app; create_app()",
    "service and its first answer": (
        "from api.app import create_app; from fastapi.testclient import TestClient\n"
        "assert TestClient(create_app()).get('/v1/presets').status_code == 200"
    ),
    "torch, for comparison": "import torch",
}
TELL = "\nimport sys; print('torch' in sys.modules)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    rounds = 1 if parser.parse_args().quick else 9
    print_machine("fastapi", "typer", "torch")
    seconds, torch_loaded = defaultdict(list), {}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            started = time.perf_counter()
            result = subprocess.run([sys.executable, "-c", program + TELL], capture_output=True, text=True, check=True)
            seconds[name].append(time.perf_counter() - started)
            torch_loaded[name] = result.stdout.strip()
    print(f"{rounds} rounds, seconds of wall time, median [range]")
    for name, values in seconds.items():
        print(f"{name:34} {spread(values)}  torch loaded: {torch_loaded[name]}")


if __name__ == "__main__":
    main()
