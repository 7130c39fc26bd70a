"""Sensitivity: the squared gradient at every token, against autograd on a forward pass written out."""

import pytest
import torch

from recovery.losses import cross_entropy
from search.errors import SaliencyError
from search.sensitivity import token_sensitivity
from tests.cases import CASES, build, generator, images
from vit.moments import FLOOR, token_weights


def batch_of(arch, count=4, seed=0):
    return images(arch, count, seed), torch.randint(0, max(arch.num_classes, 1), (count,), generator=generator(seed))


def by_hand(model, batch, label):
    """Squared gradient norms by module and token for one image, with every module's output as a leaf of its own: the
    gradient with respect to a perturbation that is added to the output."""
    places = {f"blocks.{i}.{name}": None for i in range(model.arch.depth) for name in ("norm1", "norm2", "attn.qkv")}
    deltas, handles = {}, []
    for name in places:

        def add(_module, _inputs, out, name=name):
            deltas[name] = torch.zeros_like(out, requires_grad=True)
            return out + deltas[name]

        handles.append(model.get_submodule(name).register_forward_hook(add))
    loss = cross_entropy(model, batch[None], label[None])
    grads = torch.autograd.grad(loss, list(deltas.values()))
    for handle in handles:
        handle.remove()
    return {name: grad[0].square() for name, grad in zip(deltas, grads, strict=True)}


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].num_classes])
def test_sensitivity_is_the_mean_over_images_of_the_squared_gradient_at_a_token(name):
    arch = CASES[name]
    model, (batch, labels) = build(arch), batch_of(arch)
    found = token_sensitivity(model, [(batch[:3], labels[:3]), (batch[3:], labels[3:])], cross_entropy)
    each = [by_hand(model, image, label) for image, label in zip(batch, labels, strict=True)]
    for index, shape in enumerate(arch.blocks):
        for norm in (f"blocks.{index}.norm1", f"blocks.{index}.norm2"):
            expected = torch.stack([one[norm].sum(dim=1) for one in each]).mean(dim=0)
            torch.testing.assert_close(found[norm], expected)
        width = shape.num_heads * shape.qk_dim
        rows = torch.stack([one[f"blocks.{index}.attn.qkv"] for one in each]).mean(dim=0)
        for part, columns in zip("qkv", rows.split((width, width, shape.num_heads * shape.v_dim), dim=1), strict=True):
            torch.testing.assert_close(found[f"blocks.{index}.attn.{part}"], columns.sum(dim=1))


@pytest.mark.parametrize("name", ["class_token", "distilled", "registers"])
def test_after_the_last_attention_the_loss_feels_the_tokens_that_are_classified_alone(name):
    arch = CASES[name]
    found = token_sensitivity(build(arch), [batch_of(arch)], cross_entropy)
    read = 1 + int(arch.dist_token)
    for place in ("attn.q", "attn.proj", "mlp.fc1", "mlp.fc2"):
        sensitivity = found[f"blocks.{arch.depth - 1}.{place}"]
        assert (sensitivity[:read] > 0).all()
        assert (sensitivity[read:] == 0).all()


def test_weights_have_a_mean_of_one_and_a_floor():
    weights = token_weights({"x": torch.tensor([3.0, 1.0, 0.0, 0.0])}, "x")
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    assert weights.min() == pytest.approx(FLOOR)
    assert token_weights(None, "x") is None
    assert torch.equal(token_weights({"x": torch.zeros(3)}, "x"), torch.ones(3))


def test_no_batch_and_gradients_that_are_not_finite_are_refused():
    arch = CASES["class_token"]
    with pytest.raises(SaliencyError, match="no calibration batch"):
        token_sensitivity(build(arch), [], cross_entropy)
    batch, labels = batch_of(arch)
    batch[0, 0, 0, 0] = float("inf")
    with pytest.raises(SaliencyError, match="is not finite; check the images"):
        token_sensitivity(build(arch), [(batch, labels)], cross_entropy)
