"""Losses have closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from recovery.losses import cross_entropy, distilled_loss, soft_distillation
from tests.cases import CLASS_TOKEN, build, generator, images
from vit.errors import VitfitError

TEMPERATURES = [0.5, 1.0, 2.0, 7.0]


def logits(seed, shape=(4, 5)):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 4, 2])


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_distillation_is_the_divergence_of_the_softened_distributions_times_the_temperature_squared(temperature):
    student, teacher = logits(0), logits(1)
    total = 0.0
    for row in range(4):
        p = [math.exp(float(x) / temperature) for x in teacher[row]]
        q = [math.exp(float(x) / temperature) for x in student[row]]
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    expected = torch.tensor(temperature**2 * total / 4, dtype=torch.float64)
    torch.testing.assert_close(soft_distillation(student, teacher, temperature), expected)


def test_of_two_classes_soft_distillation_is_a_divergence_of_two_coins():
    """softmax([x, 0]) is (σ(x), 1 - σ(x))."""
    p, q = 0.8, 0.3
    teacher, student = (torch.tensor([[math.log(x / (1 - x)), 0.0]], dtype=torch.float64) for x in (p, q))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(soft_distillation(student, teacher, 1.0)) == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_distillation_is_zero_without_gradient_where_the_distributions_are_equal(temperature, shift):
    teacher = logits(1)
    student = (teacher + shift).requires_grad_()
    value = soft_distillation(student, teacher, temperature)
    value.backward()
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_its_gradient_is_temperature_times_the_difference_of_the_softened_probabilities(temperature):
    student, teacher = logits(0).requires_grad_(), logits(1)
    soft_distillation(student, teacher, temperature).backward()
    difference = F.softmax(student.detach() / temperature, -1) - F.softmax(teacher / temperature, -1)
    torch.testing.assert_close(student.grad, temperature * difference / 4)


def test_at_high_temperatures_the_gradient_no_longer_depends_on_it():
    """Then it is the difference of the centred logits over the number of classes (Hinton et al. 2015, Eq. 4)."""
    student, teacher = logits(0), logits(1)
    expected = ((student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))) / 5 / 4
    for temperature in (1e3, 1e4):
        leaf = student.clone().requires_grad_()
        soft_distillation(leaf, teacher, temperature).backward()
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-2, atol=1e-3)  # a limit, first order in 1 / temperature


def test_cross_entropy_is_the_mean_of_minus_the_log_probability_of_the_label():
    model, batch = build(CLASS_TOKEN), images(CLASS_TOKEN)
    probabilities = model(batch).softmax(-1)
    expected = -sum(probabilities[row, label].log() for row, label in enumerate(LABELS)) / 3
    torch.testing.assert_close(cross_entropy(model, batch, LABELS), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_distilled_loss_is_the_weighted_sum_of_both(weight, smoothing):
    student, teacher, batch = build(CLASS_TOKEN, 0), build(CLASS_TOKEN, 1), images(CLASS_TOKEN)
    log_probabilities = student(batch).log_softmax(-1)
    target = (1 - smoothing) * F.one_hot(LABELS, 5) + smoothing / 5
    supervised = -(target * log_probabilities).sum(-1).mean()
    soft = soft_distillation(student(batch), teacher(batch), 3.0)
    found = distilled_loss(teacher, weight, 3.0, smoothing)(student, batch, LABELS)
    torch.testing.assert_close(found, (1 - weight) * supervised + weight * soft)


def test_without_a_teacher_only_the_labels_count():
    student, batch = build(CLASS_TOKEN), images(CLASS_TOKEN)
    found = distilled_loss(None, 0.9, 2.0, 0.0)(student, batch, LABELS)
    torch.testing.assert_close(found, cross_entropy(student, batch, LABELS))


def test_the_teacher_gets_no_gradient():
    student, teacher = build(CLASS_TOKEN, 0), build(CLASS_TOKEN, 1)
    distilled_loss(teacher, 0.5, 2.0, 0.0)(student, images(CLASS_TOKEN), LABELS).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_zero_to_one_is_refused(weight):
    with pytest.raises(VitfitError, match="distillation weight must be from 0 to 1"):
        distilled_loss(None, weight, 2.0, 0.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature):
    with pytest.raises(VitfitError, match="distillation temperature must be positive"):
        distilled_loss(None, 0.5, temperature, 0.0)
