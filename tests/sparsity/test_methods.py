"""Every method keeps one contract, and each is its formula; written out with dense matrices."""

import copy
from dataclasses import replace

import pytest
import torch

from sparsity.errors import GradientError, PatternError, SparsityError
from sparsity.layers import Selection
from sparsity.methods import METHODS
from sparsity.oneshot import Sparsify, sparsify
from sparsity.pattern import Layout, Pattern
from tests.cases import assert_same_state
from tests.sparsity.plain import ovit, quadratic_loss
from tests.sparsity.toys import batches, collected, fisher, loss, net
from vit.errors import MaskError
from vit.masks import SparsityMask

NAMES = ["conv.weight", "hidden.weight", "head.weight"]
TOTAL = 256 + 512 + 128
EVERY = pytest.mark.parametrize("method", list(METHODS))
REQUEST = Sparsify(sparsity=0.5, selection=Selection(), block_size=24, damp=1e-4)
HIDDEN = replace(REQUEST, selection=Selection(("hidden.*",)))


def run(model, request, mask=None, given=None):
    return sparsify(
        model, batches(dtype=next(model.parameters()).dtype) if given is None else given, loss, request, mask
    )


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.99])
def test_just_as_many_zeros_as_asked_for_in_a_copy_the_same_each_time(method, dtype, sparsity):
    model = net(dtype)
    before = copy.deepcopy(model.state_dict())
    request = replace(REQUEST, method=method, sparsity=sparsity)
    made = run(model, request)
    assert made.mask.zeros == round(sparsity * TOTAL)
    assert made.mask.total == TOTAL
    assert sum(int((made.model.get_parameter(name) == 0).sum()) for name in NAMES) == made.mask.zeros
    assert made.gradients == (12 if METHODS[method].needs_gradients else 0)
    assert_same_state(model.state_dict(), before)
    assert_same_state(run(model, request).model.state_dict(), made.model.state_dict())
    assert all(parameter.isfinite().all() for parameter in made.model.parameters())


@EVERY
def test_a_second_step_keeps_earlier_zeros_and_goes_on(method):
    request = replace(REQUEST, method=method)
    first = run(net(), request)
    second = run(first.model, replace(request, sparsity=0.8), first.mask)
    assert second.mask.zeros == round(0.8 * TOTAL)
    assert second.mask.within(first.mask)
    assert all(second.model.get_parameter(name).count_nonzero() for name in NAMES)
    again = run(first.model, request, first.mask)  # nothing to do
    assert_same_state(again.model.state_dict(), first.model.state_dict())


@EVERY
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_just_n_of_every_m_neighbours_stay(method, pattern):
    shape = Pattern.named(pattern)
    made = run(net(), replace(REQUEST, method=method, sparsity=None, pattern=shape))
    for name, keep in made.mask.keep.items():
        groups = keep.movedim(1, -1).reshape(-1, shape.of)
        assert (groups.sum(dim=1) == shape.keep).all(), name


@EVERY
@pytest.mark.parametrize("pattern", ["1x4", "4x1", "2x2"])
def test_tiles_go_whole(method, pattern):
    shape = Pattern.named(pattern)
    request = replace(REQUEST, method=method, pattern=shape)
    made = run(net(), request)
    assert made.mask.zeros == TOTAL // 2
    second = run(made.model, replace(request, sparsity=0.75), made.mask)
    assert second.mask.zeros == TOTAL * 3 // 4
    assert second.mask.within(made.mask)
    for keep in second.mask.keep.values():
        rows = keep.movedim(1, -1).reshape(keep.shape[0] // shape.rows, shape.rows, -1, shape.cols)
        tiles = rows.transpose(1, 2).reshape(-1, shape.unit)
        assert (tiles.all(dim=1) | ~tiles.any(dim=1)).all()


@EVERY
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
def test_uniform_takes_the_same_share_of_every_layer(method, sparsity):
    made = run(net(), replace(REQUEST, method=method, scope="uniform", sparsity=sparsity))
    for name, keep in made.mask.keep.items():
        assert int((~keep).sum()) == round(sparsity * keep.numel()), name


@EVERY
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_layers_in_turn_get_what_all_at_once_get(method, scope):
    request = replace(REQUEST, method=method, scope=scope)
    whole = run(net(), request)
    largest = 528 * METHODS[method].floats(24, 12) * 8 / 2**30
    parts = run(net(), replace(request, memory_gb=largest))
    assert_same_state(parts.model.state_dict(), whole.model.state_dict())
    with pytest.raises(SparsityError, match="alone takes"):
        run(net(), replace(request, memory_gb=largest * 0.99))


@EVERY
def test_several_recomputations_end_at_the_same_number_of_zeros(method):
    made = run(net(), replace(REQUEST, method=method, recomputations=3, sparsity=0.7))
    assert made.mask.zeros == round(0.7 * TOTAL)


@pytest.mark.parametrize("method", ["ovit", "woodfisher", "magnitude"])
def test_half_precision_is_done_in_float32(method):
    made = run(net(torch.bfloat16), replace(REQUEST, method=method))
    assert made.mask.zeros == TOTAL // 2
    assert made.model.hidden.weight.dtype == torch.bfloat16


# Formulas, on the hidden layer: 512 weights in 22 blocks of 24, the last one padded.


def rows_and_weights(model):
    rows = collected(model, ["hidden.weight"], batches()(0))["hidden.weight"]
    return rows, model.hidden.weight.detach().flatten()


def padded(rows, size):
    return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % size))


def without_smallest(weights, scores, zeros):
    removed = torch.zeros_like(weights, dtype=torch.bool)
    removed[scores.argsort(stable=True)[:zeros]] = True
    return removed


@pytest.mark.parametrize("method", ["magnitude", "grw", "diagonal"])
def test_methods_that_move_nothing_are_their_scores(method):
    model = net()
    rows, weights = rows_and_weights(model)
    scores = {
        "magnitude": weights.abs(),
        "grw": sum((weights * row).abs() for row in rows),
        "diagonal": weights.square() / (2 / (rows.square().mean(dim=0) + 1e-4)),
    }[method]
    made = run(model, replace(HIDDEN, method=method)).model.hidden.weight.flatten()
    torch.testing.assert_close(made, weights.masked_fill(without_smallest(weights, scores, 256), 0.0))


def woodfisher(rows, weights, size, damp, zeros):
    count = len(weights)
    rows, weights = padded(rows, size), padded(weights, size)
    inverse = torch.linalg.inv(torch.block_diag(*fisher(rows, size, damp)))
    variance = inverse.diagonal()
    scores = (weights.square() / (2 * variance)).index_fill(0, torch.arange(count, len(weights)), torch.inf)
    removed = without_smallest(weights, scores, zeros)
    made = weights - inverse @ torch.where(removed, weights / variance, 0.0)
    return made.masked_fill(removed, 0.0)[:count]


def test_woodfisher_adds_up_the_update_of_each_weight_alone():
    model = net()
    rows, weights = rows_and_weights(model)
    made = run(model, replace(HIDDEN, method="woodfisher")).model.hidden.weight.flatten()
    torch.testing.assert_close(made, woodfisher(rows, weights, 24, 1e-4, 256))


@pytest.mark.parametrize("block_size", [24, 512])
def test_mfac_is_woodfisher_without_its_matrix(block_size):
    model = net()
    rows, weights = rows_and_weights(model)
    made = run(model, replace(HIDDEN, method="mfac", block_size=block_size)).model.hidden.weight.flatten()
    torch.testing.assert_close(made, woodfisher(rows, weights, block_size, 1e-4, 256))
    fisher_made = run(model, replace(HIDDEN, method="woodfisher", block_size=block_size)).model.hidden.weight.flatten()
    torch.testing.assert_close(made, fisher_made)


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("zeros", [100, 256, 400])
def test_ovit_with_cumulative_errors_is_algorithm_1_as_the_paper_writes_it(block_size, zeros):
    model = net()
    rows, weights = rows_and_weights(model)
    expected, _ = ovit(rows, weights, block_size, 1e-4, zeros)
    request = replace(HIDDEN, block_size=block_size, merge="cumulative", sparsity=zeros / 512)
    torch.testing.assert_close(run(model, request).model.hidden.weight.flatten(), expected)


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_in_its_own_model_of_the_loss_ovit_loses_less_than_woodfisher_and_that_less_than_magnitude(sparsity):
    model = net()
    given = batches(200, size=16)
    rows = collected(model, ["hidden.weight"], given(0))["hidden.weight"]
    weights = model.hidden.weight.detach().flatten()
    lost = {}
    for method in ("ovit", "woodfisher", "magnitude"):
        request = replace(HIDDEN, block_size=64, method=method, sparsity=sparsity)
        after = run(model, request, given=given).model.hidden.weight.detach().flatten()
        lost[method] = quadratic_loss(rows, weights, after, 64, 1e-4)
    assert lost["ovit"] < lost["woodfisher"] < lost["magnitude"]


# Bad input.


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(SparsityError, match="from 0 to less than 1"):
        Sparsify(sparsity=sparsity)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"block_size": 0}, "block_size"),
        ({"damp": 0.0}, "damp"),
        ({"recomputations": 0}, "recomputations"),
        ({"memory_gb": 0.0}, "memory_gb"),
        ({"sparsity": None}, "needs a sparsity"),
        ({"pattern": Pattern(keep=2, of=4)}, "of its own"),
        ({"method": "guess"}, "unknown method"),
        ({"scope": "guess"}, "unknown scope"),
        ({"merge": "guess"}, "unknown merge"),
        ({"silent": "guess"}, "unknown way"),
    ],
)
def test_settings_outside_their_ranges_are_refused(wrong, said):
    with pytest.raises((SparsityError, LookupError), match=said):
        replace(REQUEST, **wrong)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_sparsity_below_the_current_one_is_refused(scope):
    request = replace(REQUEST, method="magnitude", scope=scope)
    first = run(net(), request)
    with pytest.raises(SparsityError, match="zero already"):
        run(first.model, replace(request, sparsity=0.4), first.mask)


def test_a_layer_with_more_zeros_than_each_is_to_have_is_named():
    model = net()
    with torch.no_grad():
        model.head.weight[:6] = 0
    with pytest.raises(SparsityError, match=r"75.00% of head.weight are zero already"):
        run(model, replace(REQUEST, method="magnitude", scope="uniform"))


@pytest.mark.parametrize("sparsity", [0.333, 0.5, 0.667])
@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_the_sparsity_that_was_reached_can_be_asked_for_again(sparsity, pattern):
    """Rounding does not make a second step one below the first."""
    model = torch.nn.Linear(3, 4)
    request = Sparsify(
        sparsity=sparsity, method="magnitude", selection=Selection(), block_size=4, pattern=Pattern.named(pattern)
    )
    first = sparsify(model, None, None, request)
    assert first.mask.zeros <= round(sparsity * 12)
    assert sparsify(first.model, None, None, request, first.mask).mask.zeros == first.mask.zeros


@pytest.mark.parametrize("method", [name for name, how in METHODS.items() if how.needs_gradients])
def test_gradients_that_are_not_finite_name_layer_and_batch(method):
    def given(step):
        for number, (x, y) in enumerate(batches(5)(step)):
            if number == 3:
                x[0, 0, 0, 0] = torch.nan
            yield x, y

    with pytest.raises(GradientError, match=r"conv.weight is not finite in batch 4 \(loss nan\)") as error:
        run(net(), replace(REQUEST, method=method), given=given)
    assert error.value.layer == "conv.weight"


def test_a_loss_that_is_not_finite_is_refused_though_gradients_are():
    def strange(model, x, y):
        return loss(model, x, y) + torch.inf

    with pytest.raises(SparsityError, match="loss of batch 1 is inf"):
        sparsify(net(), batches(2), strange, REQUEST)


def without_hidden(model, x, y):
    """A loss to which the head alone matters."""
    return torch.nn.functional.cross_entropy(model.head(x.flatten(1)[:, :16]), y)


def test_layers_that_no_gradient_tells_of_stop_or_are_skipped():
    with pytest.raises(GradientError, match=r"conv.weight is zero in all 12 batches.*skip") as error:
        sparsify(net(), batches(), without_hidden, REQUEST)
    assert error.value.layer == "conv.weight"
    model = net()
    made = sparsify(model, batches(), without_hidden, replace(REQUEST, silent="skip", scope="uniform"))
    assert made.skipped == ("conv.weight", "hidden.weight")
    assert torch.equal(made.model.hidden.weight, model.hidden.weight)
    assert int((made.model.head.weight == 0).sum()) == 64


def test_more_than_layers_that_are_not_skipped_have_is_refused():
    with pytest.raises(SparsityError, match="448 units were to be removed, only 128 may go"):
        sparsify(net(), batches(), without_hidden, replace(REQUEST, silent="skip"))

    def nothing(model, x, y):
        return 0 * loss(model, x, y)

    with pytest.raises(SparsityError, match="only 0 may go"):
        sparsify(net(), batches(), nothing, replace(REQUEST, silent="skip"))


def test_methods_that_look_at_data_need_some():
    with pytest.raises(SparsityError, match="needs calibration batches"):
        sparsify(net(), None, None, REQUEST)
    with pytest.raises(SparsityError, match="no calibration batch"):
        sparsify(net(), lambda step: iter(()), loss, REQUEST)


@pytest.mark.parametrize(
    ("pattern", "block_size", "said"),
    [
        ("3:16", 48, "conv.weight has 8 input channels"),
        ("3x1", 24, "conv.weight has 8 output channels"),
        ("2:4", 23, "take a multiple of 4"),
        ("1x8", 4, "take a multiple of 8"),
    ],
)
def test_a_pattern_that_does_not_divide_a_dimension_is_refused(pattern, block_size, said):
    shape = Pattern.named(pattern)
    request = replace(REQUEST, pattern=shape, block_size=block_size, sparsity=None if shape.of else 0.5)
    with pytest.raises(PatternError, match=said):
        run(net(), request)


@pytest.mark.parametrize("name", ["4:2", "0:4", "0x4", "2:4:8", "two", ""])
def test_what_is_no_pattern_is_refused(name):
    with pytest.raises(PatternError):
        Pattern.named(name)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1x4", "4x1", "2x2"])
@pytest.mark.parametrize("shape", [(8, 4), (4, 8, 3), (8, 8, 3, 2)])
def test_a_layout_there_and_back_is_the_weight(pattern, shape):
    layout = Layout("w", shape, Pattern.named(pattern), 12)
    weight = torch.arange(1.0, 1 + layout.size).view(shape)
    laid = layout.blocks(weight)
    assert laid.shape == (layout.count, 12)
    assert laid.count_nonzero() == layout.size
    assert torch.equal(layout.weight(laid), weight)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(MaskError, match="has shape"):
        run(net(), REQUEST, SparsityMask({"hidden.weight": torch.ones(3, 3, dtype=torch.bool)}))


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_where_memory_is_too_small_the_block_size_that_is_named_fits_and_no_larger_one(pattern):
    request = replace(REQUEST, pattern=Pattern.named(pattern), memory_gb=3e-4)
    with pytest.raises(SparsityError, match=r"hidden.weight alone takes .* blocks of \d+ would fit") as error:
        run(net(), request)
    fits = int(str(error.value).rpartition("blocks of ")[2].split()[0])
    made = run(net(), replace(request, block_size=fits))
    assert made.mask.zeros == TOTAL // 2
    with pytest.raises(SparsityError, match="alone takes"):
        run(net(), replace(request, block_size=fits + request.pattern.unit))


def test_where_memory_is_too_small_for_all_gradients_the_number_that_fits_is_named():
    request = replace(REQUEST, method="mfac", memory_gb=528 * (9.5 + 16) * 8 / 2**30)
    with pytest.raises(SparsityError, match=r"alone takes .* with 12 gradients kept, .* 9 gradients would fit"):
        run(net(), request)
    made = run(net(), request, given=batches(9))
    assert_same_state(
        made.model.state_dict(), run(net(), replace(request, memory_gb=None), given=batches(9)).model.state_dict()
    )
    with pytest.raises(SparsityError, match="no smaller number would fit"):
        run(net(), replace(request, memory_gb=1e-6))


def test_where_no_block_size_fits_that_is_said():
    with pytest.raises(SparsityError, match="no smaller blocks would fit"):
        run(net(), replace(REQUEST, memory_gb=1e-6))
