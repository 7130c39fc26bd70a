"""`vitfit sparsify`: at once, and as a sweep that kill -9 costs at most a phase and no bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from api import sparsify_run
from api.sparsify_run import Calibrating, SweepRequest, run_sweep, targets_of
from recovery.data import load_dataset
from recovery.errors import TrainingError
from recovery.recipes import Recipe
from sparsity.oneshot import Sparsify
from tests.api.factories import save_model
from tests.api.torchrun import torchrun
from tests.cases import assert_same_state
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.errors import JournalError
from vit.model import VisionTransformer, initialise

ARCH = Architecture(
    image_size=(16, 16),
    patch_size=(8, 8),
    in_chans=1,
    num_classes=10,
    embed_dim=32,
    blocks=(BlockShape(2, 16, 16, 64),) * 2,
)
TARGETS = (0.6, 0.75)
LEVELS = (0.4, 0.6, 0.7, 0.75)


def wanted(**changes):
    values = {
        "levels": LEVELS,
        "targets": TARGETS,
        "request": Sparsify(sparsity=0.75, block_size=16),
        "how": Calibrating(gradients=8, batch_size=8),
        "recipe": Recipe(
            steps=12, lr=1e-3, min_lr=1e-4, schedule="cyclic", warmup=0, batch_size=16, report_every=1, drop_path=0.1
        ),
    }
    return SweepRequest(**(values | changes))


@pytest.fixture(scope="module")
def dense():
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    return Checkpoint.of(model, ({"step": "test"},))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", ARCH)


@pytest.fixture(scope="module")
def finished(dense, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, list(run_sweep(dense, digits, wanted(), folder))


def last(folder):
    return load_checkpoint(folder / f"phase-{len(LEVELS) - 1:03}.safetensors")


def test_every_phase_reaches_its_level_and_every_target_is_a_checkpoint_with_its_zeros(finished, digits):
    folder, phases = finished
    for done, level in zip(phases, LEVELS, strict=True):
        assert done.sparsity == pytest.approx(level, abs=1 / 5000), "exact, of this many weights"
    found = dict(targets_of(folder, wanted(), digits))
    assert list(found) == list(TARGETS)
    for target, made in found.items():
        assert made.masks.sparsity == pytest.approx(target, abs=1 / 5000)
        assert [step["step"] for step in made.lineage] == ["test", "sparsify"]
        for name, keep in made.masks.keep.items():
            assert not made.weights[name][~keep].any()
    assert found[0.75].masks.within(found[0.6].masks)
    assert not list(folder.glob("*trainer*")), "the optimiser is kept while it is needed"


def test_a_cyclic_recipe_has_a_cycle_for_each_phase(digits):
    used = wanted(recipe=Recipe(steps=10, schedule="cyclic", warmup=0)).training(len(digits.train))
    assert (used.steps, used.cycles) == (12, 4)


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_stopped_after_a_phase_ends_like_one_that_was_not(finished, dense, digits, tmp_path, after):
    reports = run_sweep(dense, digits, wanted(), tmp_path)
    for _ in range(after):
        next(reports)
    reports.close()
    phases = list(run_sweep(dense, digits, wanted(), tmp_path))
    assert [done.resumed for done in phases] == [True] * after + [False] * (len(LEVELS) - after)
    assert_same_state(last(tmp_path).weights, last(finished[0]).weights)


CHILD = """
import sys
from pathlib import Path
from tests.api.test_sparsify import ARCH, load_checkpoint, load_dataset, run_sweep, wanted
import torch
torch.set_num_threads(1)
dense, digits = load_checkpoint(Path(sys.argv[1])), load_dataset("digits", ARCH)
report = lambda _, report: print(report.step, flush=True)
for done in run_sweep(dense, digits, wanted(), Path(sys.argv[2]), report=report):
    pass
"""


def test_killed_with_sigkill_it_goes_on_to_the_same_masks(finished, dense, digits, tmp_path):
    save_checkpoint(dense, tmp_path / "dense.safetensors")
    folder, root = tmp_path / "run", str(Path(sparsify_run.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "dense.safetensors"), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    while child.stdout.readline().strip() != "5":  # in the training of the second phase
        assert child.poll() is None, "the run ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.stdout.read()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    phases = list(run_sweep(dense, digits, wanted(), folder))
    assert phases[0].resumed
    assert not phases[-1].resumed
    assert last(folder).masks.fingerprint == last(finished[0]).masks.fingerprint
    assert_same_state(last(folder).weights, last(finished[0]).weights)


def test_another_request_is_refused_in_the_folder_of_a_run(finished, dense, digits):
    with pytest.raises(JournalError, match="another sparsify"):
        next(run_sweep(dense, digits, wanted(request=Sparsify(sparsity=0.75, method="magnitude")), finished[0]))


def test_what_cannot_be_done_leaves_no_folder(dense, digits, tmp_path):
    half = sparsify_run.sparsify_checkpoint(dense, digits, Sparsify(sparsity=0.5, method="magnitude"), Calibrating())[0]
    with pytest.raises(ValueError, match="already"):
        list(run_sweep(half, digits, wanted(), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainingError, match="ema"):
        wanted(recipe=Recipe(steps=4, ema=0.9))


def test_from_the_command_line_at_once_and_fine_tuned_with_the_zeros_kept(run_cli, tmp_path):
    save_model(ARCH, tmp_path / "dense.safetensors")
    sparse, tuned = tmp_path / "sparse.safetensors", tmp_path / "tuned.safetensors"
    status, out, err = run_cli(
        *(
            "sparsify",
            tmp_path / "dense.safetensors",
            "-d",
            "digits",
            "-s",
            0.7,
            "-o",
            sparse,
            "--gradients",
            8,
            "--json",
        ),
    )
    assert status == 0, err
    document, made = json.loads(out), load_checkpoint(sparse)
    assert (document["removed"], document["of"]) == (made.masks.zeros, made.masks.total)
    assert made.masks.zeros == round(0.7 * made.masks.total)
    assert made.lineage[-1]["method"] == "ovit"
    status, _, err = run_cli("finetune", sparse, "-d", "digits", "-o", tuned, "--steps", 3, "--validation", 0)
    assert status == 0, err
    after = load_checkpoint(tuned)
    assert after.masks.fingerprint == made.masks.fingerprint
    assert not torch.equal(after.weights["blocks.0.mlp.fc1.weight"], made.weights["blocks.0.mlp.fc1.weight"])


def test_from_the_command_line_a_sweep_writes_a_checkpoint_for_every_target(run_cli, tmp_path):
    save_model(ARCH, tmp_path / "dense.safetensors")
    status, out, err = run_cli(
        *(
            "sparsify",
            tmp_path / "dense.safetensors",
            "-d",
            "digits",
            "--sweep",
            "0.5,0.75",
            "--phases",
            3,
            "--steps",
            6,
        ),
        *("--gradients", 4, "--train-batch", 16, "--tail-steps", 2, "-o", tmp_path / "s.safetensors", "--json"),
    )
    assert status == 0, err
    assert [round(document["sparsity"], 3) for document in json.loads(out)] == [0.5, 0.75]
    for percent in (50, 75):
        made = load_checkpoint(tmp_path / f"s-{percent}.safetensors")
        assert [step["step"] for step in made.lineage][-2:] == ["sparsify", "finetune"]
        assert made.lineage[-1]["recipe"]["schedule"] == "cosine"
        assert made.masks.sparsity == pytest.approx(percent / 100, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-s", 1.0), 1, "sparsity must be from 0 to less than 1, got 1.0"),
        ((), 1, "the pattern unstructured needs a sparsity"),
        (("-s", 0.5, "--pattern", "2:4"), 1, "has a sparsity of 0.5 of its own"),
        (("--pattern", "2-4"), 1, "unknown pattern '2-4'; known: unstructured, N:M"),
        (("--pattern", "3x5", "-s", 0.5), 1, "does not divide"),
        (("-s", 0.5, "--method", "obd"), 1, "unknown method 'obd'; known: ovit, woodfisher"),
        (("-s", 0.5, "--layers", "bert"), 1, "unknown choice of layers 'bert'"),
        (("-s", 0.5, "--include", "nothing.*"), 1, "no weight matches nothing"),
        (("-s", 0.5, "--sweep", "0.5"), 2, "not both"),
        (("--sweep", "a,b"), 2, "--sweep takes sparsities"),
        (("--sweep", "0.3,0.2"), 1, "targets must rise"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run_cli, tmp_path, arguments, status, message):
    save_model(ARCH, tmp_path / "dense.safetensors")
    found, _, err = run_cli(
        "sparsify", tmp_path / "dense.safetensors", "-d", "digits", "-o", tmp_path / "s.safetensors", *arguments
    )
    assert found == status
    assert message in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["dense.safetensors"]


@pytest.mark.slow
def test_two_processes_remove_what_one_does(tmp_path):
    save_model(ARCH, tmp_path / "dense.safetensors")
    common = ["sparsify", str(tmp_path / "dense.safetensors"), "-d", "digits", "-s", "0.5", "--gradients", "80"]
    torchrun(*common, "-o", str(tmp_path / "two.safetensors"))
    subprocess.run(
        [sys.executable, "-m", "api.cli", *common, "-o", str(tmp_path / "one.safetensors")],
        check=True,
        cwd=Path(sparsify_run.__file__).parents[1],
        capture_output=True,
    )
    one, two = (load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    same = sum(int((one.masks.keep[name] == keep).sum()) for name, keep in two.masks.keep.items())
    assert one.masks.zeros == two.masks.zeros
    assert same / one.masks.total > 0.99, "float32 sums in another order; tests/sparsity proves it in float64"
