"""NViT's poster derives its criterion from the Hessian: each step is held against autograd, and so is what of the
Hessian is left in the result. Under the model's own labels, curvature and squared slope are one, exactly.

A gate g_S, 1 as a rule, multiplies every weight of a unit S: the derivative by it is Σ_S w·L'(w). The poster's lines:

    Hz ≈ (∇L(g + hz) - ∇L(g)) / h               a finite difference of gradients
    I = E_z (hz · Σ_S L'(w)·w / h)²             the bracket is a finite difference of *losses*, to first order
      = (Σ_S L'(w)·w)² · E z² = (Σ_S L'(w)·w)²  for z of variance one
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from recovery.losses import cross_entropy
from search.criteria import compute_saliency
from search.gates import gate_derivatives, own_label_loss, own_labels
from tests.cases import UNEQUAL, build, generator, images
from tests.reference import gated, open_gates, slices
from vit.architecture import Unit
from vit.groups import EMBED, Group, size

RICH = UNEQUAL.replace(dist_token=True, reg_tokens=1, layer_scale=True)
GROUPS = [EMBED, Group(Unit.HEAD, 2), Group(Unit.QK, 0), Group(Unit.V, 1), Group(Unit.MLP, 0)]
of_every_kind = pytest.mark.parametrize("group", GROUPS, ids=str)


@pytest.fixture(autouse=True)
def _twice_differentiable_attention():
    """The fused kernels have no second derivative."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@pytest.fixture(scope="module")
def model():
    return build(RICH)


def batch_of(count=3):
    return images(RICH, count), torch.randint(0, RICH.num_classes, (count,), generator=generator(0))


def outputs(model, group, gates, pictures):
    """Logits with every weight of unit u of a group times gates[u], by functional_call."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weights = dict(parameters)
    for unit in range(size(RICH, group)):
        for name, index in slices(RICH, group, unit):
            its_own = torch.zeros_like(parameters[name])
            its_own[index] = 1
            weights[name] = weights[name] * (1 + its_own * (gates[unit] - 1))
    return functional_call(model, weights, (pictures,))


def losses(model, group, gates, pictures, labels):
    """One an image."""
    return F.cross_entropy(outputs(model, group, gates, pictures), labels, reduction="none")


def ones(group):
    return torch.ones(size(RICH, group), dtype=torch.float64, requires_grad=True)


def slope(loss, gates):
    return torch.autograd.grad(loss, gates, create_graph=True)[0]


def hessian_times(loss, gates, direction):
    """The exact product, by differentiating slope · direction (Pearlmutter 1994)."""
    return torch.autograd.grad(slope(loss, gates) @ direction, gates)[0]


def normal(count, seed=0):
    return torch.randn(count, generator=generator(seed), dtype=torch.float64)


# --- the criterion is the squared slope by the gate --------------------------------------------------------------


@of_every_kind
def test_the_slope_by_a_gate_is_the_sum_of_weight_times_gradient_and_nvit_squares_it(model, group):
    pictures, labels = batch_of()
    gates = ones(group)
    by_gate = slope(losses(model, group, gates, pictures, labels).mean(), gates).detach()
    weights = dict(model.named_parameters())
    grads = dict(
        zip(weights, torch.autograd.grad(cross_entropy(model, pictures, labels), weights.values()), strict=True)
    )
    sums = [
        sum(float((weights[name].detach() * grads[name])[index].sum()) for name, index in slices(RICH, group, unit))
        for unit in range(size(RICH, group))
    ]
    torch.testing.assert_close(by_gate, torch.tensor(sums, dtype=torch.float64))
    found = {c: compute_saliency(model, [batch_of()], c, cross_entropy).values[group] for c in ("nvit", "taylor-abs")}
    np.testing.assert_allclose(found["nvit"], by_gate.square(), rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(found["taylor-abs"], by_gate.abs(), rtol=1e-9, atol=1e-12)


# --- first line: Hz as a finite difference of gradients ----------------------------------------------------------


@of_every_kind
def test_the_finite_difference_of_gradients_converges_to_the_hessian_vector_product_at_rate_h(model, group):
    pictures, labels = batch_of()
    direction = normal(size(RICH, group))

    def gradient_at(h):
        gates = (ones(group).detach() + h * direction).requires_grad_()
        return slope(losses(model, group, gates, pictures, labels).mean(), gates).detach()

    gates = ones(group)
    exact = hessian_times(losses(model, group, gates, pictures, labels).mean(), gates, direction)
    steps = [1e-3 / 2**k for k in range(4)]
    errors = [float(((gradient_at(h) - gradient_at(0)) / h - exact).norm()) for h in steps]
    assert errors[-1] < 2e-3 * float(exact.norm())
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(2, rel=0.02)


# --- second line: what its bracket is ----------------------------------------------------------------------------


@of_every_kind
def test_the_bracket_is_the_limit_of_a_difference_of_losses_not_of_gradients(model, group):
    """(L(1 + hz) - L(1)) / h - z · Σ w·L' = h z² L''/2 + O(h²): it halves with h, and what is lost is the curvature."""
    pictures, labels = batch_of()
    gates = ones(group)
    loss = losses(model, group, gates, pictures, labels).mean()
    unit = F.one_hot(torch.tensor(0), size(RICH, group)).double()
    first, second = float(slope(loss, gates).detach() @ unit), float(hessian_times(loss, gates, unit) @ unit)
    z = -1.3

    def bracket(h):
        return z * first  # hz · Σ w·L' / h, whatever h

    def difference(h):
        with torch.no_grad():
            moved = losses(model, group, gates + h * z * unit, pictures, labels).mean()
        return float(moved - loss.detach()) / h

    steps = [1e-2 / 2**k for k in range(4)]
    missing = [difference(h) - bracket(h) for h in steps]
    for larger, smaller in itertools.pairwise(missing):
        assert larger / smaller == pytest.approx(2, rel=0.05)
    assert missing[-1] / steps[-1] == pytest.approx(z**2 * second / 2, rel=0.05)


@of_every_kind
def test_the_expectation_of_the_squared_bracket_is_the_closed_form(model, group):
    """Over z normal by Gauss-Hermite quadrature, which is exact for polynomials; over z = ±1 by hand."""
    slopes = compute_saliency(model, [batch_of()], "taylor-abs", cross_entropy).values[group]
    points, weights = np.polynomial.hermite_e.hermegauss(3)
    h = 1e-3
    for z, odds in ((points, weights / weights.sum()), (np.array([-1.0, 1.0]), np.array([0.5, 0.5]))):
        squared = (h * z[:, None] * slopes / h) ** 2
        closed = slopes**2 * (odds @ z**2)
        np.testing.assert_allclose(odds @ squared, closed, rtol=1e-12)
        np.testing.assert_allclose(closed, compute_saliency(model, [batch_of()], "nvit", cross_entropy).values[group])


def test_for_given_labels_the_criterion_is_not_the_curvature_which_may_be_negative(model):
    """The step from the first line to the second is an approximation, not an identity: this is how far off it is."""
    pictures, labels = batch_of()
    curvatures, squares = [], []
    for group in GROUPS:
        gates = ones(group)
        loss = losses(model, group, gates, pictures, labels).mean()
        gradient = slope(loss, gates)
        squares += gradient.detach().square().tolist()
        curvatures += [
            float(torch.autograd.grad(gradient[unit], gates, retain_graph=True)[0][unit]) for unit in range(len(gates))
        ]
    assert min(curvatures) < 0 <= min(squares)
    off = np.abs(np.log10(np.abs(curvatures)) - np.log10(squares))
    assert np.median(off) > 1  # by a factor of ten and more for half of the units, and for a quarter in sign
    assert np.mean(np.array(curvatures) < 0) > 0.25


# --- why the square stands for curvature all the same ------------------------------------------------------------


@of_every_kind
def test_under_the_models_own_labels_the_mean_curvature_is_the_mean_squared_slope_exactly_for_every_image(model, group):
    """E_y[L''] = E_y[L'²], for L = -log p_y: L'' = L'² - p_y''/p_y, and Σ_y p_y'' = 0. For every direction, too."""
    pictures, _ = batch_of()
    for picture in pictures.split(1):
        gates, direction = ones(group), normal(size(RICH, group), seed=1)
        logs = outputs(model, group, gates, picture).log_softmax(dim=1)[0]
        curvature, squared = torch.zeros_like(gates), torch.zeros_like(gates)
        for log in logs:  # every label
            gradient = slope(-log, gates)
            product = torch.autograd.grad(gradient @ direction, gates, retain_graph=True)[0]
            curvature = curvature + log.exp().detach() * product
            squared = squared + log.exp().detach() * gradient.detach() * (gradient.detach() @ direction)
        torch.testing.assert_close(curvature.detach(), squared.detach())


def test_nvit_over_own_labels_is_the_curvature_over_the_size_of_the_batch(model):
    """Slopes of two images are independent and zero in the mean: E_y[(Σ_n a_n / B)²] = Σ_n E_y[a_n²] / B². Over all
    labels that two images can have together."""
    group, (pictures, _) = Group(Unit.V, 1), batch_of(2)
    odds = model(pictures).softmax(dim=1).detach()
    expected, one_by_one = 0.0, 0.0
    for labels in itertools.product(range(RICH.num_classes), repeat=2):
        chance = float(odds[0, labels[0]] * odds[1, labels[1]])
        given = [(pictures, torch.tensor(labels))]
        expected += chance * compute_saliency(model, given, "nvit", cross_entropy).values[group]
    for picture, chances in zip(pictures.split(1), odds, strict=True):
        for label, chance in enumerate(chances.tolist()):
            given = [(picture, torch.tensor([label]))]
            one_by_one += chance * compute_saliency(model, given, "nvit", cross_entropy).values[group]
    np.testing.assert_allclose(expected, one_by_one / 2**2, rtol=1e-9)


@pytest.mark.parametrize("group", [*GROUPS, Group(Unit.QK, 2)], ids=str)
def test_the_criterion_gates_is_the_exact_curvature_by_the_gates_in_expectation_over_own_labels(model, group):
    """Its expectation, from the derivatives under every label, against the second derivative of the loss under every
    label, weighed by the predictions: of the model written out, with gates on what units put out."""
    pictures, _ = batch_of()
    odds = model(pictures).softmax(dim=1).detach()
    squares, curvature = torch.zeros(size(RICH, group)).double(), torch.zeros(size(RICH, group)).double()
    for label in range(RICH.num_classes):
        labels = torch.full((len(pictures),), label)
        found = gate_derivatives(model, pictures, labels, cross_entropy)[0][group]
        squares += (odds[:, label, None] * found.square()).mean(dim=0)
        gates = open_gates(RICH, len(pictures))
        gates[group].requires_grad_()
        each = F.cross_entropy(gated(model, pictures, gates), labels, reduction="none")
        gradient = slope(each.sum(), gates[group])  # B units
        for unit in range(size(RICH, group)):
            second = torch.autograd.grad(gradient[:, unit].sum(), gates[group], retain_graph=True)[0][:, unit]
            curvature[unit] += (odds[:, label] * second).mean()
    torch.testing.assert_close(squares, curvature)


def test_the_loss_of_own_labels_reaches_that_expectation_as_the_draws_cover_zero_to_one(model):
    """Evenly spaced draws for copies of one image: each label comes as often as predicted, to one part in their number;
    with `own_labels` of a seed, as often as chance has it."""
    group, count = Group(Unit.MLP, 0), 4000
    picture = images(RICH, 1)
    odds = model(picture).softmax(dim=1).detach()[0]
    by_label = torch.stack(
        [
            gate_derivatives(model, picture, torch.tensor([y]), cross_entropy)[0][group][0]
            for y in range(RICH.num_classes)
        ]
    ).square()
    expected = odds @ by_label
    copies = picture.expand(count, -1, -1, -1)
    even = (torch.arange(count) + 0.5).double() / count
    found = gate_derivatives(model, copies, even, own_label_loss)[0][group].square().mean(dim=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=float(RICH.num_classes * by_label.max() / count))
    (seeded,) = own_labels([(copies, torch.zeros(count))], seed=0)
    found = gate_derivatives(model, *seeded, own_label_loss)[0][group].square().mean(dim=0)
    deviation = ((odds @ by_label.square() - expected.square()) / count).sqrt()
    assert ((found - expected).abs() < 5 * deviation).all()
