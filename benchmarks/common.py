"""What every benchmark prints: the machine, the versions, and one line a goal."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np


def print_machine(*packages: str) -> None:
    """Processor, cores, Python and the versions that matter."""
    from latency.runtimes import find_device

    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"machine: {find_device().name}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}")


def print_goal(name: str, value: float, bound: float, *, at_least: bool) -> None:
    """`goal NAME: VALUE (>= BOUND) met`; a missed goal is a figure, not a failure."""
    met = value >= bound if at_least else value <= bound
    print(f"goal {name}: {value:.4g} ({'>=' if at_least else '<='} {bound:g}) {'met' if met else 'missed'}")


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"
