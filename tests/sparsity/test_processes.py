"""Several processes that share the batches prune what one prunes, and fail together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cases import assert_same_state
from tests.sparsity.one_of_several import everything

ROOT = Path(__file__).parents[2]
WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.sparsity.one_of_several", str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), str(WORLD)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        for rank in range(WORLD)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * WORLD
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_every_method_gives_what_it_gives_in_one_process(found):
    alone = everything()
    for answer in found:
        assert answer["made"].keys() == alone.keys()
        for case, one in alone.items():
            other = answer["made"][case]
            assert other["mask"] == one["mask"], case
            assert other.get("gradients") == one.get("gradients"), case
            for name, weight in one["weights"].items():  # sums in another order
                torch.testing.assert_close(other["weights"][name], weight, rtol=1e-9, atol=1e-10, msg=f"{case} {name}")


def test_all_processes_get_the_same_bits(found):
    for case, one in found[0]["made"].items():
        assert_same_state(found[1]["made"][case]["weights"], one["weights"])


def test_an_error_in_one_process_is_an_error_in_all_and_nobody_waits(found):
    first, second = (answer["said"] for answer in found)
    nan = "the gradient of conv.weight is not finite in batch {} (loss nan); check the images, or exclude the layer"
    assert first == [
        f"SparsityError: process 1 of 2 failed: {nan.format(2)}",
        f"GradientError: {nan.format(3)}",
        "ArithmeticError: on purpose",
        "SparsityError: no calibration batch; give at least one",
    ]
    assert second == [
        f"GradientError: {nan.format(2)}",
        f"SparsityError: process 0 of 2 failed: {nan.format(3)}",
        "SparsityError: process 0 of 2 failed: on purpose",
        "SparsityError: no calibration batch; give at least one",
    ]
