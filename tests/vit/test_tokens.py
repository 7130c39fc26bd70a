"""Dropping tokens: what is trained with masks is what is run without the tokens, in batches, on files and in ONNX."""

import itertools
import json

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cases import CASES, CLASS_TOKEN, UNEQUAL, assert_same_state, build, generator, images, randomise, some_units
from tests.vit.test_sparse_storage import random_masks
from vit.architecture import Unit
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.checkpoint_header import read_header
from vit.errors import ArchitectureError, CheckpointError, UnsupportedModelError
from vit.export import export_onnx, export_standalone, export_torch
from vit.surgery import shrink
from vit.token_plan import TokenPlan
from vit.tokens import TokenPrunedTransformer

DEEP = UNEQUAL.replace(image_size=(40, 32), blocks=UNEQUAL.blocks + UNEQUAL.blocks[:1], softmax_scale=None)


def pruned(arch, ratio=0.3, dtype=torch.float64, after=None):
    """A model with random weights everywhere that drops tokens."""
    plan = TokenPlan.usual(arch, ratio) if after is None else TokenPlan(after, ratio)
    model = TokenPrunedTransformer.of(build(arch, dtype=dtype), plan, generator())
    randomise(model)
    return model.eval()


def lowest_leave(model):
    """The decisions of inference, among the tokens that are left: a slow truth for `masked`."""
    counts, stage, left = model.plan.counts(model.arch.patches), 0, None

    def decide(log_probabilities):
        nonlocal stage, left
        scores = log_probabilities[..., 1].detach()
        if left is not None:
            scores = scores.masked_fill(left == 0, -torch.inf)
        left = torch.zeros_like(scores)
        for row, image in enumerate(scores):
            for token in sorted(range(len(image)), key=lambda t: -float(image[t]))[: counts[stage]]:
                left[row, token] = 1
        stage += 1
        return left

    return decide


@pytest.mark.parametrize("name", CASES)
def test_hiding_tokens_in_training_equals_taking_them_out(name):
    arch = CASES[name].replace(image_size=(40, 32))
    model, batch = pruned(arch), images(arch)
    hidden, taken = model.masked(batch, lowest_leave(model)).heads, model.heads(batch)
    assert len(hidden) == len(taken)
    for ours, theirs in zip(hidden, taken, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["class_token", "distilled", "registers", "pooled", "pooled_with_prefix"])
def test_prefix_tokens_stay_and_the_rest_leave_as_planned(name):
    arch = CASES[name].replace(image_size=(40, 32), blocks=CLASS_TOKEN.blocks * 2)
    model, seen = pruned(arch, 0.2), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    batch = images(arch)
    model(batch)
    prefix = arch.prefix_tokens
    assert [x.shape[1] - prefix for x in seen] == [20, 16, 12, 10] == [t - prefix for t in model.plan.tokens(arch)]
    dense = build(arch)
    dense.load_state_dict(model.state_dict(), strict=False)
    first = dense.blocks[0](dense.embed(batch))
    torch.testing.assert_close(seen[1][:, :prefix], first[:, :prefix])
    for image, left in zip(first, seen[1], strict=True):  # each token left is one of those that were there, in order
        places = [int((image - token).abs().sum(-1).argmin()) for token in left[prefix:]]
        assert places == sorted(set(places))


def test_images_do_not_depend_on_the_others_of_their_batch():
    model, batch = pruned(DEEP), images(DEEP, 5)
    one_by_one = torch.cat([model(image[None]) for image in batch])
    torch.testing.assert_close(model(batch), one_by_one)


@pytest.mark.parametrize(
    ("depth", "after"), [(12, (3, 6, 9)), (24, (6, 12, 18)), (4, (1, 2, 3)), (3, (1, 2)), (2, (1,)), (6, (2, 3, 4))]
)
def test_places_are_in_proportion_to_the_depth(depth, after):
    assert TokenPlan.usual(CLASS_TOKEN.replace(blocks=CLASS_TOKEN.blocks[:1] * depth)).after == after


def test_deit_drops_a_fifth_three_times():
    assert TokenPlan((3, 6, 9)).counts(196) == (156, 125, 100)


@pytest.mark.parametrize(
    ("after", "ratio", "message"),
    [
        ((1,), 0.0, "between 0 and 1"),
        ((1,), 1.0, "between 0 and 1"),
        ((1,), 1, "between 0 and 1"),
        ((1,), float("nan"), "between 0 and 1"),
        ((), 0.2, "rising order"),
        ((0,), 0.2, "rising order"),
        ((2, 1), 0.2, "rising order"),
        ((1, 1), 0.2, "rising order"),
        ((True,), 0.2, "rising order"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(after, ratio, message):
    with pytest.raises(ArchitectureError, match=message):
        TokenPlan(after, ratio)


def test_tokens_cannot_be_dropped_after_the_last_block_or_twice_over():
    with pytest.raises(ArchitectureError, match="after block 2, of 2 it must be below 2"):
        TokenPrunedTransformer(CLASS_TOKEN, TokenPlan((2,)))
    with pytest.raises(ArchitectureError, match="at least two blocks"):
        TokenPlan.usual(CLASS_TOKEN.replace(blocks=CLASS_TOKEN.blocks[:1]))
    with pytest.raises(UnsupportedModelError, match="drops tokens already"):
        TokenPrunedTransformer.of(pruned(CLASS_TOKEN), TokenPlan((1,)), generator())


def test_a_token_that_left_stays_away():
    model = pruned(DEEP)
    torch.manual_seed(0)
    decisions = model.masked(images(DEEP), lambda logs: (torch.rand_like(logs[..., 0]) < 0.6).double()).decisions
    assert len(decisions) == 3
    for before, after in itertools.pairwise(decisions):
        assert bool((after <= before).all())


def test_a_checkpoint_brings_plan_weights_and_masks_back(tmp_path):
    model = pruned(DEEP, dtype=torch.float32)
    masks = random_masks(model)
    masks.apply_(model)
    save_checkpoint(Checkpoint.of(model, (), masks), tmp_path / "model")
    assert read_header(tmp_path / "model").tokens == model.plan
    back = load_checkpoint(tmp_path / "model")
    assert_same_state(dict(sorted(back.weights.items())), dict(sorted(model.state_dict().items())))
    torch.testing.assert_close(back.model()(batch := images(DEEP, dtype=torch.float32)), model(batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    "tokens",
    [
        "{",
        "5",
        "null",
        '{"after": [1]}',
        '{"after": [9], "ratio": 0.2}',
        '{"after": 1, "ratio": 0.2}',
        '{"after": ["1"], "ratio": 0.2}',
    ],
)
def test_a_damaged_plan_is_refused(tmp_path, tokens):
    path = tmp_path / "model"
    save_checkpoint(Checkpoint.of(pruned(DEEP)), path)
    save_file(load_file(path), path, read_header(path).to_metadata() | {"tokens": tokens})
    with pytest.raises(CheckpointError, match="damaged header"):
        load_checkpoint(path)


def test_predictors_that_are_missing_are_named(tmp_path):
    path = tmp_path / "model"
    save_checkpoint(Checkpoint.of(pruned(DEEP)), path)
    weights = {name: tensor for name, tensor in load_file(path).items() if "predictors.2" not in name}
    save_file(weights, path, read_header(path).to_metadata())
    with pytest.raises(CheckpointError, match=r"weight predictors\.2\.\S+ has shape None"):
        load_checkpoint(path)


def test_it_exports_to_onnx_with_any_batch_size(tmp_path):
    checkpoint = Checkpoint.of(pruned(DEEP, dtype=torch.float32))
    assert export_onnx(checkpoint, tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        batch = images(DEEP, count, seed=3, dtype=torch.float32)
        found = session.run(None, {"images": batch.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), checkpoint.model()(batch).detach(), rtol=1e-4, atol=1e-4)
    assert export_torch(checkpoint, tmp_path / "model.pt2") < 1e-4


def test_what_cannot_take_it_says_what_to_do_first(tmp_path):
    model = pruned(DEEP)
    with pytest.raises(UnsupportedModelError, match="cutting units out does not take a model that drops tokens"):
        shrink(model, some_units(DEEP, Unit))
    with pytest.raises(UnsupportedModelError, match="stand-alone export"):
        export_standalone(Checkpoint.of(model), tmp_path / "standalone")
    assert not (tmp_path / "standalone").exists()


def test_a_pruned_model_can_drop_tokens_too():
    small = shrink(build(DEEP), some_units(DEEP, Unit))
    model = TokenPrunedTransformer.of(small, TokenPlan.usual(small.arch, 0.4), generator())
    randomise(model)
    batch = images(small.arch)
    torch.testing.assert_close(model.masked(batch, lowest_leave(model)).heads[0], model.heads(batch)[0])
    assert json.loads(model.plan.to_json()) == {"after": [1, 2, 3], "ratio": 0.4}
