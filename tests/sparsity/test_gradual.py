"""Phases of pruning and training: which zeros there are in each, and that a run goes on as if it had never stopped."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsity.errors import SparsityError
from sparsity.gradual import Phase, ac_dc, gradual, rigl, sweep
from sparsity.layers import Selection
from sparsity.oneshot import Sparsify
from sparsity.pattern import Pattern
from sparsity.schedule import regrown

ALL = Selection(kinds=("linear",))
LEVELS = (0.25, 0.5, 0.75)


def loss(model, x, y):
    return F.mse_loss(model(x), y)


def batches(step):
    generator = torch.Generator().manual_seed(step)
    for _ in range(6):
        yield torch.randn(8, 8, generator=generator).double(), torch.randn(8, 4, generator=generator).double()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).double()


class Recovery:
    """A few steps of plain gradient descent with the zeros kept."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, mask, phase):
        self.seen.append((phase, None if mask is None else mask.sparsity))
        weights = list(model.parameters())
        for batch in batches(100 + phase):
            gradients = torch.autograd.grad(loss(model, *batch), weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= 0.01 * gradient
                if mask is not None:
                    mask.apply_(model)
        return model


def request(**changes):
    return Sparsify(**{"sparsity": 0.75, "selection": ALL, "block_size": 8} | changes)


def test_a_sweep_reaches_every_level_exactly_and_gives_no_weight_back(model):
    recover, before = Recovery(), {name: weight.clone() for name, weight in model.state_dict().items()}
    phases = list(gradual(model, sweep(LEVELS, request(), batches, loss), recover))
    assert [phase.sparsity for phase in phases] == list(LEVELS)
    assert recover.seen == list(enumerate(LEVELS)), "trained with the mask of the phase"
    for earlier, later in itertools.pairwise(phases):
        assert later.mask.within(earlier.mask)
    for phase in phases:
        for name, keep in phase.mask.keep.items():
            assert (phase.model.get_parameter(name)[~keep] == 0).all()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], msg=f"{name}: the model that was given stays as it is")


def test_a_run_that_goes_on_after_any_phase_ends_as_one_that_never_stopped(model):
    changes = sweep(LEVELS, request(recomputations=2), batches, loss)
    phases = list(gradual(model, changes, Recovery()))
    for phase in phases[:-1]:
        after = Phase(phase.index, phase.model, phase.mask)
        *_, last = gradual(model, changes, Recovery(), after)
        assert last.mask.fingerprint == phases[-1].mask.fingerprint
        for name, weight in last.model.state_dict().items():
            assert torch.equal(weight, phases[-1].model.state_dict()[name])


def test_every_pruning_step_of_a_sweep_sees_other_batches(model):
    asked = []

    def counted(step):
        asked.append(step)
        return batches(step)

    list(gradual(model, sweep(LEVELS, request(recomputations=2), counted, loss), Recovery()))
    assert asked == list(range(6))


def test_a_sweep_of_a_pattern_with_a_sparsity_of_its_own_is_refused():
    with pytest.raises(SparsityError, match="the pattern 2:4 has one of its own"):
        sweep(LEVELS, request(sparsity=None, pattern=Pattern.named("2:4")), batches, loss)


def test_ac_dc_is_dense_in_every_other_phase_and_ends_at_its_sparsity(model):
    recover, before = Recovery(), {name: weight.clone() for name, weight in model.state_dict().items()}
    *_, last = gradual(model, ac_dc(6, 0.75, ALL), recover)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), "the model that was given stays as it is"
    assert [sparsity for _, sparsity in recover.seen] == [None, 0.75] * 3
    assert last.sparsity == 0.75
    with pytest.raises(SparsityError, match="even number"):
        ac_dc(5, 0.75, ALL)


def test_rigl_keeps_one_sparsity_and_exchanges_the_smallest_for_the_largest_gradients(model):
    changes = rigl(4, 0.5, ALL, batches, loss, most=0.4)
    model, mask = changes[0](model, None)
    assert set(mask.sparsities().values()) == {0.5}, "the same in every layer"
    for phase in range(1, 4):
        sums = dict.fromkeys(mask.keep, 0.0)
        for batch in batches(phase):
            for name, gradient in zip(
                sums, torch.autograd.grad(loss(model, *batch), [model.get_parameter(n) for n in sums]), strict=True
            ):
                sums[name] = sums[name] + gradient
        made, after = changes[phase](model, mask)
        for name, keep in mask.keep.items():
            weight, now = model.get_parameter(name), after.keep[name]
            count = int(regrown(phase, 4, 0.4) * int(keep.sum()))
            gone, come = keep & ~now, ~keep & now
            assert int(gone.sum()) == int(come.sum()) == count
            if count:
                assert weight[gone].abs().max() <= weight[keep & now].abs().min()
                assert sums[name][come].abs().min() >= sums[name][~keep & ~now].abs().max()
            assert (made.get_parameter(name)[come] == 0).all()
        model, mask = made, after
        model = Recovery()(model, mask, phase)
