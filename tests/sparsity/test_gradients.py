"""Gradients that are collected batch by batch leave the model as it is; statistics of them are their definitions."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsity import methods, statistics
from sparsity.gradients import gradients
from sparsity.layers import Selection
from sparsity.oneshot import Sparsify, sparsify
from sparsity.pattern import Pattern
from sparsity.statistics import WAITING, BlockFisher, Products, Squares, Stored
from tests.cases import assert_same_state
from tests.sparsity.toys import batches, collected, fisher, loss, net, problem


def weights_of(model):
    return {"conv.weight": model.conv.weight, "head.weight": model.head.weight}


def test_are_those_of_backward_batch_by_batch():
    model = net()
    expected = collected(model, ["conv.weight", "head.weight"], batches()(0))
    found = list(gradients(model, batches()(0), loss, weights_of(model)))
    for name, rows in expected.items():
        torch.testing.assert_close(torch.stack([one[name].flatten() for one in found]), rows)


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(4).eval()
        self.last = nn.Linear(4, 2).requires_grad_(False)

    def forward(self, x):
        return self.last(self.frozen(self.first(x)))


def test_leave_modes_statistics_gradients_and_what_is_frozen_as_they_were():
    model = Moody()
    model.first[0].weight.grad = torch.ones(4, 4)
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    given = [(torch.randn(3, 4), torch.tensor([0, 1, 0])) for _ in range(2)]
    found = list(
        gradients(model, given, loss, {"first.0.weight": model.first[0].weight, "last.weight": model.last.weight})
    )
    again = list(gradients(model, given, loss, {"last.weight": model.last.weight}))
    assert torch.equal(found[1]["last.weight"], again[1]["last.weight"])  # no dropout: eval mode
    assert [module.training for module in model.modules()] == modes
    assert not model.last.weight.requires_grad
    assert torch.equal(model.first[0].weight.grad, torch.ones(4, 4))
    assert_same_state(model.state_dict(), state)


def test_parameters_that_do_not_matter_have_a_gradient_of_zero():
    model = net()
    found = next(gradients(model, batches()(0), lambda m, x, y: m.head(x.flatten(1)[:, :16]).mean(), weights_of(model)))
    assert not found["conv.weight"].any()
    assert found["head.weight"].any()


def test_work_where_gradients_are_switched_off():
    model = net()
    with torch.no_grad():
        assert next(gradients(model, batches()(0), loss, weights_of(model)))["head.weight"].any()


@pytest.mark.parametrize("size", [1, 8, 60, 130])
@pytest.mark.parametrize("count", [1, WAITING - 1, WAITING, 2 * WAITING + 5])
def test_statistics_are_their_definitions_however_many_gradients_there_are(size, count, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", 2 * min(count, size, WAITING) * size)  # two of three blocks at a time
    rows, flat = problem(3, size, count)
    weights = flat.view(3, size)
    made = [kind(weights) for kind in (BlockFisher, Products, Squares, Stored)]
    for row in rows:
        for statistic in made:
            statistic.add(row.view(3, size))
    for statistic in made:
        statistic.sums()
    blocks = rows.view(count, 3, size)
    torch.testing.assert_close(made[0].blocks / count, fisher(rows, size, 0.0))
    torch.testing.assert_close(made[1].total, (blocks * weights).abs().sum(dim=0))
    torch.testing.assert_close(made[2].total, blocks.square().sum(dim=0))
    torch.testing.assert_close(made[3].of_blocks(0, 3), blocks.transpose(0, 1))
    inverse, least = made[0].inverse_(count, 1e-2)
    expected = fisher(rows, size, 1e-2)
    torch.testing.assert_close(inverse, torch.linalg.inv(expected))
    torch.testing.assert_close(least, expected.diagonal(dim1=1, dim2=2).reciprocal())
    assert (inverse.diagonal(dim1=1, dim2=2) >= least - 1e-9).all()


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_what_one_turn_of_layers_takes_is_gone_before_the_next_one_begins(monkeypatch, scope):
    """So that layers in turn take the memory of one turn."""
    alive, most = weakref.WeakSet(), 0

    class Watched(BlockFisher):
        def __init__(self, weights):
            nonlocal most
            super().__init__(weights)
            alive.add(self.blocks)
            most = max(most, len(alive))

    watched = replace(methods.METHODS["ovit"], statistic=Watched)
    monkeypatch.setitem(methods.METHODS, "ovit", watched)
    request = Sparsify(
        sparsity=0.5, selection=Selection(), block_size=24, damp=1e-4, scope=scope, memory_gb=528 * 88 * 8 / 2**30
    )
    sparsify(net(), batches(3), loss, request)
    assert most < 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", list(methods.METHODS))
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_cuda_gives_the_masks_and_weights_of_the_cpu_in_float64(method, pattern):
    shape = Pattern.named(pattern)
    request = Sparsify(
        sparsity=None if shape.of else 0.5,
        method=method,
        pattern=shape,
        selection=Selection(),
        block_size=24,
        damp=1e-4,
    )

    def on_cuda(step):
        for x, y in batches()(step):
            yield x.cuda(), y.cuda()

    here = sparsify(net(), batches(), loss, request)
    there = sparsify(net().cuda(), on_cuda, loss, request)
    assert there.mask.fingerprint == here.mask.fingerprint
    for name in here.mask.keep:
        torch.testing.assert_close(there.model.get_parameter(name).cpu(), here.model.get_parameter(name))
