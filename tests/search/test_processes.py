"""Several processes that share the batches say what one says, and fail together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.search.one_of_several import everything

ROOT = Path(__file__).parents[2]
WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.search.one_of_several", str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), str(WORLD)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        for rank in range(WORLD)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * WORLD
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_every_criterion_says_what_it_says_in_one_process(found):
    alone = everything()
    for answer in found:
        assert answer["scored"].keys() == alone.keys()
        for case, values in alone.items():
            for group, vector in values.items():
                np.testing.assert_allclose(
                    answer["scored"][case][group], vector, rtol=1e-12, err_msg=f"{case} {group}"
                )  # sums in another order


def test_all_processes_get_the_same_bits(found):
    assert all(answer["scored"] == found[0]["scored"] for answer in found)


def test_an_error_in_one_process_is_an_error_in_all_and_nobody_waits(found):
    nan = "the loss of batch {} is nan; check the images and labels"
    first, second = (answer["said"] for answer in found)
    assert first == [
        f"SaliencyError: process 1 of 2 failed: {nan.format(2)}",
        f"SaliencyError: {nan.format(3)}",
        "ArithmeticError: on purpose",
        "SaliencyError: no calibration batch; give at least one image per batch",
    ]
    assert second == [
        f"SaliencyError: {nan.format(2)}",
        f"SaliencyError: process 0 of 2 failed: {nan.format(3)}",
        "SaliencyError: process 0 of 2 failed: on purpose",
        "SaliencyError: no calibration batch; give at least one image per batch",
    ]
