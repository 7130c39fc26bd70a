"""Every criterion keeps one contract; NViT's and Fisher's equal a slow truth, and NViT's finite differences."""

import copy
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recovery.losses import cross_entropy
from search.criteria import CRITERIA, OfBatches, compute_saliency
from search.errors import SaliencyError
from search.gates import own_label_loss, own_labels
from search.gradients import visit_gradients
from search.passes import Pass
from tests.cases import CASES, UNEQUAL, assert_same_state, build, generator, images, mask
from tests.reference import slices
from vit.architecture import Unit
from vit.errors import UnknownNameError
from vit.groups import EMBED, Group, Keep, groups, size
from vit.surgery import shrink

NEED_DATA = [name for name, criterion in CRITERIA.items() if isinstance(criterion, OfBatches)]
ABOUT_UNITS = [name for name in CRITERIA if name != "random"]
"""What a number says is about its unit; a random one is about its place."""
RICH = UNEQUAL.replace(dist_token=True, reg_tokens=1, layer_scale=True)


def batch(arch, seed=0, count=3):
    labels = torch.randint(0, max(arch.num_classes, 1), (count,), generator=generator(seed))
    return images(arch, count, seed), labels


def squared_output(model, pictures, labels):
    """A loss that also fits models without a classifier."""
    return (model(pictures) ** 2).mean()


def same(first, second):
    return all(np.array_equal(first.values[group], second.values[group]) for group in groups(first.arch))


def close(found, expected, rtol=1e-9):
    """Every vector, to a share of its largest entry: signed sums cancel, and their rounding does not."""
    for group, vector in expected.items():
        np.testing.assert_allclose(found[group], vector, rtol=rtol, atol=rtol * vector.max(), err_msg=str(group))


def as_it_is(model):
    """All that a pass over the model might leave behind."""
    return {
        "training": [module.training for module in model.modules()],
        "learning": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "gradient hooks": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
    }


def marked(training):
    """A model of which some parameters do not learn and one has a gradient."""
    model = build(RICH).train(training)
    model.blocks[0].requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


# --- the contract ------------------------------------------------------------------------------------------------


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
    model = marked(training)
    state, before = copy.deepcopy(model.state_dict()), as_it_is(model)
    compute_saliency(model, [batch(RICH)], criterion, cross_entropy)
    assert as_it_is(model) == before
    assert_same_state(model.state_dict(), state)


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_contract_so_it_is_after_an_error(criterion):
    def fails(model, pictures, labels):
        model(pictures)
        raise ArithmeticError

    def steep(model, pictures, labels):
        return torch.sqrt((model(pictures) * 0).sum())

    for loss, error in ((fails, ArithmeticError), (steep, SaliencyError)):
        model = marked(training=True)
        before = as_it_is(model)
        with pytest.raises(error):
            compute_saliency(model, [batch(RICH)], criterion, loss)
        assert as_it_is(model) == before


@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_parameters_that_do_not_learn_are_scored_alike(criterion):
    frozen = build(RICH).requires_grad_(False)
    found = compute_saliency(frozen, [batch(RICH)], criterion, cross_entropy)
    assert same(found, compute_saliency(build(RICH), [batch(RICH)], criterion, cross_entropy))


@pytest.mark.parametrize("criterion", ABOUT_UNITS)
def test_contract_a_unit_of_which_every_slice_is_zero_has_saliency_zero(criterion):
    first_out = Keep.of(RICH, {g: np.arange(1, size(RICH, g)) for g in groups(RICH) if size(RICH, g) > 1})
    found = compute_saliency(mask(build(RICH), first_out), [batch(RICH)], criterion, cross_entropy)
    for group, kept in first_out.indices.items():
        if kept[0] == 1:
            assert found.values[group][0] == 0
            assert (found.values[group][1:] > 0).all()


@pytest.mark.parametrize("criterion", ABOUT_UNITS)
def test_contract_units_in_another_order_have_their_saliency_in_that_order(criterion):
    draw = np.random.default_rng(0)
    order = {group: draw.permutation(size(RICH, group)) for group in groups(RICH)}
    model = build(RICH)
    other = shrink(model, Keep(order))  # cuts nothing, and sorts
    torch.testing.assert_close(other(images(RICH)), model(images(RICH)))
    first, second = (compute_saliency(m, [batch(RICH)], criterion, cross_entropy).values for m in (model, other))
    close(second, {group: vector[order[group]] for group, vector in first.items()})


@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_batches_in_another_order_say_the_same(criterion):
    batches = [batch(RICH, seed, count) for seed, count in enumerate((1, 4, 2))]
    first, second = (
        compute_saliency(build(RICH), some, criterion, cross_entropy).values for some in (batches, batches[::-1])
    )
    close(second, first)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_contract_training_mode_makes_no_difference(criterion, training):
    found = compute_saliency(build(RICH).train(training), [batch(RICH)], criterion, cross_entropy)
    assert same(found, compute_saliency(build(RICH), [batch(RICH)], criterion, cross_entropy))


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
    "taylor-abs": lambda terms: abs(sum(term.sum() for term in terms)),
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


def test_gradients_are_there_under_no_grad_too():
    with torch.no_grad():
        found = compute_saliency(build(UNEQUAL), [batch(UNEQUAL)], "nvit", cross_entropy)
    assert same(found, compute_saliency(build(UNEQUAL), [batch(UNEQUAL)], "nvit", cross_entropy))


# --- how a batch goes through the model --------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [None, 1, 2, 5, 9])
def test_visited_gradients_are_those_of_the_batchs_mean_loss_in_eval_mode(micro_batch):
    model, (pictures, labels), found = build(RICH).train(), batch(RICH, count=5), {}
    loss = visit_gradients(
        model,
        pictures,
        labels,
        cross_entropy,
        lambda name, _, g: found.update({name: g.clone()}),
        Pass(None, micro_batch),
    )
    expected = slow_gradients(model, pictures, labels)
    torch.testing.assert_close(loss, F.cross_entropy(model.eval()(pictures), labels).detach())
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_no_gradient_is_left_when_the_next_one_is_visited():
    model, held = build(RICH), []

    def visit(_name, _weights, _gradient):
        held.append(sum(parameter.grad is not None for parameter in model.parameters()))

    visit_gradients(model, *batch(RICH), cross_entropy, visit)
    assert held == [0] * len(list(model.parameters()))


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("criterion", NEED_DATA)
def test_micro_batches_give_the_saliency_of_the_batch(criterion, micro_batch):
    batches = [batch(RICH, seed, count) for seed, count in enumerate((7, 4))]
    whole = compute_saliency(build(RICH), batches, criterion, cross_entropy)
    pieces = compute_saliency(build(RICH), batches, criterion, cross_entropy, micro_batch=micro_batch)
    close(pieces.values, whole.values)
    assert pieces.num_batches == whole.num_batches == 2


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_micro_batches_read_the_same_labels_of_the_models_own(criterion):
    batches = [batch(RICH, seed, 5) for seed in range(2)]
    whole, pieces = (
        compute_saliency(build(RICH), own_labels(batches, 3), criterion, own_label_loss, micro_batch=size)
        for size in (None, 2)
    )
    close(pieces.values, whole.values)


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_mixed_precision_gives_about_the_saliency_of_float64(criterion):
    arch, batches = RICH, [batch(RICH, seed, 8) for seed in range(2)]
    seen = []

    def loss(model, pictures, labels):
        logits = model(pictures)
        seen.append(logits.dtype)
        return F.cross_entropy(logits.float(), labels)

    exact = compute_saliency(build(arch), batches, criterion, cross_entropy)
    model = build(arch, dtype=torch.float32)
    mixed = compute_saliency(model, batches, criterion, loss, autocast=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for group, vector in exact.values.items():  # 8 bits, through three blocks and back
        assert np.abs(mixed.values[group] - vector).max() < 0.1 * vector.max(), group
    assert not same(mixed, compute_saliency(model, batches, criterion, loss))


@pytest.mark.parametrize("criterion", ABOUT_UNITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_multiplied_and_summed_in_more(criterion, dtype):
    """The squares of such gradients would be zero in float16, whose smallest number is 6e-8."""
    model = build(RICH, dtype=dtype)
    weights = copy.deepcopy(model).double()

    def loss(model, pictures, labels):
        return 1e-2 * cross_entropy(model, pictures, labels)

    pictures, labels = batch(RICH)
    found = compute_saliency(model, [(pictures, labels)], criterion, loss).values
    exact = compute_saliency(weights, [(pictures.to(dtype), labels)], criterion, loss).values
    for group, vector in exact.items():
        assert np.abs(found[group] - vector).max() < 0.15 * vector.max(), group


@pytest.mark.parametrize("wrong", [torch.float16, torch.float32])
def test_other_mixed_precision_than_bfloat16_is_refused(wrong):
    with pytest.raises(SaliencyError, match=f"autocast must be torch.bfloat16 or None, got {wrong}"):
        compute_saliency(build(RICH), [batch(RICH)], "nvit", cross_entropy, autocast=wrong)


@pytest.mark.parametrize("wrong", [0, -3])
def test_a_micro_batch_below_one_is_refused(wrong):
    with pytest.raises(SaliencyError, match=f"micro_batch must be at least 1, got {wrong}"):
        compute_saliency(build(RICH), [batch(RICH)], "nvit", cross_entropy, micro_batch=wrong)


def gpu_memory(images_that_fit, model, pictures, labels):
    if len(pictures) > images_that_fit:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return cross_entropy(model, pictures, labels)


def cpu_memory(images_that_fit, model, pictures, labels):
    if len(pictures) > images_that_fit:
        torch.empty(2**58)  # what PyTorch says of this is what is tested
    return cross_entropy(model, pictures, labels)


@pytest.mark.parametrize("memory", [gpu_memory, cpu_memory])
@pytest.mark.parametrize("criterion", NEED_DATA)
def test_whoever_takes_the_advice_of_errors_for_want_of_memory_arrives_at_the_saliency(criterion, memory):
    batches = [batch(RICH, count=9)]
    for tried, advised in ((None, 4), (4, 2)):
        model = build(RICH)
        before = as_it_is(model)
        text = rf"not enough memory for {tried or 9} images at a time \(batch 1\); try micro_batch={advised},"
        with pytest.raises(SaliencyError, match=text) as raised:
            compute_saliency(model, batches, criterion, partial(memory, 2), micro_batch=tried)
        assert raised.value.__context__ is None, "the frames of the first error hold tensors"
        assert as_it_is(model) == before
    found = compute_saliency(build(RICH), batches, criterion, partial(memory, 2), micro_batch=2)
    close(found.values, compute_saliency(build(RICH), batches, criterion, cross_entropy).values)


def test_one_image_that_is_too_large_gets_no_advice_that_cannot_help():
    with pytest.raises(
        SaliencyError, match=r"for 1 image at a time \(batch 1\); take a smaller model or a device with"
    ):
        compute_saliency(build(RICH), [batch(RICH)], "nvit", partial(gpu_memory, 0), micro_batch=1)


def test_other_errors_of_pytorch_are_no_want_of_memory():
    def wrong(model, pictures, labels):
        return cross_entropy(model, pictures, labels[:, None])

    with pytest.raises(RuntimeError) as raised:
        compute_saliency(build(RICH), [batch(RICH)], "nvit", wrong)
    assert not isinstance(raised.value, SaliencyError)
