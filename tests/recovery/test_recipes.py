"""A recipe says what it does not take, survives its document, and means the same in epochs as in steps."""

import json
from dataclasses import replace

import pytest

from recovery.errors import TrainingError
from recovery.recipes import RECIPES, Recipe, after_refit

PLAIN = Recipe(steps=100)


@pytest.mark.parametrize("name", RECIPES)
def test_a_known_recipe_survives_json_and_says_where_it_is_from(name):
    recipe = RECIPES[name]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.source


def test_an_unknown_number_is_named():
    with pytest.raises(TrainingError, match="a recipe has no 'momentum'; it has steps, epochs"):
        Recipe.from_dict({"steps": 3, "momentum": 0.9})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("steps", 0, "at least 1"),
        ("steps", 2.0, "at least 1"),
        ("batch_size", True, "at least 1"),
        ("micro_batch", 0, "at least 1"),
        ("warmup", -1, "a whole number from 0"),
        ("seed", "0", "a whole number from 0"),
        ("lr", float("nan"), "a positive number"),
        ("temperature", 0, "a positive number"),
        ("mixup", -0.1, "a number from 0"),
        ("clip_grad", float("inf"), "a number from 0"),
        ("distillation", 1.1, "from 0 to 1"),
        ("hard_distillation", float("nan"), "from 0 to 1"),
        ("drop_path", 1.0, "from 0 to less than 1"),
        ("ema", 1.0, "from 0 to less than 1"),
        ("layer_decay", 0, "above 0 and at most 1"),
        ("backbone_lr", 1.5, "above 0 and at most 1"),
        ("schedule", "linear", "one of cosine, cyclic, constant"),
        ("amp", None, "one of none, bf16, fp16"),
        ("auto_augment", None, "a text"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(name, value, says):
    with pytest.raises(TrainingError, match=f"{name} must be {says}, got"):
        replace(PLAIN, **{name: value})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 3}, "either steps or epochs, got both"),
        ({"steps": None}, "either steps or epochs, got neither"),
        ({"distillation": 0.6, "hard_distillation": 0.5}, "at most 1 together"),
        ({"min_lr": 0.1}, "min_lr 0.1 is above the peak"),
        ({"cycles": 2}, "cycles belong to the schedule cyclic"),
        ({"mixup": 0.8, "batch_size": 7}, "batch_size must be even, got 7"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(changes, says):
    with pytest.raises(TrainingError, match=says):
        replace(PLAIN, **changes)


@pytest.mark.parametrize(("images", "epoch"), [(640, 10), (703, 10), (64, 1), (5, 1)])
def test_an_epoch_is_as_many_steps_as_there_are_whole_batches_and_at_least_one(images, epoch):
    resolved = Recipe(epochs=30, warmup=2).resolved(images)
    assert (resolved.steps, resolved.epochs, resolved.warmup) == (30 * epoch, None, 2 * epoch)
    assert resolved.evaluate_every == epoch
    assert resolved.resolved(images) == resolved


def test_the_learning_rate_is_scaled_where_a_recipe_says_for_which_batch_size_it_is_and_nothing_else_is():
    deit = RECIPES["deit"]
    assert deit.peak_lr == pytest.approx(1e-3)  # 0.0005 x 1024 / 512
    small = replace(deit, batch_size=128).resolved(1_281_167)
    assert small.lr == small.peak_lr == pytest.approx(0.0005 * 128 / 512)
    assert small.min_lr == deit.min_lr
    assert replace(PLAIN, batch_size=128).peak_lr == PLAIN.lr


def test_another_length_keeps_the_share_of_warm_up():
    assert RECIPES["deit"].lasting(steps=3000).warmup == 50  # 5 of 300 epochs
    assert RECIPES["short"].lasting(epochs=10).warmup == 1  # 20 of 200 steps
    assert RECIPES["short"].lasting(steps=3).resolved(640).warmup == 0


def test_nvits_weights_are_those_of_its_released_loss():
    """0.5 CE + 0.5 decisions + 1e5 mean over images and 1000 classes of the KL divergence at T = 20."""
    recipe = RECIPES["nvit"]
    labels = 1 - recipe.distillation - recipe.hard_distillation
    assert recipe.hard_distillation / labels == pytest.approx(0.5 / 0.5)
    assert recipe.distillation * recipe.temperature**2 / labels == pytest.approx(1e5 / 1000 / 0.5)
    assert recipe.peak_lr == pytest.approx(1.8e-3)


def test_dynamicvits_weights_are_those_of_its_loss():
    """CE + 0.5 KL divergence at T = 1; learning rate 0.001 for 1,024 images, a hundredth of it for the backbone."""
    recipe = RECIPES["dynamicvit"]
    labels = 1 - recipe.distillation - recipe.hard_distillation
    assert recipe.distillation / labels == pytest.approx(0.5)
    assert recipe.temperature == 1.0
    assert replace(recipe, batch_size=1024).peak_lr == pytest.approx(1e-3)
    assert (recipe.epochs, recipe.backbone_lr) == (30, 0.01)


def test_the_fine_tune_after_a_refit_is_a_recipe_like_the_others():
    assert RECIPES["after-refit"] == after_refit(100)
