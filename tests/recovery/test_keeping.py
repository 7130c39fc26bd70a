"""The best weights are what is left, and a run that was killed or shared ends as it would have."""

import copy
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recovery.data import Dataset
from recovery.errors import TrainingError
from recovery.loop import Trainer, accuracy, finetune
from tests.cases import assert_same_state
from tests.recovery.toys import PLAIN, RICH, fresh, stripes
from tests.recovery.toys import main as run_here

ROOT = Path(__file__).parents[2]
DATA = stripes()


def run(model, recipe, data=DATA, teacher=None, **how):
    return list(finetune(model, data, recipe, teacher, **how))


def learned(seed=0):
    model = fresh(seed=seed)
    run(model, replace(PLAIN, steps=40))
    return model


# --- the best weights --------------------------------------------------------------------------------------------


def test_training_that_only_harms_leaves_the_weights_that_it_began_with():
    model = learned()
    before = copy.deepcopy(model.state_dict())
    recipe = replace(PLAIN, lr=3.0, steps=12, warmup=0, clip_grad=0.0, validation=0.25, evaluate_every=4)
    reports = run(model, recipe)
    judged = [report for report in reports if report.accuracy is not None]
    assert [report.step for report in judged] == [4, 8, 12]
    assert all(report.accuracy < report.best and not report.kept for report in judged)
    assert_same_state(model.state_dict(), before)
    assert not model.training


def test_what_is_left_is_the_best_of_all_weights_and_means_that_were_looked_at():
    """Looked at after every step by hand, with a Trainer of the same recipe."""
    recipe = replace(PLAIN, validation=0.25, evaluate_every=1, report_every=1, ema=0.7, steps=30, lr=1e-2)
    held = DATA.hold_out(0.25, recipe.seed)
    trainer = Trainer(fresh(), held, recipe)
    seen = [(accuracy(trainer.model, held.validation), copy.deepcopy(trainer.model.state_dict()))]
    both = [seen[0][0]]
    for step in range(1, 31):
        for _ in trainer.train(step):
            pass
        looks = [(accuracy(m, held.validation), m.state_dict()) for m in (trainer.model, trainer.averaged)]
        found, state = max(looks, key=lambda look: look[0])
        both.append(found)
        seen.append((found, copy.deepcopy(state)))
    best = max(found for found, _ in seen)
    expected = [state for found, state in seen if found == best][-1]
    model = fresh()
    reports = run(model, recipe)
    assert [report.accuracy for report in reports] == both[1:]
    assert [report.best for report in reports] == [max(both[: step + 1]) for step in range(1, 31)]
    assert [report.kept for report in reports] == [both[step] >= max(both[:step]) for step in range(1, 31)]
    assert_same_state(model.state_dict(), expected)


def test_images_that_judge_are_not_trained_with_and_without_a_share_all_are_trained_with():
    class Watched(Dataset):
        def hold_out(self, share, seed):
            held = super().hold_out(share, seed)
            watched.append(held)
            return held

    watched = []
    data = Watched(**vars(DATA))
    run(fresh(), replace(PLAIN, steps=2, validation=0.25), data)
    judge = {tuple(image.flatten().tolist()) for image in watched[0].validation.images}
    seen = {tuple(image.flatten().tolist()) for image in watched[0].train.images}
    assert (len(judge), len(seen)) == (24, 72)
    assert not judge & seen
    reports = run(fresh(), replace(PLAIN, steps=2), data)
    assert len(watched) == 1
    assert [report.accuracy for report in reports] == [None]


def test_without_images_to_judge_by_the_running_mean_is_left_and_without_one_the_last_weights():
    for recipe in (PLAIN, replace(PLAIN, ema=0.7)):
        model, trainer = fresh(), Trainer(fresh(), DATA, recipe)
        run(model, recipe)
        for _ in trainer.train(12):
            pass
        assert_same_state(model.state_dict(), trainer.averaged.state_dict())


def test_a_failed_step_leaves_the_best_weights_and_says_so():
    model = learned()
    before = copy.deepcopy(model.state_dict())
    held = DATA.hold_out(0.25, 0)
    held.train.images[40:] = float("nan")
    with pytest.raises(
        TrainingError, match=r"the loss is nan .* at step \d; the model holds the best weights, of step"
    ):
        run(model, replace(PLAIN, lr=3.0, clip_grad=0.0, warmup=0, validation=0.25), held)
    assert_same_state(model.state_dict(), before)


# --- going on ----------------------------------------------------------------------------------------------------


def start(*arguments):
    command = [sys.executable, "-m", "tests.recovery.toys", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def finished(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return out.splitlines()


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_bit_equal_to_one_that_was_not(tmp_path, capsys, one_thread):
    run_file, weights = tmp_path / "a.run", tmp_path / "killed.pt"
    process = start("rich", weights, run_file)
    for line in process.stdout:
        if line.startswith("8 "):  # its evaluations at 3 and 6 are behind it
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert run_file.exists()
    assert not weights.exists()
    rest = finished(start("rich", weights, run_file))
    assert 7 <= int(rest[0].split()[0]) <= 10
    run_here("rich", str(tmp_path / "whole.pt"), str(tmp_path / "b.run"))
    whole = [line for line in capsys.readouterr().out.splitlines() if line]
    assert rest[-1] == whole[-1]
    assert_same_state(torch.load(weights), torch.load(tmp_path / "whole.pt"))


@pytest.fixture
def half_done(tmp_path):
    """A run file of step 5."""
    path, steps = tmp_path / "a.run", finetune(fresh(), DATA, RICH, resume=tmp_path / "a.run", save_every=5)
    while not path.exists():
        next(steps)
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": replace(RICH, lr=1e-3)}, "a run with lr 0.003, now it is 0.001"),
        ({"recipe": replace(RICH, drop_path=0.0)}, "a run with drop_path 0.4, now it is 0.0"),
        ({"model": fresh(seed=1)}, "a run with model "),
        ({"data": stripes(seed=1)}, "a run with data 'stripes:96-0.3-0', now it is 'stripes:96-0.3-1'"),
        ({"teacher": fresh()}, "a run with teacher '', now it is "),
    ],
)
def test_a_run_with_other_arguments_is_refused_with_the_one_that_differs(half_done, changes, says):
    with pytest.raises(TrainingError, match=says):
        run(**{"model": fresh(), "recipe": RICH, **changes}, resume=half_done)


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_file_that_is_no_run_is_refused(half_done, content):
    half_done.write_bytes(half_done.read_bytes()[:2000] if content is None else content)
    with pytest.raises(TrainingError, match="holds no training run that can go on"):
        run(fresh(), RICH, resume=half_done)


# --- several processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_as_one_does_on_the_whole_batch(tmp_path, capsys, one_thread):
    files = [tmp_path / "0.pt", tmp_path / "1.pt"]
    both = [start("shared", files[rank], "", tmp_path / "store", rank, 2) for rank in range(2)]
    first, second = (finished(process) for process in both)
    assert first == second
    run_here("shared", str(tmp_path / "one.pt"))
    alone = [line for line in capsys.readouterr().out.splitlines() if line]
    for shared, single in zip(first, alone, strict=True):
        assert shared.split()[::2] == single.split()[::2]  # step, accuracy
        assert float(shared.split()[1]) == pytest.approx(float(single.split()[1]), rel=1e-4)
    expected = torch.load(tmp_path / "one.pt")
    for file in files:
        for name, tensor in torch.load(file).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)  # float32, added in another order
