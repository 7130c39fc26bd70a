"""A pruning run: every round is kept, kill -9 costs at most a round and no bit, any budget on the way can be taken."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from api import prune_run
from api.library import Library
from api.prune_run import PruneRequest, Round, pick, run_prune
from api.settings import Settings
from api.workflow import Scoring
from latency.analytic import MacsModel
from latency.estimate import estimate
from recovery.data import load_dataset
from recovery.recipes import Recipe
from search.errors import BudgetError
from search.saliency import load_saliency
from search.schedule import Schedule
from tests.api.torchrun import torchrun
from tests.cases import assert_same_state
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.errors import JournalError, VitfitError
from vit.groups import Keep, groups, size
from vit.model import VisionTransformer, initialise
from vit.surgery import shrink

ARCH = Architecture(
    image_size=(16, 16),
    patch_size=(8, 8),
    in_chans=1,
    num_classes=10,
    embed_dim=32,
    blocks=(BlockShape(2, 16, 16, 64),) * 2,
)
MACS = MacsModel(ARCH)
FULL = estimate(MACS, ARCH).latency_ms


def request(**changes):
    values = {
        "budget_ms": 0.4 * FULL,
        "schedule": Schedule(rounds=4, interval=3, smoothing=0.5),
        "recipe": Recipe(steps=1, lr=1e-3, schedule="constant", warmup=0, batch_size=16, report_every=1, drop_path=0.1),
        "scoring": Scoring(criterion="nvit", batches=2, batch_size=16),
    }
    return PruneRequest(**(values | changes))


@pytest.fixture(scope="module")
def dense():
    model = initialise(VisionTransformer(ARCH), torch.Generator().manual_seed(0))
    return Checkpoint.of(model, ({"step": "test"},))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", ARCH)


def run(dense, digits, folder, wanted=None, **options):
    return list(run_prune(dense, digits, MACS, wanted or request(), folder, target="macs", **options))


@pytest.fixture(scope="module")
def finished(dense, digits, tmp_path_factory):
    """Folder and rounds of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(dense, digits, folder)


def last_model(folder, rounds=4):
    return load_checkpoint(folder / f"round-{rounds - 1:03}.safetensors")


def test_rounds_come_down_to_the_budget_and_are_trained_between(finished, dense):
    folder, rounds = finished
    assert [made.round for made in rounds] == [0, 1, 2, 3]
    assert rounds[-1].latency_ms <= 0.4 * FULL
    assert all(made.latency_ms <= made.budget_ms for made in rounds)
    assert [made.loss is None for made in rounds] == [False, False, False, True]
    for made in rounds:
        checkpoint = load_checkpoint(folder / f"round-{made.round:03}.safetensors")
        assert checkpoint.arch == made.arch
        assert [step["step"] for step in checkpoint.lineage] == ["test", "prune"]
        assert checkpoint.lineage[-1]["recipe"]["lr"] == 1e-3
    assert not list(folder.glob("*trainer*")), "the optimiser is kept while it is needed"


def test_the_order_of_removal_is_in_units_of_the_model_as_it_was_given(finished, dense, digits, tmp_path):
    """Without training, taking exactly these units out of the given model gives the last round's, bit for bit."""
    folder = tmp_path / "run"
    rounds = run(dense, digits, folder, request(schedule=Schedule(3)))
    gone = {str(group): [] for group in groups(ARCH)}
    for made in rounds:
        for group, units in made.removed:
            gone[group] += units
    keep = {group: np.setdiff1d(np.arange(size(ARCH, group)), gone[str(group)]) for group in groups(ARCH)}
    assert all(len(units) == len(set(units)) for units in gone.values())
    expected = shrink(dense.model(), Keep.of(ARCH, keep))
    assert_same_state(last_model(folder, 3).model().state_dict(), expected.state_dict())
    assert sum(len(units) for units in gone.values()) > 20


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_run_that_was_stopped_after_a_round_ends_like_one_that_was_not(finished, dense, digits, tmp_path, stopped):
    steps = run_prune(dense, digits, MACS, request(), tmp_path, target="macs")
    for _ in range(stopped):
        next(steps)
    steps.close()
    rounds = run(dense, digits, tmp_path)
    assert [made.resumed for made in rounds] == [index < stopped for index in range(4)]
    assert [made.line() for made in rounds] == [made.line() for made in finished[1]]
    assert_same_state(last_model(tmp_path).weights, last_model(finished[0]).weights)


def test_a_run_that_died_within_a_round_does_that_round_again(finished, dense, digits, tmp_path):
    """Between any two steps of training, and with what the round had written half."""
    seen = []

    def die(report):
        seen.append(report.step)
        if len(seen) == 5:  # in the second round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dense, digits, tmp_path, report=die)
    (tmp_path / "round-001.saliency.safetensors").write_bytes(b"half")
    rounds = run(dense, digits, tmp_path)
    assert [made.resumed for made in rounds] == [True, False, False, False]
    assert_same_state(last_model(tmp_path).weights, last_model(finished[0]).weights)


CHILD = """
import sys
from pathlib import Path
from tests.api.test_prune_run import MACS, load_checkpoint, load_dataset, request, run_prune, ARCH
import torch
torch.set_num_threads(1)
dense = load_checkpoint(Path(sys.argv[1]))
report = lambda report: print(report.step, flush=True)
digits, folder = load_dataset("digits", ARCH), Path(sys.argv[2])
for made in run_prune(dense, digits, MACS, request(), folder, target="macs", report=report):
    print("round", made.round, flush=True)
"""


def test_killed_with_sigkill_it_goes_on_to_the_same_masks(finished, dense, digits, tmp_path):
    save_checkpoint(dense, tmp_path / "dense.safetensors")
    folder, root = tmp_path / "run", str(Path(prune_run.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "dense.safetensors"), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    while child.stdout.readline().strip() != "5":  # training after the second cut
        assert child.poll() is None, "the run ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.stdout.read()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    rounds = run(dense, digits, folder)
    assert rounds[0].resumed
    assert not rounds[-1].resumed
    assert [made.removed for made in rounds] == [made.removed for made in finished[1]]
    assert rounds[-1].arch == finished[1][-1].arch


def test_a_finished_run_is_only_read(finished, dense, digits):
    before = {path: path.read_bytes() for path in finished[0].iterdir()}
    assert all(made.resumed for made in run(dense, digits, finished[0]))
    assert {path: path.read_bytes() for path in finished[0].iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scoring": Scoring(criterion="fisher")}, "another scoring"),
        ({"budget_ms": 0.5 * FULL}, "another budget_ms"),
        ({"eta": 1.0}, "another eta"),
    ],
)
def test_another_run_does_not_go_on_in_its_folder(finished, dense, digits, changes, says):
    with pytest.raises(JournalError, match=says):
        run(dense, digits, finished[0], request(**changes))


def test_an_impossible_budget_leaves_nothing_and_takes_nothing_of_others(dense, digits, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("all there is")
    for name in ("new", "full"):
        with pytest.raises(BudgetError, match="no architecture runs in"):
            run(dense, digits, tmp_path / name, request(budget_ms=1e-6))
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["full", "full/thesis.tex"]


def test_a_line_of_the_journal_survives_json(finished):
    for made in finished[1]:
        read = Round.of_line(json.loads(json.dumps(made.line())))
        assert read.line() == made.line()


# --- any budget on the way ---------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    return Library.of(Settings(data_dir=tmp_path / "library"))


@pytest.mark.parametrize("share", [0.99, 0.8, 0.61, 0.45])
def test_any_budget_on_the_way_is_the_last_round_above_it_cut_by_the_next_ones_saliency(finished, library, share):
    folder, rounds = finished
    found, choice, latency = pick(folder, library, lambda full_ms: share * full_ms)
    assert latency.target.is_analytic
    assert choice.latency_ms == estimate(MACS, found.arch).latency_ms <= share * FULL
    index = next(made.round for made in rounds if made.latency_ms <= share * FULL)
    before = load_checkpoint(folder / (f"round-{index - 1:03}.safetensors" if index else "start.safetensors"))
    assert found.lineage[:-1] == before.lineage
    saliency = load_saliency(folder / f"round-{index:03}.saliency.safetensors")
    expected = shrink(before.model(), saliency.keep(choice.sizes()))
    assert_same_state(found.weights, expected.state_dict())


def test_the_budget_of_a_round_is_the_cut_that_the_round_made(finished, library):
    folder, rounds = finished
    for made in rounds:
        found, _, _ = pick(folder, library, lambda _, made=made: made.budget_ms)
        assert found.arch == made.arch


def test_a_budget_below_where_the_run_has_got_to_is_refused(finished, library):
    with pytest.raises(BudgetError, match=r"went from .* to .* on macs.*, a budget of .* is below that"):
        pick(finished[0], library, lambda full_ms: 0.1 * full_ms)


def test_a_budget_that_the_whole_model_meets_is_refused(finished, library):
    with pytest.raises(BudgetError, match="needs no search"):
        pick(finished[0], library, lambda full_ms: 1.5 * full_ms)


@pytest.mark.parametrize("content", [None, b"", b"{}\n{}\n", b'{"target": 3}\n'])
def test_a_folder_without_a_run_is_refused(tmp_path, library, content):
    if content is not None:
        (tmp_path / "run.jsonl").write_bytes(content)
    with pytest.raises(VitfitError, match=r"no journal|no run|no checkpoint"):
        pick(tmp_path, library, lambda full_ms: full_ms / 2)


# --- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def command(run_cli, monkeypatch, tmp_path, dense):
    monkeypatch.setenv("VITFIT_DATA_DIR", str(tmp_path / "library"))
    save_checkpoint(dense, tmp_path / "dense.safetensors")

    def prune(*options):
        given = ["-d", "digits", "-t", "macs", "--speedup", 2, "--batches", 1, "--batch-size", 8]
        return run_cli("prune", tmp_path / "dense.safetensors", *given, "-o", tmp_path / "cut.safetensors", *options)

    return prune


def test_from_the_command_line_the_budget_is_all_that_has_to_be_said(command, run_cli, tmp_path):
    status, out, err = command("--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["latency_ms"] <= document["budget_ms"] == pytest.approx(FULL / 2)
    assert document["rounds"] == 10
    assert document["eta"] > 0
    assert "10 rounds by nvit, greedy" in err
    assert load_checkpoint(tmp_path / "cut.safetensors").arch.id == document["id"]
    status, out, err = run_cli("pick", document["run"], "--speedup", 1.5, "-o", tmp_path / "p.safetensors", "--json")
    assert status == 0, err
    assert estimate(MACS, load_checkpoint(tmp_path / "p.safetensors").arch).latency_ms <= FULL / 1.5


def test_the_command_line_takes_the_whole_method(command, tmp_path):
    options = ["--rounds", 2, "--interval", 1, "--eta", 0.5, "--smoothing", 0.9, "--protect", "1", "--lr", 1e-4]
    status, _, err = command(*options, "--min", "mlp_dim=32", "--run", tmp_path / "elsewhere")
    assert status == 0, err
    small = load_checkpoint(tmp_path / "cut.safetensors")
    assert small.arch.blocks[1] == ARCH.blocks[1]
    assert small.arch.blocks[0].mlp_dim >= 32
    step = small.lineage[-1]
    assert step["schedule"] == {"rounds": 2, "interval": 1, "smoothing": 0.9}
    assert (step["eta"], step["recipe"]["lr"]) == (0.5, 1e-4)
    assert (tmp_path / "elsewhere" / "run.jsonl").exists()


@pytest.mark.slow
def test_under_torchrun_two_processes_prune_one_model_and_one_of_them_writes(command, tmp_path):
    """The batches of scoring and the rows of training are shared; the order of additions is all that differs."""
    few = ("--rounds", 3, "--interval", 2, "--batches", 4, "--lr", 1e-4)
    assert command(*few)[0] == 0
    alone = load_checkpoint(tmp_path / "cut.safetensors")
    given = ("-d", "digits", "-t", "macs", "--speedup", 2, "--batch-size", 8, *few)
    done = torchrun("prune", tmp_path / "dense.safetensors", *given, "-o", tmp_path / "shared.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote ") == 1
    shared = load_checkpoint(tmp_path / "shared.safetensors")
    assert shared.arch == alone.arch
    for name, tensor in shared.weights.items():
        torch.testing.assert_close(tensor, alone.weights[name], rtol=1e-3, atol=1e-4)
    again = torchrun("prune", tmp_path / "dense.safetensors", *given, "-o", tmp_path / "shared.safetensors")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("(done before)") == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--selection", "frontier", "--eta", 1], "eta is the latency weight of the greedy selection"),
        (["--smoothing", 1], "smoothing must be from 0 to below 1"),
        (["--recipe", "fast"], "unknown recipe 'fast'"),
        (["--protect", "7"], "there is no block 7"),
        (["--set", "ema=0.9"], "ema is for a fine-tune"),
    ],
)
def test_what_makes_no_run_leaves_no_file(command, tmp_path, options, says):
    status, _, err = command(*options)
    assert status == 1
    assert says in err
    assert not (tmp_path / "cut.safetensors").exists()
    assert not list(tmp_path.glob("*.run"))
