"""Every criterion keeps one contract; NViT's and Fisher's equal a slow truth, and NViT's finite differences."""

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recovery.losses import cross_entropy
from search.criteria import CRITERIA, compute_saliency
from search.errors import SaliencyError
from search.gradients import gradients
from tests.cases import CASES, UNEQUAL, assert_same_state, build, generator, images
from vit.architecture import Unit
from vit.errors import UnknownNameError
from vit.groups import EMBED, Group, groups, size

NEED_DATA = [name for name, criterion in CRITERIA.items() if criterion.needs_data]
RICH = UNEQUAL.replace(dist_token=True, reg_tokens=1, layer_scale=True)


def batch(arch, seed=0, count=3):
    labels = torch.randint(0, max(arch.num_classes, 1), (count,), generator=generator(seed))
    return images(arch, count, seed), labels


def squared_output(model, pictures, labels):
    """A loss that also fits models without a classifier."""
    return (model(pictures) ** 2).mean()


def same(first, second):
    return all(np.array_equal(first.values[group], second.values[group]) for group in groups(first.arch))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_one_finite_number_from_zero_per_unit(criterion, case):
    arch = CASES[case]
    saliency = compute_saliency(build(arch), [batch(arch)], criterion, squared_output)
    assert list(saliency.values) == groups(arch)
    for group, vector in saliency.values.items():
        assert vector.shape == (size(arch, group),)
        assert np.isfinite(vector).all()
        assert (vector >= 0).all()
    assert saliency.total > 0
    assert (saliency.criterion, saliency.arch) == (criterion, arch)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_the_model_is_left_as_it_is(criterion, training):
    model = build(RICH).train(training)
    before = copy.deepcopy(model.state_dict())
    model.head.weight.grad = torch.ones_like(model.head.weight)
    compute_saliency(model, [batch(RICH)], criterion, cross_entropy)
    assert_same_state(model.state_dict(), before)
    assert model.training is training
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert list(grads) == ["head.weight"]
    assert (grads["head.weight"] == 1).all()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_same_input_same_output(criterion):
    first, second = (compute_saliency(build(RICH), [batch(RICH)], criterion, cross_entropy) for _ in range(2))
    assert same(first, second)


@pytest.mark.parametrize("copies", [2, 4])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_copies_of_a_batch_say_what_the_batch_says(criterion, copies):
    once = compute_saliency(build(RICH), [batch(RICH)], criterion, cross_entropy)
    often = compute_saliency(build(RICH), [batch(RICH)] * copies, criterion, cross_entropy)
    assert same(once, often)
    assert often.num_batches == (copies if criterion in NEED_DATA else 0)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_several_batches_are_averaged(criterion):
    batches = [batch(RICH, seed) for seed in range(3)]
    one_by_one = [compute_saliency(build(RICH), [b], criterion, cross_entropy) for b in batches]
    together = compute_saliency(build(RICH), iter(batches), criterion, cross_entropy)
    for group, vector in together.values.items():
        np.testing.assert_allclose(vector, np.mean([s.values[group] for s in one_by_one], axis=0))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_ids_are_handed_through(criterion):
    saliency = compute_saliency(build(RICH), [batch(RICH)], criterion, cross_entropy, model_id="m", data_id="d")
    assert (saliency.model, saliency.data) == ("m", "d")


def slices(arch, group, unit):
    """(parameter, index) of everything that leaves with a unit, parameter by parameter from timm's layout."""
    every = slice(None)
    if group == EMBED:
        found = [("patch_embed.proj.weight", unit), ("patch_embed.proj.bias", unit)]
        found += [(name, (every, every, unit)) for name in ("cls_token", "dist_token", "reg_token", "pos_embed")]
        found += [("norm.weight", unit), ("norm.bias", unit)]
        found += [("head.weight", (every, unit)), ("head_dist.weight", (every, unit))]
        for b in range(arch.depth):
            found += [(f"blocks.{b}.norm{n}.{kind}", unit) for n in (1, 2) for kind in ("weight", "bias")]
            found += [(f"blocks.{b}.{name}.weight", (every, unit)) for name in ("attn.qkv", "mlp.fc1")]
            found += [(f"blocks.{b}.{n}.{k}", unit) for n in ("attn.proj", "mlp.fc2") for k in ("weight", "bias")]
            found += [(f"blocks.{b}.ls{n}.gamma", unit) for n in (1, 2)]
        return found
    b, shape = group.block, arch.blocks[group.block]
    heads, qk, v = shape.num_heads, shape.qk_dim, shape.v_dim
    if group.unit is Unit.MLP:
        return [(f"blocks.{b}.mlp.fc1.{kind}", unit) for kind in ("weight", "bias")] + [
            (f"blocks.{b}.mlp.fc2.weight", (every, unit))
        ]
    rows, columns = {
        Unit.HEAD: (
            [
                *range(unit * qk, (unit + 1) * qk),
                *range((heads + unit) * qk, (heads + unit + 1) * qk),
                *range(2 * heads * qk + unit * v, 2 * heads * qk + (unit + 1) * v),
            ],
            [*range(unit * v, (unit + 1) * v)],
        ),
        Unit.QK: ([half * heads * qk + head * qk + unit for half in (0, 1) for head in range(heads)], []),
        Unit.V: (
            [2 * heads * qk + head * v + unit for head in range(heads)],
            [head * v + unit for head in range(heads)],
        ),
    }[group.unit]
    found = [(f"blocks.{b}.attn.qkv.{kind}", row) for row in rows for kind in ("weight", "bias")]
    return found + [(f"blocks.{b}.attn.proj.weight", (every, column)) for column in columns]


def test_the_slices_of_the_slow_truth_are_all_there_is():
    """Each parameter but the classifier's bias belongs to EMBED, to units of the block, or to both."""
    model = build(RICH)
    seen = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for group in groups(RICH):
        for unit in range(size(RICH, group)):
            for name, index in slices(RICH, group, unit):
                seen[name][index] += 1
    for name, times in seen.items():
        if re.fullmatch(r"head(_dist)?\.bias", name):
            assert (times == 0).all()
        else:
            assert (times >= 1).all(), name


def slow_gradients(model, pictures, labels):
    model = copy.deepcopy(model).eval()
    F.cross_entropy(model(pictures), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


SLOW = {
    "nvit": lambda terms: sum(term.sum() for term in terms) ** 2,
    "fisher": lambda terms: sum((term**2).sum() for term in terms),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("criterion", SLOW)
def test_every_unit_equals_the_sum_over_its_slices_written_out(criterion, seed):
    model, batches = build(RICH, seed), [batch(RICH, seed), batch(RICH, seed + 10, count=2)]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    grads = [slow_gradients(model, *b) for b in batches]
    found = compute_saliency(model, batches, criterion, cross_entropy)
    for group in groups(RICH):
        for unit in range(size(RICH, group)):
            where = slices(RICH, group, unit)
            slow = [SLOW[criterion]([(weights[n] * g[n])[index] for n, index in where]) for g in grads]
            np.testing.assert_allclose(found.values[group][unit], float(sum(slow)) / 2, rtol=1e-9)


def test_magnitude_is_the_sum_of_squared_weights_of_a_unit():
    model = build(RICH)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = compute_saliency(model, [], "magnitude", cross_entropy)
    for group in groups(RICH):
        for unit in range(size(RICH, group)):
            slow = sum(float((weights[n][index] ** 2).sum()) for n, index in slices(RICH, group, unit))
            np.testing.assert_allclose(found.values[group][unit], slow)


@pytest.mark.parametrize("unit", [0, 3, 6])
@pytest.mark.parametrize(
    "group", [Group(Unit.MLP, 0), Group(Unit.V, 1), Group(Unit.QK, 2), Group(Unit.HEAD, 2), EMBED], ids=str
)
def test_nvit_is_the_squared_derivative_of_the_loss_when_all_that_leaves_with_a_unit_is_scaled(group, unit):
    unit %= size(RICH, group)
    model, (pictures, labels), step = build(RICH), batch(RICH), 1e-5

    @torch.no_grad()
    def loss_at(factor):
        scaled = copy.deepcopy(model)
        weights = dict(scaled.named_parameters())
        for name, index in slices(RICH, group, unit):
            weights[name][index] *= factor
        return float(F.cross_entropy(scaled(pictures), labels))

    derivative = (loss_at(1 + step) - loss_at(1 - step)) / (2 * step)
    found = compute_saliency(model, [(pictures, labels)], "nvit", cross_entropy).values[group][unit]
    np.testing.assert_allclose(found, derivative**2, rtol=1e-5, atol=1e-14)  # of a central difference


def test_the_random_control_depends_on_the_weights_alone():
    first = compute_saliency(build(RICH, 0), [], "random", cross_entropy)
    assert same(first, compute_saliency(build(RICH, 0), [batch(RICH)], "random", squared_output))
    assert not same(first, compute_saliency(build(RICH, 1), [], "random", cross_entropy))


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_images_with_nan_are_refused_with_their_batch(criterion):
    good, labels = batch(UNEQUAL)
    bad = good.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(SaliencyError, match="the loss of batch 2 is nan; check the images and labels"):
        compute_saliency(build(UNEQUAL), [(good, labels), (bad, labels)], criterion, cross_entropy)


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_a_gradient_that_is_not_finite_is_refused(criterion):
    def steep(model, pictures, labels):
        return torch.sqrt((model(pictures) * 0).sum())  # 0, with an infinite slope

    with pytest.raises(SaliencyError, match=r"the gradient of \S+ in batch 1 is not finite"):
        compute_saliency(build(UNEQUAL), [batch(UNEQUAL)], criterion, steep)


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_no_batch_at_all_is_refused(criterion):
    with pytest.raises(SaliencyError, match="no calibration batch; give at least one image per batch"):
        compute_saliency(build(UNEQUAL), iter([]), criterion, cross_entropy)


def test_an_unknown_criterion_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=f"unknown criterion 'taylor'; known: {', '.join(CRITERIA)}"):
        compute_saliency(build(UNEQUAL), [batch(UNEQUAL)], "taylor", cross_entropy)


def test_gradients_are_those_of_each_batchs_mean_loss_in_eval_mode():
    model, batches = build(RICH).train(), [batch(RICH, seed) for seed in range(2)]
    for found, (pictures, labels) in zip(gradients(model, batches, cross_entropy), batches, strict=True):
        expected = slow_gradients(model, pictures, labels)
        assert list(found) == list(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient)


def test_gradients_are_there_under_no_grad_too():
    with torch.no_grad():
        found = compute_saliency(build(UNEQUAL), [batch(UNEQUAL)], "nvit", cross_entropy)
    assert same(found, compute_saliency(build(UNEQUAL), [batch(UNEQUAL)], "nvit", cross_entropy))


def test_a_model_comes_back_in_training_mode_after_an_error():
    model = build(UNEQUAL).train()
    with pytest.raises(SaliencyError, match="no calibration batch"):
        compute_saliency(model, [], "nvit", cross_entropy)
    assert model.training
