"""A gate derivative is the slope of one image's loss as one unit closes, and its square is the Fisher information.

B images, N tokens, E embed_dim, H heads, Q qk_dim, V v_dim.
"""

import copy
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recovery.losses import cross_entropy
from search.errors import SaliencyError
from search.gates import gate_derivatives, own_label_loss, own_labels
from tests.cases import CASES, UNEQUAL, assert_same_state, build, generator, images, mask, some_units
from tests.reference import gated, open_gates
from vit.architecture import Architecture, Unit
from vit.groups import EMBED, Group, groups, size
from vit.model import VisionTransformer

RICH = UNEQUAL.replace(dist_token=True, reg_tokens=1, layer_scale=True)
EVERY = CASES | {"rich": RICH, "rms_rich": RICH.replace(norm="rms", norm_eps=1e-3)}


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """One loss an image; also for models without a classifier."""
    return F.cross_entropy(outputs, labels, reduction="none") + 0.1 * outputs.square().sum(dim=1)


def mean_loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
    return losses(model(batch), labels).mean()


def batch_of(arch: Architecture, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    outputs = arch.num_classes or arch.embed_dim
    return images(arch, count, seed), torch.randint(0, outputs, (count,), generator=generator(seed))


@torch.no_grad()
def central_differences(
    model: VisionTransformer, batch: Tensor, labels: Tensor, group: Group, step: float = 1e-5, **where: str
) -> Tensor:
    """Slopes of every image's loss by every gate of a group, (B, units)."""
    count, units = len(batch), size(model.arch, group)
    copies, answers = batch.repeat_interleave(units, dim=0), labels.repeat_interleave(units)
    sides = []
    for sign in (1, -1):
        gates = open_gates(model.arch, count * units)
        gates[group] = gates[group] + sign * step * torch.eye(units, dtype=torch.float64).repeat(count, 1)
        sides.append(losses(gated(model, copies, gates, **where), answers))
    return ((sides[0] - sides[1]) / (2 * step)).view(count, units)


def derivatives(model: VisionTransformer, batch: Tensor, labels: Tensor) -> dict[Group, Tensor]:
    return gate_derivatives(model, batch, labels, mean_loss)[0]


def close(found: Tensor, expected: Tensor) -> None:
    """As close as a central difference of step 1e-5 comes: its rounding is 1e-16 / 1e-5."""
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# --- what the derivatives are ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_open_gates_change_nothing(name):
    model, (batch, _) = build(EVERY[name]), batch_of(EVERY[name])
    torch.testing.assert_close(gated(model, batch, open_gates(model.arch, len(batch))), model(batch))


@pytest.mark.parametrize("name", EVERY)
def test_every_derivative_is_the_slope_of_that_images_loss_as_that_gate_closes(name):
    model, (batch, labels) = build(EVERY[name]), batch_of(EVERY[name])
    found = derivatives(model, batch, labels)
    assert list(found) == groups(model.arch)
    for group, by_image in found.items():
        close(by_image, central_differences(model, batch, labels, group))


@pytest.mark.parametrize("name", EVERY)
def test_a_gate_on_the_query_is_the_same_as_one_on_the_key_with_qk_norm_too(name):
    model, (batch, labels) = build(EVERY[name]), batch_of(EVERY[name])
    found = derivatives(model, batch, labels)
    for group in groups(model.arch):
        if group.unit is Unit.QK:
            close(found[group], central_differences(model, batch, labels, group, qk="key"))


@pytest.mark.parametrize("name", ["qk_norm", "rms_qk_norm"])
def test_gates_before_qk_norm_would_do_nothing_together_which_is_why_they_sit_after_it(name):
    """A norm takes a common factor out again, up to its epsilon."""
    model, (batch, labels) = build(EVERY[name]), batch_of(EVERY[name])
    for block in range(model.arch.depth):
        group = Group(Unit.QK, block)
        before = central_differences(model, batch, labels, group, qk="before norm").sum(dim=1)
        after = derivatives(model, batch, labels)[group].sum(dim=1)
        assert before.abs().max() < 1e-4 * after.abs().max()


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        (name, unit)
        for name, arch in EVERY.items()
        for unit in Unit
        if not (unit is Unit.QK and arch.qk_norm) and not (unit is Unit.EMBED and arch.norm == "layer")
    ],
)
def test_a_closed_gate_removes_the_unit_where_removing_equals_masking(name, unit):
    """Not for EMBED under LayerNorm, which shifts zeros, nor for QK under qk-norm, which averages over what remains."""
    arch = EVERY[name]
    model, (batch, _), keep = build(arch), batch_of(arch), some_units(arch, [unit])
    gates = {}
    for group in groups(arch):
        gates[group] = torch.zeros(len(batch), size(arch, group), dtype=torch.float64)
        gates[group][:, keep.indices[group].tolist()] = 1
    torch.testing.assert_close(gated(model, batch, gates), mask(model, keep)(batch))


@pytest.mark.parametrize("name", EVERY)
def test_the_derivatives_of_heads_and_of_v_channels_have_one_sum_for_every_image(name):
    """All values of a block at once, sorted in two ways."""
    found = derivatives(build(EVERY[name]), *batch_of(EVERY[name]))
    for block in range(EVERY[name].depth):
        heads, channels = found[Group(Unit.HEAD, block)], found[Group(Unit.V, block)]
        torch.testing.assert_close(heads.sum(dim=1), channels.sum(dim=1))


@pytest.mark.parametrize("sizes", [[5], [1] * 5, [2, 3]])
@pytest.mark.parametrize("name", ["rich", "pooled", "qk_norm"])
def test_no_image_depends_on_the_others_of_its_batch(name, sizes):
    model, (batch, labels) = build(EVERY[name]), batch_of(EVERY[name], count=5)
    together = derivatives(model, batch, labels)
    pieces = [derivatives(model, *piece) for piece in zip(batch.split(sizes), labels.split(sizes), strict=True)]
    for group, by_image in together.items():
        torch.testing.assert_close(torch.cat([piece[group] for piece in pieces]), by_image)


def test_the_loss_comes_with_the_derivatives_and_carries_no_graph():
    model, (batch, labels) = build(RICH), batch_of(RICH)
    found, value = gate_derivatives(model, batch, labels, mean_loss)
    torch.testing.assert_close(value, mean_loss(model, batch, labels).detach())
    assert not value.requires_grad
    assert not any(by_image.requires_grad for by_image in found.values())


def test_all_gates_of_embed_together_do_nothing_under_rms_norms():
    """They scale all that is written to the stream, and norms are all that reads it."""
    arch = CASES["rms_norm"].replace(norm_eps=1e-12)
    found = derivatives(build(arch), *batch_of(arch))[EMBED]
    assert found.sum(dim=1).abs().max() < 1e-9 * found.abs().max()


def test_a_unit_that_puts_nothing_out_has_derivative_zero():
    model, (batch, labels) = build(UNEQUAL), batch_of(UNEQUAL)
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[12 + 2] = 0  # V channel 2 of the only head
        model.blocks[1].attn.qkv.bias[12 + 2] = 0
    by_image = derivatives(model, batch, labels)[Group(Unit.V, 1)]
    assert (by_image[:, 2] == 0).all()
    assert (by_image[:, [0, 1]] != 0).all()


# --- the second-order model --------------------------------------------------------------------------------------


def sets_of_gates(arch: Architecture, count: int = 6) -> list[dict[Group, Tensor]]:
    """Random sets over all groups, as vectors of zeros and ones."""
    draw = generator(7)
    return [{g: (torch.rand(size(arch, g), generator=draw) < 0.3).double() for g in groups(arch)} for _ in range(count)]


def summed(found: Mapping[Group, Tensor], chosen: Mapping[Group, Tensor]) -> Tensor:
    """Σ of the chosen gates' derivatives, (B,)."""
    return torch.stack([by_image @ chosen[group] for group, by_image in found.items()]).sum(dim=0)


@pytest.mark.parametrize("name", ["rich", "pooled", "rms_qk_norm"])
def test_a_sets_mean_squared_sum_is_its_quadratic_form_in_the_empirical_fisher_of_the_gates(name):
    model, (batch, labels) = build(EVERY[name]), batch_of(EVERY[name], count=4)
    fisher = torch.zeros(())
    for image in range(4):  # the Fisher as in a textbook: gradients of one image at a time, and their outer products
        gates = {group: gate.requires_grad_() for group, gate in open_gates(model.arch, 1).items()}
        loss = losses(gated(model, batch[image : image + 1], gates), labels[image : image + 1]).sum()
        gradient = torch.cat([slope[0] for slope in torch.autograd.grad(loss, list(gates.values()))])
        fisher = fisher + torch.outer(gradient, gradient) / 4
    found = derivatives(model, batch, labels)
    for chosen in sets_of_gates(model.arch):
        closed = torch.cat(list(chosen.values()))
        torch.testing.assert_close(summed(found, chosen).square().mean(), closed @ fisher @ closed)


def by_label(model: VisionTransformer, batch: Tensor) -> tuple[list[dict[Group, Tensor]], Tensor]:
    """Derivatives of every image under every label, and the probabilities of the labels (B, classes)."""
    found = [
        gate_derivatives(model, batch, torch.full((len(batch),), label), cross_entropy)[0]
        for label in range(model.arch.num_classes)
    ]
    return found, model(batch).softmax(dim=1).detach()


@pytest.mark.parametrize("name", ["class_token", "rich", "pooled", "qk_norm"])
def test_under_the_models_own_labels_the_expected_derivative_is_zero(name):
    model, (batch, _) = build(EVERY[name]), batch_of(EVERY[name])
    found, odds = by_label(model, batch)
    for group in groups(model.arch):
        expected = sum(odds[:, label, None] * each[group] for label, each in enumerate(found))
        torch.testing.assert_close(expected, torch.zeros_like(expected))


@pytest.mark.parametrize("name", ["class_token", "rich", "pooled", "qk_norm"])
def test_under_the_models_own_labels_half_the_mean_squared_sum_is_how_far_predictions_move_to_second_order(name):
    """KL(p ‖ p as the gates of a set close by ε) = ε²/2 · E_y (Σ a)² + O(ε³); odd orders cancel between ε and -ε."""
    model, (batch, _) = build(EVERY[name]), batch_of(EVERY[name])
    found, odds = by_label(model, batch)
    step = 1e-3

    @torch.no_grad()
    def divergence(chosen: Mapping[Group, Tensor], change: float) -> Tensor:
        gates = {group: gate - change * chosen[group] for group, gate in open_gates(model.arch, len(batch)).items()}
        moved = gated(model, batch, gates).log_softmax(dim=1)
        return (odds * (odds.log() - moved)).sum(dim=1)

    for chosen in sets_of_gates(model.arch):
        measured = (divergence(chosen, step) + divergence(chosen, -step)) / (2 * step**2)
        squares = [summed(each, chosen).square() for each in found]
        predicted = sum(odds[:, label] * square for label, square in enumerate(squares)) / 2
        # what is left out is of order step²
        torch.testing.assert_close(measured, predicted, rtol=1e-3, atol=1e-6)


# --- the model is left as it is ----------------------------------------------------------------------------------


def as_it_is(model: nn.Module) -> dict[str, object]:
    """All that a pass over the model might leave behind, but for its weights."""
    return {
        "training": [module.training for module in model.modules()],
        "learning": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def marked(training: bool) -> VisionTransformer:
    """A model of which some parameters do not learn and one has a gradient."""
    model = build(RICH).train(training)
    model.blocks[0].requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_is(training):
    model = marked(training)
    state, before = copy.deepcopy(model.state_dict()), as_it_is(model)
    derivatives(model, *batch_of(RICH))
    assert as_it_is(model) == before
    assert_same_state(model.state_dict(), state)
    assert (model.head.weight.grad == 1).all()


def test_so_it_is_after_an_error():
    model = marked(training=True)
    before = as_it_is(model)

    def fails(model, batch, labels):
        model(batch)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        gate_derivatives(model, *batch_of(RICH), fails)
    assert as_it_is(model) == before


def test_derivatives_are_those_of_the_model_in_eval_mode_and_are_there_under_no_grad_too():
    batch, labels = batch_of(RICH)
    expected = derivatives(build(RICH), batch, labels)
    with torch.no_grad():
        found = derivatives(build(RICH).train(), batch, labels)
    for group, by_image in expected.items():
        assert torch.equal(found[group], by_image)


def test_in_bfloat16_derivatives_are_about_those_of_the_same_weights_in_float64():
    model, (batch, labels) = build(RICH, dtype=torch.bfloat16), batch_of(RICH)
    found = gate_derivatives(model, batch.bfloat16(), labels, cross_entropy)[0]
    exact = gate_derivatives(copy.deepcopy(model).double(), batch.bfloat16().double(), labels, cross_entropy)[0]
    for group, by_image in exact.items():
        # 8 bits, through three blocks and back
        torch.testing.assert_close(found[group].double(), by_image, rtol=0, atol=0.1 * float(by_image.abs().max()))


# --- a model's own labels ----------------------------------------------------------------------------------------

ODDS = torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]])


class Predicts(nn.Module):
    """Says the odds of image 0 or 1, which its first pixel names; keeps the logits it gave."""

    def forward(self, batch: Tensor) -> Tensor:
        self.logits = ODDS.log()[batch[:, 0, 0, 0].long()].requires_grad_()
        return self.logits


def pictures(*first: float) -> Tensor:
    return torch.tensor(first)[:, None, None, None]


def labels_at(batch: Tensor, draws: Tensor) -> Tensor:
    """The labels behind a loss: its gradient by the logits is (odds - one-hot) / B."""
    model = Predicts()
    (gradient,) = torch.autograd.grad(own_label_loss(model, batch, draws), model.logits)
    return gradient.argmin(dim=1)


def drawn(seed: int, *batches: Tensor) -> list[Tensor]:
    """The labels that batches get, one after the other."""
    given = own_labels(((batch, torch.zeros(len(batch)).long()) for batch in batches), seed)
    return [labels_at(batch, draws) for batch, draws in given]


@pytest.mark.parametrize("image", [0, 1])
def test_a_draw_takes_every_label_over_a_length_that_is_its_probability(image):
    """Evenly spaced draws, each in the middle of its hundredth; the odds are whole hundredths."""
    labels = labels_at(pictures(image).expand(100, 1, 1, 1), (torch.arange(100) + 0.5).double() / 100)
    assert torch.bincount(labels, minlength=3).tolist() == (100 * ODDS[image]).round().int().tolist()


def test_the_smallest_and_the_largest_draw_are_labels_too_and_never_one_without_probability():
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert labels_at(pictures(0, 0), ends).tolist() == [0, 2]

    def surely_one(_batch: Tensor) -> Tensor:
        return torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)

    assert float(own_label_loss(surely_one, pictures(0, 0), ends)) == 0


def test_own_labels_come_as_often_as_the_model_says():
    count = 10_000
    labels = torch.cat(drawn(0, *[pictures(0, 1).repeat(count // 10, 1, 1, 1) for _ in range(10)])).view(-1, 2)
    assert len(labels) == count
    for image in (0, 1):
        shares = torch.bincount(labels[:, image], minlength=3) / count
        deviation = (ODDS[image] * (1 - ODDS[image]) / count).sqrt()
        assert ((shares - ODDS[image]).abs() < 4 * deviation).all()


def test_own_labels_repeat_themselves_for_a_seed_alone_and_differ_between_batches():
    batches = [pictures(*[0, 1] * 20)] * 2
    first, second, other = (drawn(seed, *batches) for seed in (0, 0, 1))
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert not torch.equal(first[0], first[1])


def test_own_labels_of_a_batch_do_not_depend_on_the_batches_before():
    small, large, last = pictures(0), pictures(*[0, 1] * 50), pictures(*[1, 0] * 20)
    assert torch.equal(drawn(0, small, last)[1], drawn(0, large, last)[1])


def test_the_loss_of_own_labels_is_the_cross_entropy_with_them():
    batch, draws = pictures(0, 1, 0, 1), torch.tensor([0.2, 0.06, 0.9, 0.5], dtype=torch.float64)
    expected = -ODDS[[0, 1, 0, 1], [0, 1, 2, 2]].log().mean()
    torch.testing.assert_close(own_label_loss(Predicts(), batch, draws), expected)


def test_predictions_that_are_not_finite_are_refused():
    model, batch = build(UNEQUAL), images(UNEQUAL)
    batch[1, 0, 0, 0] = float("nan")
    with pytest.raises(SaliencyError, match="the model's predictions are not finite; check the images"):
        own_label_loss(model, batch, torch.zeros(len(batch)))


def test_labels_in_the_place_of_draws_are_refused():
    with pytest.raises(SaliencyError, match=r"reads draws, not labels; give the batches through own_labels"):
        own_label_loss(Predicts(), pictures(0, 1), torch.tensor([0, 1]))
