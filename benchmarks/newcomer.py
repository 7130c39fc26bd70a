"""How long does it take from a clone to a pruned model, by the docs alone?

    $ python benchmarks/newcomer.py [--quick]

This repository, as it is committed, is cloned into a new folder, and what docs/quickstart.md shows of a shell is typed
there from the top: an environment is made, with nothing of pip's cache (so the network counts), and a model is trained,
timed, cut to a budget, measured and exported. `make demo` may be left out there, and is. Reading is not counted.
With --quick the page is typed in the environment that there is.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import print_goal, print_machine

sys.path.append(str(Path(__file__).parents[1]))  # the shell is the tests'

from tests.docs_shell import ROOT, fences, page_text, typed

PAGE = "docs/quickstart.md"
MARK = "=== at "
INSTALL = "Two commands"
"""The section that makes the environment."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without a clone and without installing")
    options = parser.parse_args()
    print_machine("torch", "timm")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if options.quick:
            found = [section for section in sections() if section[0] != INSTALL]
            status, printed = typed(script_of(found), folder)
        else:
            found = list(sections())
            status, printed = in_a_clone(script_of(found), folder)
    if status != 0:
        raise SystemExit(f"it ends with status {status}:\n{printed}")
    at = [float(one) for one in re.findall(rf"^{MARK}(\S+)$", printed, re.MULTILINE)]
    for (title, _), start, end in zip(found, at[:-1], at[1:], strict=True):
        print(f"{end - start:6.0f} s  {title}")
    print_goal("newcomer-minutes", (at[-1] - at[0]) / 60, 10, at_least=False)


def sections() -> Iterator[tuple[str, str]]:
    """Heading and what is typed, of those of the page in which something is."""
    for section in re.split(r"^## ", page_text(PAGE), flags=re.MULTILINE)[1:]:
        blocks = [block for kind, block in fences(section) if kind in ("sh", "sh make")]
        if blocks:
            yield section.partition("\n")[0], re.sub(r"^make demo.*\n", "", "".join(blocks), flags=re.MULTILINE)


def script_of(found: list[tuple[str, str]]) -> str:
    mark = f"date +'{MARK}%s.%N'\n"
    return mark + "".join(block + mark for _, block in found)


def in_a_clone(script: str, folder: Path) -> tuple[int, str]:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "vitfit")], check=True)
    dropped = ("VITFIT_", "PYTHONPATH", "VIRTUAL_ENV", "OMP_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder / "vitfit",
        env=clean | {"PIP_NO_CACHE_DIR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout


if __name__ == "__main__":
    main()
