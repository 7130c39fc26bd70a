"""An environment as users have elsewhere: torch, what torch itself requires, and nothing else."""

import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def make_torch_alone(folder: Path) -> Path:
    """The interpreter of a new virtual environment; packages are links to those that run the tests.

    Start it with -I, or PYTHONPATH leads back to ours.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in required("torch"):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (site / top).is_symlink():  # parts of nvidia/ belong to several packages
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "bin" / "python"


def required(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """What a package declares to need on this machine, and itself, as far as it is installed."""
    found, todo = set[str](), [(name, extras)]
    while todo:
        name, extras = todo.pop()
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:  # a build of torch for CPUs may declare GPU packages: importing torch will tell
            continue
        found.add(name)
        for need in map(Requirement, lines):
            wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
            if wanted and (need.name not in found or need.extras):
                todo.append((need.name, frozenset(need.extras)))
    return found
