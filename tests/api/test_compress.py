"""compress: one pass over images, then any budget, without training."""

import copy
import json

import pytest
import torch

from api.compress import Calibration, compress, fit, in_its_basis, score
from api.compress_job import calibration_of
from api.compress_report import paths_beside
from latency.analytic import MacsModel
from latency.estimate import estimate
from recovery.data import load_dataset
from recovery.loop import Recipe, accuracy, finetune
from search.constraints import Constraints
from search.errors import BudgetError
from search.frontier import Frontier
from tests.cases import CASES, assert_same_state, build, images
from vit.architecture import Architecture, BlockShape, Unit
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.errors import CalibrationError, UnsupportedModelError
from vit.model import VisionTransformer
from vit.surgery import shrink

FINE = Constraints(multiples=dict.fromkeys(Unit, 1))
DIGITS = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    in_chans=1,
    num_classes=10,
    embed_dim=32,
    blocks=(BlockShape(2, 16, 16, 64),) * 2,
)


@pytest.fixture(scope="module")
def trained():
    """A small model that knows digits, and the digits."""
    data = load_dataset("digits")
    torch.manual_seed(0)
    model = VisionTransformer(DIGITS)
    torch.nn.init.normal_(model.pos_embed, std=0.02)
    for _ in finetune(model, data, Recipe(steps=600, lr=4e-3, warmup=20, distillation=0.0)):
        pass
    return model, data


def budget_for(arch, share):
    return share * estimate(MacsModel(arch), arch).latency_ms


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].num_classes])
def test_every_kind_of_model_is_fitted_to_a_budget_and_keeps_its_norm(name):
    arch = CASES[name]
    model = build(arch, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    small = compress(
        model, images(arch, 40, dtype=torch.float32), MacsModel(arch), budget_for(arch, 0.5), constraints=FINE
    )
    assert_same_state(model.state_dict(), before)
    assert small.model.arch == small.choice.arch
    assert small.model.arch.norm == arch.norm
    assert estimate(MacsModel(arch), small.model.arch).latency_ms == pytest.approx(small.choice.latency_ms)
    assert small.choice.latency_ms <= small.choice.budget_ms
    assert small.choice.gap >= 0
    assert torch.isfinite(small.model(images(arch, 2, dtype=torch.float32))).all()
    assert small.refits[-1].done == small.refits[-1].total == len(small.refits)


def test_a_third_of_the_macs_does_the_task_without_training_and_the_refit_has_a_share_in_it(trained):
    model, data = trained
    given = calibration_of(data, 1024, 64, 0)
    based = in_its_basis(model, given)
    saliency = score(based.model, given)
    choice = Frontier(saliency, MacsModel(DIGITS)).best(budget_for(DIGITS, 0.33))
    cut = shrink(based.model, saliency.keep(choice.sizes()))
    small = fit(based, saliency, choice, given)
    dense, unfitted, refitted = (accuracy(each, data.test) for each in (model, cut, small.model))
    assert dense > 0.8
    assert refitted > dense - 0.05
    assert dense - refitted < (dense - unfitted) / 2


def test_basis_and_saliency_answer_every_budget(trained):
    model, data = trained
    given = calibration_of(data, 256, 64, 0)
    based = in_its_basis(model, given)
    saliency = score(based.model, given)
    frontier = Frontier(saliency, MacsModel(DIGITS))
    for share in (0.5, 0.3):
        step = fit(based, saliency, frontier.best(budget_for(DIGITS, share)), given)
        at_once = compress(model, given, MacsModel(DIGITS), budget_for(DIGITS, share))
        assert step.choice == at_once.choice
        assert_same_state(step.model.state_dict(), at_once.model.state_dict())


def test_a_bfloat16_model_is_compressed_in_its_type():
    arch = CASES["class_token"]
    small = compress(
        build(arch, dtype=torch.bfloat16),
        images(arch, 40, dtype=torch.float32),
        MacsModel(arch),
        budget_for(arch, 0.5),
        constraints=FINE,
    )
    assert {parameter.dtype for parameter in small.model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(small.model(images(arch, 2, dtype=torch.bfloat16))).all()


def test_labels_are_not_read_unless_they_are_asked_for(trained):
    model, data = trained
    given = calibration_of(data, 128, 64, 0)

    def shuffled():
        for pictures, labels in given.batches():
            yield pictures, (labels + 3) % 10

    budget, other = budget_for(DIGITS, 0.5), Calibration(shuffled, given.images)
    own, again = (compress(model, each, MacsModel(DIGITS), budget) for each in (given, other))
    assert_same_state(own.model.state_dict(), again.model.state_dict())
    read = compress(model, calibration_of(data, 128, 64, 0, "data"), MacsModel(DIGITS), budget)
    assert any(not torch.equal(a, b) for a, b in zip(own.model.parameters(), read.model.parameters(), strict=False))


def test_few_images_are_a_warning_that_says_how_many_would_do(trained):
    model, data = trained
    few = compress(model, calibration_of(data, 8, 64, 0), MacsModel(DIGITS), budget_for(DIGITS, 0.5))
    (warning,) = few.warnings
    assert warning.startswith("8 calibration images are fewer than the classifier has inputs")
    enough = compress(model, calibration_of(data, 64, 64, 0), MacsModel(DIGITS), budget_for(DIGITS, 0.5))
    assert enough.warnings == ()


def test_calibration_images_are_each_given_once_the_same_every_time():
    data = load_dataset("digits")
    given = calibration_of(data, 100, 64, 3)
    first, second = ([pictures for pictures, _ in given.batches()] for _ in range(2))
    assert given.images == sum(map(len, first)) == 100
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(torch.cat(first).flatten(1).unique(dim=0)) > 95  # digits holds some twins
    assert calibration_of(data, 10**6, 64, 0).images == 1297 // 64 * 64


@pytest.mark.parametrize("share", [1e-6, 1.1])
def test_a_budget_outside_the_frontier_says_its_ends(trained, share):
    model, data = trained
    with pytest.raises(BudgetError, match="ask for"):
        compress(model, calibration_of(data, 64, 64, 0), MacsModel(DIGITS), budget_for(DIGITS, share))


def test_images_that_teach_nothing_and_models_without_a_classifier_are_refused(trained):
    model, _ = trained
    macs, budget = MacsModel(DIGITS), budget_for(DIGITS, 0.5)
    with pytest.raises(CalibrationError, match="no calibration image"):
        compress(model, torch.zeros(0, 1, 16, 16), macs, budget)
    with pytest.raises(CalibrationError, match="flat"):
        compress(model, torch.ones(8, 1, 16, 16), macs, budget)
    broken = torch.randn(8, 1, 16, 16)
    broken[5, 0, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="image 5"):
        compress(model, broken, macs, budget)
    features = build(CASES["features"], dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match="classifier"):
        compress(features, images(CASES["features"], 8, dtype=torch.float32), MacsModel(CASES["features"]), 0.001)


# --- on the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    save_checkpoint(Checkpoint.of(trained[0]), path)
    return path


def test_the_command_writes_checkpoint_exports_and_report(run_cli, dense, tmp_path):
    out = tmp_path / "small.safetensors"
    status, printed, _ = run_cli(
        "compress", dense, "--data", "digits", "-t", "macs", "--speedup", "3", "--images", "256", "-o", out, "--json"
    )
    assert status == 0
    report = json.loads(printed)
    small = load_checkpoint(out)
    assert all(path.exists() for path in paths_beside(out).values())
    assert report["after"]["architecture"] == small.arch.to_dict()
    assert small.lineage[-1]["step"] == "compress"
    assert report["latency_ms"] <= report["budget_ms"] == pytest.approx(report["full_ms"] / 3)
    assert report["accuracy"]["after"] == pytest.approx(accuracy(small.model(), load_dataset("digits").test))
    assert report["measured"] is None
    stored = json.loads(paths_beside(out)["report"].read_text())
    assert stored["after"] == report["after"]


def test_what_was_compressed_is_in_the_catalogue_with_its_accuracy(run_cli, dense, tmp_path, monkeypatch):
    common = ("--data", "digits", "-t", "macs", "--speedup", "3", "--images", "128", "--no-exports", "--seed", "7")
    out = tmp_path / "small.safetensors"
    status, printed, _ = run_cli("compress", dense, *common, "-o", out, "--json")
    assert status == 0
    report = json.loads(printed)
    status, printed, _ = run_cli("catalogue", "list", "-d", "digits", "--known", "--json")
    (found,) = json.loads(printed)
    assert (found["name"], found["kind"]) == ("small", "compressed")
    assert found["architecture_id"] == report["after"]["id"]
    (known,) = found["accuracies"]
    assert known["value"] == report["accuracy"]["after"]
    assert (known["evidence"], known["seeds"], known["images"]) == ("measured", [7], report["accuracy"]["images"])
    assert "128 images, without training" in known["recipe"]

    monkeypatch.setenv("VITFIT_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    status, _, err = run_cli("compress", dense, *common, "-o", tmp_path / "other.safetensors")
    assert status == 0
    assert "other.safetensors is not in the catalogue: the database" in err.replace("\n", " ")
    assert (tmp_path / "other.safetensors").exists()


def test_a_short_fine_tune_comes_closer_to_the_uncut_model(run_cli, dense, trained, tmp_path):
    model, data = trained
    common = ("--data", "digits", "-t", "macs", "--speedup", "5", "--images", "256", "--no-exports", "--json")
    pictures = data.test.images

    def distance(name, *options):
        status, _, _ = run_cli("compress", dense, *common, *options, "-o", tmp_path / name)
        assert status == 0
        small = load_checkpoint(tmp_path / name).model()
        with torch.no_grad():
            odds, wanted = small(pictures).log_softmax(dim=1), model(pictures).log_softmax(dim=1)
        return torch.nn.functional.kl_div(odds, wanted, log_target=True, reduction="batchmean")

    assert distance("tuned.safetensors", "--finetune", "40") < distance("plain.safetensors")


def test_several_targets_are_all_met_by_one_model(run_cli, dense, tmp_path):
    full = estimate(MacsModel(DIGITS), DIGITS).latency_ms
    common = ("--data", "digits", "--images", "128", "--no-exports", "-o", tmp_path / "small.safetensors", "--json")
    budgets = ("-t", f"macs={0.5 * full}", "-t", f"macs={0.4 * full}")
    status, printed, _ = run_cli("compress", dense, *common, *budgets)
    assert status == 0
    report = json.loads(printed)
    (other,) = report["also"]
    assert report["budget_ms"] == pytest.approx(0.5 * full)
    assert other["latency_ms"] == report["latency_ms"] <= other["budget_ms"] == pytest.approx(0.4 * full)
    status, _, complaint = run_cli("compress", dense, *common, *budgets, "--speedup", "2")
    assert status == 2
    assert "each target has its own budget" in complaint


def test_rebased_and_scored_once_every_budget_skips_both(run_cli, dense, tmp_path):
    basis, scores = tmp_path / "basis.safetensors", tmp_path / "scores.safetensors"
    run_cli("rebase", dense, "--data", "digits", "--images", "128", "-o", basis)
    run_cli("saliency", basis, "--data", "digits", "-c", "gates", "--labels", "model", "--batches", "2", "-o", scores)
    common = ("--data", "digits", "-t", "macs", "--speedup", "2", "--images", "128", "--no-exports", "--json")
    _, printed, _ = run_cli("compress", basis, *common, "--saliency", scores, "-o", tmp_path / "small.safetensors")
    report = json.loads(printed)
    assert report["latency_ms"] <= report["budget_ms"]
    assert load_checkpoint(tmp_path / "small.safetensors").arch.norm == "layer"
    for model in (dense, tmp_path / "small.safetensors"):
        status, _, complaint = run_cli(
            "compress", model, *common, "--saliency", scores, "-o", tmp_path / "other.safetensors"
        )
        assert status == 1
        assert "vitfit rebase" in complaint
        assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_same_sizes_are_chosen_and_the_weights_stay_there(trained):
    model, data = trained
    given, budget = calibration_of(data, 256, 64, 0, "data"), budget_for(DIGITS, 0.4)
    on_cpu = compress(model, given, MacsModel(DIGITS), budget)
    on_gpu = compress(copy.deepcopy(model).cuda(), given, MacsModel(DIGITS), budget)
    assert on_gpu.choice.arch == on_cpu.choice.arch
    assert all(parameter.is_cuda for parameter in on_gpu.model.parameters())
    pictures = data.test.images[:50]
    found, expected = on_gpu.model(pictures.cuda()).cpu(), on_cpu.model(pictures)
    assert (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.9
