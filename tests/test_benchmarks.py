"""Every benchmark runs, says on what, and ends with its goals."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
PARTS = {"common.py", "torch_pruning_ways.py"}
"""What scripts share, or have put beside themselves."""
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in PARTS)
WITH_GOALS = {
    "catalogue.py",
    "compress.py",
    "compress_speed.py",
    "criteria.py",
    "dashboard.py",
    "estimate.py",
    "frontier.py",
    "fuzz_uploads.py",
    "gradual.py",
    "modelled.py",
    "newcomer.py",
    "norms.py",
    "obs_speed.py",
    "oneshot.py",
    "openapi_fuzz.py",
    "peers.py",
    "planes.py",
    "promise.py",
    "reliability.py",
    "saliency.py",
    "service.py",
    "study.py",
    "throughput.py",
    "together.py",
}
ON_ONE_MACHINE = {"dashboard.py", "fewpoints.py"}
"""Their goals are measured where there is a browser, or the machine of a table; elsewhere they say so."""
GOAL = re.compile(r"goal [a-z0-9-]+: \S+ \((>=|<=) \S+\) (met|missed)")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs_quickly_and_prints_the_machine_and_its_goals(script):
    result = subprocess.run(
        [sys.executable, str(FOLDER / script), "--quick"],
        capture_output=True,
        text=True,
        check=False,
        cwd=FOLDER.parent,
        env={"PYTHONPATH": str(FOLDER.parent), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    assert "machine: " in result.stdout
    goals = [line for line in result.stdout.splitlines() if line.startswith("goal ")]
    assert all(GOAL.fullmatch(line) for line in goals), goals
    if script in ON_ONE_MACHINE:
        assert goals or "are not measured" in result.stdout
    else:
        assert bool(goals) == (script in WITH_GOALS)


def test_every_benchmark_asks_one_question_and_shows_its_command():
    for script in SCRIPTS:
        text = (FOLDER / script).read_text(encoding="utf-8")
        assert re.match(r'"""[^\n]+\?\n', text), f"{script} opens with its question"
        assert f"$ python benchmarks/{script}" in text
