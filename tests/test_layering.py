"""Imports point downwards only, and what promises to load without torch does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "vit": set(),
    "latency": {"vit"},
    "search": {"vit", "latency"},
    "sparsity": {"vit"},
    "recovery": {"vit"},
    "lut_data": {"vit", "latency"},
    "api": {"vit", "latency", "search", "sparsity", "recovery", "lut_data"},
}

TORCH_FREE = [
    "vit",
    "vit.architecture",
    "vit.compare",
    "vit.cost",
    "vit.presets",
    "vit.groups",
    "latency",
    "latency.runtimes",
    "latency.storage",
    "latency.estimate",
    "latency.interpolate",
    "latency.analytic",
    "latency.devices",
    "latency.modelled",
    "latency.interop",
    "latency.compare",
    "search",
    "search.constraints",
    "search.frontier",
    "search.frontier_storage",
    "search.greedy",
    "search.profiles",
    "search.redistribute",
    "search.saliency",
    "search.study",
    "search.study_file",
    "search.study_report",
    "search.trends",
    "api.app",
    "api.budget_search",
    "api.catalogue",
    "api.catalogue_sources",
    "api.cli",
    "api.cli_study",
    "api.study_run",
]

FILES = [path.relative_to(ROOT) for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def exists(module):
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported(source):
    """First names of everything that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_packages_below_its_own(path):
    package = path.parts[0]
    ours = set(imported((ROOT / path).read_text(encoding="utf-8"))) & {*MAY_IMPORT, "tests", "benchmarks"}
    assert ours <= MAY_IMPORT[package] | {package}


def test_the_import_rule_sees_imports_inside_functions_and_below_conditions():
    source = "import a.b\nfrom c.d import e\ndef f():\n    if g:\n        from h import i, j\n"
    assert sorted(imported(source)) == ["a", "c", "h"]


@pytest.mark.parametrize("module", [module for module in TORCH_FREE if exists(module)])
def test_it_loads_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{module} imports torch"


def test_a_budget_is_answered_without_torch():
    code = """
import sys
import numpy as np
from latency.analytic import MacsModel
from search.constraints import Constraints
from search.frontier import Frontier
from search.saliency import Saliency
from vit.groups import groups, size
from vit.presets import preset
arch = preset("deit-t")
values = {group: np.linspace(0, 1, size(arch, group)) for group in groups(arch)}
steps = {"embed": 96, "mlp": 128, "qk": 32, "v": 32}
frontier = Frontier(Saliency(arch, values, "x", "", "", 1), MacsModel(arch), Constraints(multiples=steps))
assert frontier.best(frontier.full_ms / 2).kept > 0.5
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch was imported"
