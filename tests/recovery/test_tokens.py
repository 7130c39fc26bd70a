"""Training a model to drop tokens: the losses are their formulas, the share that stays becomes the plan's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recovery.loop import accuracy, finetune
from recovery.tokens import drawn_decisions, ratio_loss, token_distillation, token_training
from recovery.training import Trainer
from tests.cases import assert_same_state, generator, images
from tests.recovery.toys import ARCH, PLAIN, fresh, stripes
from tests.vit.test_sparse_storage import random_masks
from tests.vit.test_tokens import DEEP, lowest_leave, pruned
from vit.token_plan import TokenPlan
from vit.tokens import TokenPrunedTransformer

DATA = stripes()
WIDE = ARCH.replace(patch_size=(2, 2))  # 16 patches of an image of 8 x 8


def student(seed=0):
    return TokenPrunedTransformer.of(fresh(WIDE, seed), TokenPlan.usual(WIDE, 0.5), generator(seed))


def test_the_gradient_reaches_every_predictor():
    model, batch = pruned(DEEP), images(DEEP)
    heads, loss = token_training(model, batch, None)
    (heads[0].sum() + 0 * loss).backward()  # through the decisions alone, without the ratio's loss
    for predictor in model.predictors:
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in predictor.parameters())


def test_the_loss_is_that_of_its_formula():
    model, batch = pruned(DEEP), images(DEEP)
    masked = model.masked(batch, lowest_leave(model))
    total = 0.0
    for stage, kept in enumerate(masked.decisions):
        for image in kept:
            total += ((1 - 0.3) ** (stage + 1) - float(image.detach().sum()) / len(image)) ** 2 / (3 * 3)
    torch.testing.assert_close(ratio_loss(masked.decisions, model.plan.shares()), torch.tensor(total))
    target = torch.randn(masked.stream.shape, generator=generator(1), dtype=torch.float64)
    ours, errors = model.norm(masked.stream).detach(), []
    for row, kept in enumerate(masked.decisions[-1]):
        for token in range(len(kept)):
            if kept[token]:
                place = DEEP.prefix_tokens + token
                errors.append(float((ours[row, place] - target[row, place]).square().mean()))
    found = float(token_distillation(model, masked, target).detach())
    assert found == pytest.approx(np.mean(errors), rel=1e-5)  # float32 inside


def test_training_lets_as_many_tokens_stay_as_planned():
    model, data = student(), stripes()
    *_, last = finetune(model, data, replace(PLAIN, steps=150, lr=5e-3), fresh(WIDE, 9))
    torch.manual_seed(0)
    with torch.no_grad():
        kept = torch.stack([model.masked(data.train.images, drawn_decisions).decisions[-1].mean() for _ in range(8)])
    assert kept.mean() == pytest.approx(0.5, abs=0.05)
    assert accuracy(model, data.test) > 0.9
    assert last.step == 150


def test_training_goes_on_bit_for_bit_where_it_stopped():
    whole, parted = student(), student()
    trainer = Trainer(whole, stripes(), PLAIN, fresh(WIDE, 9))
    list(trainer.train(8))
    first = Trainer(parted, stripes(), PLAIN, fresh(WIDE, 9))
    list(first.train(4))
    second = Trainer(student(seed=5), stripes(), PLAIN, fresh(WIDE, 9))
    second.load_state(first.state())
    list(second.train(8))
    assert_same_state(second.model.state_dict(), whole.state_dict())


def test_masked_weights_stay_zero_while_it_learns_to_drop_tokens():
    model = student()
    masks = random_masks(model)
    list(finetune(model, stripes(), PLAIN, fresh(WIDE, 9), mask=masks))
    for parameter, keep in masks.on(model):
        assert not bool(parameter.detach()[~keep].any())


def test_all_but_the_predictors_learn_more_slowly_and_with_the_other_factors():
    trainer = Trainer(student(), DATA, replace(PLAIN, backbone_lr=0.01, layer_decay=0.5, weight_decay=0.05))
    other = Trainer(student(), DATA, replace(PLAIN, layer_decay=0.5, weight_decay=0.05))

    def seen(of):
        names = {parameter: name for name, parameter in of.model.named_parameters()}
        return {
            names[parameter]: (group["lr_scale"], group["weight_decay"])
            for group in of._optimizer.param_groups
            for parameter in group["params"]
        }

    found, expected = seen(trainer), seen(other)
    assert found.keys() == expected.keys() == set(dict(trainer.model.named_parameters()))
    for name, (scale, decay) in expected.items():
        factor = 1 if name.startswith("predictors.") else 0.01
        assert found[name] == (scale * factor, decay), name


def test_at_a_backbone_rate_near_zero_the_predictors_learn_alone():
    model = student()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model, DATA, replace(PLAIN, backbone_lr=1e-9, steps=3, warmup=0, weight_decay=0.0))
    list(trainer.train(3))
    for name, parameter in trainer.model.named_parameters():
        moved = float((parameter.detach() - before[name]).abs().max())
        assert (moved > 1e-4) == name.startswith("predictors."), name


def test_the_rate_of_a_model_without_predictors_is_the_recipes():
    trainer = Trainer(fresh(), DATA, replace(PLAIN, backbone_lr=0.01))
    assert all(group.get("lr_scale", 1.0) == 1.0 for group in trainer._optimizer.param_groups)


def test_the_model_it_was_made_from_survives():
    dense = fresh(WIDE)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    made = TokenPrunedTransformer.of(dense, TokenPlan((1,)), generator())
    list(finetune(made, stripes(), PLAIN))
    assert_same_state(dense.state_dict(), before)
