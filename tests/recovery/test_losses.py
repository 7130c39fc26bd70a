"""Losses have closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from recovery.losses import cross_entropy, soft_distillation, training_loss
from recovery.recipes import Recipe
from tests.cases import CLASS_TOKEN, build, generator, images

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


def recipe(**numbers):
    return Recipe(**{"steps": 1, "label_smoothing": 0.0, "distillation": 0.0, "temperature": 3.0, **numbers})


def slow_cross_entropy(logits, target):
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


def one_hot(labels, smoothing=0.0):
    return (1 - smoothing) * F.one_hot(labels, 5).double() + smoothing / 5


Y = torch.tensor([0, 4, 2, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("soft", "hard"), [(0.0, 0.0), (0.25, 0.0), (1.0, 0.0), (0.0, 0.5), (0.2, 0.4), (0.0, 1.0)])
def test_the_training_loss_is_the_weighted_sum_of_labels_divergence_and_decisions(soft, hard, smoothing):
    student, uncut, decisive = logits(0), logits(1), logits(2)
    decisions = torch.tensor([max(range(5), key=lambda c: decisive[row, c]) for row in range(4)])
    expected = (1 - soft - hard) * slow_cross_entropy(student, one_hot(Y, smoothing))
    expected += soft * soft_distillation(student, uncut, 3.0)
    expected += hard * slow_cross_entropy(student, one_hot(decisions))
    numbers = recipe(distillation=soft, hard_distillation=hard, label_smoothing=smoothing)
    torch.testing.assert_close(training_loss((student,), Y, numbers, uncut, decisive), expected)


def test_a_distilled_model_learns_labels_at_one_token_decisions_at_the_other_and_the_rest_at_their_mean():
    """Touvron et al. 2021, Eq. 3: half the labels and half the teacher's decisions."""
    first, second, teacher = logits(0), logits(1), logits(2)
    halves = (slow_cross_entropy(first, one_hot(Y)) + slow_cross_entropy(second, one_hot(teacher.argmax(-1)))) / 2
    found = training_loss((first, second), Y, recipe(hard_distillation=0.5), None, teacher)
    torch.testing.assert_close(found, halves)
    mean = (first + second) / 2
    found = training_loss((first, second), Y, recipe(distillation=0.5), teacher)
    torch.testing.assert_close(
        found, (slow_cross_entropy(mean, one_hot(Y)) + soft_distillation(mean, teacher, 3.0)) / 2
    )


def test_labels_that_are_probabilities_are_taken_as_they_are():
    mixed = 0.3 * one_hot(Y) + 0.7 * one_hot(Y.flip(0))
    found = training_loss((logits(0),), mixed, recipe(label_smoothing=0.2))
    torch.testing.assert_close(found, slow_cross_entropy(logits(0), mixed))


def test_without_a_teacher_only_the_labels_count():
    found = training_loss((logits(0),), Y, recipe(distillation=0.9))
    torch.testing.assert_close(found, slow_cross_entropy(logits(0), one_hot(Y)))
