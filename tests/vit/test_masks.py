"""Masks of single weights: what they count, what they do to a model, and what does not fit."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.cases import assert_same_state
from vit.errors import MaskError
from vit.masks import SparsityMask


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def mask():
    keep = torch.tensor([[True, False, True, True], [False, False, True, True], [True, True, True, True]])
    return SparsityMask({"0.weight": keep, "1.weight": torch.ones(2, 3, dtype=torch.bool)})


def test_counts_what_is_removed():
    assert mask().total == 18
    assert mask().zeros == 3
    assert mask().sparsity == 3 / 18
    assert mask().sparsities() == {"0.weight": pytest.approx(0.25), "1.weight": 0.0}
    assert SparsityMask({}).sparsity == 0.0


def test_a_copy_has_zeros_where_the_mask_says_and_the_model_keeps_its_weights():
    whole = model()
    before = copy.deepcopy(whole.state_dict())
    made = mask().applied(whole)
    assert_same_state(whole.state_dict(), before)
    keep = mask().keep["0.weight"]
    assert torch.equal(made[0].weight[keep], whole[0].weight[keep])
    assert (made[0].weight[~keep] == 0).all()
    assert torch.equal(made[0].bias, whole[0].bias)
    assert torch.equal(made[1].weight, whole[1].weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_is_removed_is_zero_whatever_it_was(value):
    broken = model()
    with torch.no_grad():
        broken[0].weight.fill_(value)
    keep = mask().keep["0.weight"]
    removed = mask().applied(broken)[0].weight[~keep]
    assert (removed == 0).all()
    assert not removed.signbit().any()


def test_of_a_model_is_the_mask_that_was_applied():
    made = SparsityMask.of(mask().applied(model()), ["0.weight", "1.weight"])
    assert made.fingerprint == mask().fingerprint


def test_its_values_are_its_own():
    given = {"0.weight": torch.ones(3, 4, dtype=torch.bool)}
    made = SparsityMask(given)
    given["0.weight"][0, 0] = False
    assert made.zeros == 0


def test_the_fingerprint_changes_with_every_bit_every_name_and_every_shape():
    seen = {mask().fingerprint, SparsityMask({}).fingerprint}
    for index in range(12):
        keep = mask().keep["0.weight"].clone()
        keep.view(-1)[index] ^= True
        seen.add(SparsityMask({**mask().keep, "0.weight": keep}).fingerprint)
    seen.add(SparsityMask({**mask().keep, "0.weight": mask().keep["0.weight"].T}).fingerprint)
    seen.add(SparsityMask({"2.weight": mask().keep["0.weight"], "1.weight": mask().keep["1.weight"]}).fingerprint)
    assert len(seen) == 16
    other_order = SparsityMask(dict(reversed(mask().keep.items())))
    assert other_order.fingerprint == mask().fingerprint == pickle.loads(pickle.dumps(mask())).fingerprint


def test_within_is_removing_all_that_the_other_removes():
    more = SparsityMask({"0.weight": mask().keep["0.weight"] & torch.eye(3, 4, dtype=torch.bool)})
    assert more.within(mask())
    assert not mask().within(more)
    assert mask().within(mask())


@pytest.mark.parametrize("wrong", [torch.ones(3, 4), [[True]], None])
def test_what_is_no_boolean_tensor_is_refused(wrong):
    with pytest.raises(MaskError, match=r"0.weight must be a boolean tensor"):
        SparsityMask({"0.weight": wrong})


def test_a_mask_that_does_not_fit_changes_nothing():
    whole = model()
    before = copy.deepcopy(whole.state_dict())
    for keep, said in (
        ({"1.weight": torch.zeros(2, 3).bool(), "0.weight": torch.zeros(4, 3).bool()}, r"has shape \(4, 3\)"),
        ({"1.weight": torch.zeros(2, 3).bool(), "2.weight": torch.zeros(2, 3).bool()}, "no parameter '2.weight'"),
    ):
        with pytest.raises(MaskError, match=said):
            SparsityMask(keep).apply_(whole)
    assert_same_state(whole.state_dict(), before)
