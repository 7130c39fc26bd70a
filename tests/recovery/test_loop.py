"""Fine-tuning learns, repeats itself for a seed, follows its teacher, and stops in time."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from recovery.data import DataError, Dataset, TensorSplit
from recovery.loop import Recipe, TrainingError, TrainReport, accuracy, finetune
from tests.cases import CLASS_TOKEN, assert_same_state, build, generator
from vit.model import VisionTransformer, initialise

ARCH = CLASS_TOKEN.replace(num_classes=3, in_chans=1, image_size=(8, 8), patch_size=(4, 4))
PLAIN = Recipe(steps=30, batch_size=16, lr=3e-3, label_smoothing=0.0, distillation=0.0, report_every=5, warmup=3)


def data_of(images, labels, classes=3):
    split = TensorSplit(images, labels)
    return Dataset("made up", split, split, classes, images.shape[1], tuple(images.shape[2:]), "x")


def stripes(count=96, noise=0.3):
    """Rows, columns or a chequer board, in noise."""
    labels = torch.arange(count) % 3
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    patterns = torch.stack([rows % 2, columns % 2, (rows + columns) % 2]).float() - 0.5
    return data_of(patterns[labels][:, None] + noise * torch.randn(count, 1, 8, 8, generator=generator(0)), labels)


DATA = stripes()


def fresh(seed=0):
    return initialise(VisionTransformer(ARCH), generator(seed))


def run(model, data=DATA, recipe=PLAIN, teacher=None):
    return list(finetune(model, data, recipe, teacher))


def changed(**how):
    return Recipe(**{**PLAIN.to_dict(), **how})


def test_the_loss_falls_and_the_model_learns():
    model = fresh()
    before = accuracy(model, DATA.test)
    reports = run(model, recipe=changed(steps=60))
    assert reports[-1].loss < 0.3 * reports[0].loss
    assert before < 0.7 < 0.95 < accuracy(model, DATA.test)


def test_a_seed_decides_everything():
    first, second, other = fresh(), fresh(), fresh()
    assert run(first) == run(second)
    assert_same_state(first.state_dict(), second.state_dict())
    run(other, recipe=changed(seed=1))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_training_does_not_depend_on_the_global_random_state():
    first, second = fresh(), fresh()
    run(first)
    torch.randn(10)
    run(second)
    assert_same_state(first.state_dict(), second.state_dict())


@pytest.mark.parametrize(
    ("steps", "every", "at"), [(10, 4, [4, 8, 10]), (10, 5, [5, 10]), (3, 99, [3]), (2, 1, [1, 2])]
)
def test_reports_come_every_few_steps_and_at_the_end(steps, every, at):
    reports = run(fresh(), recipe=changed(steps=steps, report_every=every))
    assert [(report.step, report.steps) for report in reports] == [(step, steps) for step in at]


def test_a_reported_loss_is_the_mean_since_the_last_report():
    single = [report.loss for report in run(fresh(), recipe=changed(steps=9, report_every=1))]
    third = [report.loss for report in run(fresh(), recipe=changed(steps=9, report_every=3))]
    torch.testing.assert_close(torch.tensor(third), torch.tensor(single).reshape(3, 3).mean(1))


@pytest.mark.parametrize(
    ("steps", "warmup", "used"), [(40, 8, 8), (40, 0, 0), (40, 1, 1), (20, 10, 4), (1, 10, 0), (4, 9, 0)]
)
def test_the_learning_rate_rises_linearly_to_its_peak_and_falls_as_a_cosine_to_almost_zero(steps, warmup, used):
    recipe = changed(steps=steps, warmup=warmup, report_every=1, lr=2e-3)
    rates = [report.lr for report in run(fresh(), recipe=recipe)]
    assert max(rates) == pytest.approx(recipe.lr)
    falling = [recipe.lr * (1 + math.cos(math.pi * t / (steps - used))) / 2 for t in range(steps - used)]
    rising = [recipe.lr / used * (1 + t * (used - 1) / used) for t in range(used)]
    assert rates == pytest.approx(rising + falling)


def test_with_distillation_weight_one_the_student_is_drawn_to_the_teacher_whatever_the_labels():
    teacher, student = build(ARCH, seed=1, dtype=torch.float32), fresh()
    wrong = data_of(DATA.train.images, torch.zeros(96, dtype=torch.long))
    before = copy.deepcopy(teacher.state_dict())
    recipe = changed(steps=150, distillation=1.0, lr=5e-3)

    @torch.no_grad()
    def distance():
        both = [model(DATA.train.images).log_softmax(-1) for model in (student.eval(), teacher)]
        return float(F.kl_div(*both, log_target=True, reduction="batchmean"))

    start = distance()
    run(student, wrong, recipe, teacher)
    assert distance() < 0.3 * start
    assert_same_state(teacher.state_dict(), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_model_is_trained_in_place_and_left_in_eval_mode():
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    run(model, recipe=changed(steps=2))
    assert not model.training
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Scripted:
    """A split of given batches, again and again."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return sum(len(labels) for _, labels in self.batches)

    def shuffled(self, batch_size, seed, *, augment, start=0, share=(0, 1)):
        yield from self.batches[start:]

    def ordered(self, batch_size):
        yield from self.batches


def scripted(*batches):
    split = Scripted(*batches)
    return Dataset("scripted", split, split, 3, 1, (8, 8), "x")


GOOD = (DATA.train.images[:8], DATA.train.labels[:8])


def test_a_loss_that_is_nan_stops_training_with_the_last_good_weights():
    bad = (torch.full_like(GOOD[0], float("nan")), GOOD[1])
    model, reference = fresh(), fresh()
    recipe = changed(steps=10, report_every=1, batch_size=8)
    reports = []
    with pytest.raises(TrainingError, match=r"the loss is nan .* at step 4; the model holds the weights of step 3"):
        reports.extend(finetune(model, scripted(GOOD, GOOD, GOOD, bad), recipe))
    steps = finetune(reference, scripted(GOOD), recipe)
    for _ in range(3):
        next(steps)
    assert_same_state(model.state_dict(), reference.state_dict())
    assert not model.training


def test_a_gradient_that_is_not_finite_stops_training_with_the_last_good_weights():
    """Images of one value leave LayerNorm a variance of zero; with eps next to nothing its slope overflows."""
    model = VisionTransformer(ARCH.replace(norm_eps=1e-38))
    initialise(model, generator(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"):
                parameter.zero_()
    before = copy.deepcopy(model.state_dict())
    assert torch.isfinite(F.cross_entropy(model(GOOD[0]), GOOD[1]))
    with pytest.raises(
        TrainingError, match=r"gradient's norm (nan|inf) at step 1; the model holds the weights of step 0"
    ):
        run(model, scripted(GOOD))
    assert_same_state(model.state_dict(), before)


def test_clip_grad_is_the_largest_norm_of_a_gradient_that_is_applied(monkeypatch):
    seen = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, largest):
        parameters = list(parameters)
        norm = clip(parameters, largest)
        seen.append(float(torch.stack([parameter.grad.norm() for parameter in parameters]).norm()))
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    run(fresh(), recipe=changed(steps=5, clip_grad=0.01))
    assert len(seen) == 5
    assert max(seen) <= 0.01 * (1 + 1e-4)


def test_data_that_do_not_fit_the_model_are_refused():
    with pytest.raises(DataError, match="num_classes"):
        run(fresh(), data_of(DATA.train.images, DATA.train.labels, classes=4))


@pytest.mark.parametrize("name", ["steps", "batch_size", "report_every"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused_by_name(name, value):
    with pytest.raises(TrainingError, match=f"{name} must be at least 1, got {value}"):
        changed(**{name: value})


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_is_no_positive_number_is_refused(lr):
    with pytest.raises(TrainingError, match="lr must be a positive number"):
        changed(lr=lr)


def test_a_recipe_survives_its_document():
    assert Recipe(**PLAIN.to_dict()) == PLAIN


class Oracle(torch.nn.Module):
    """Says that an image's class is its first pixel."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        assert not self.training
        return F.one_hot(images[:, 0, 0, 0].long(), 3).float() * self.weight


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("training", [True, False])
def test_accuracy_is_the_share_of_images_whose_largest_logit_is_the_label(batch_size, training):
    said = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    labels = torch.tensor([0, 1, 2, 1, 1, 2, 2, 1, 0, 0])
    model = Oracle().train(training)
    images = said.float().reshape(10, 1, 1, 1)
    assert accuracy(model, TensorSplit(images, labels), batch_size) == 7 / 10
    assert accuracy(model, TensorSplit(images, said), batch_size) == 1.0
    assert accuracy(model, TensorSplit(images, (said + 1) % 3), batch_size) == 0.0
    assert model.training is training


def test_a_report_is_a_plain_value():
    assert TrainReport(1, 2, 0.5, 0.1) == TrainReport(1, 2, 0.5, 0.1)
