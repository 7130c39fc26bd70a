"""A step depends on its number alone: training stopped anywhere goes on as if it had not been, also in a cut model."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from recovery.augment import stochastic_depth
from recovery.data import DataError, Dataset, TensorSplit
from recovery.errors import TrainingError
from recovery.training import Trainer
from tests.cases import CASES, CLASS_TOKEN, assert_same_state, build, images, some_units
from tests.recovery.toys import ARCH, PLAIN, RICH, fresh, stripes
from vit.architecture import Unit
from vit.groups import Keep
from vit.surgery import shrink

DATA = stripes()
DISTILLED = ARCH.replace(dist_token=True)


def trained(recipe, steps=None, model=None, data=DATA, **teachers):
    trainer = Trainer(fresh() if model is None else model, data, recipe, **teachers)
    for _ in trainer.train(trainer.steps if steps is None else steps):
        pass
    return trainer


# --- stopping and going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(0, 13, 2))
def test_training_that_goes_on_from_its_state_ends_bit_equal_to_training_that_never_stopped(stop):
    """With mean of the weights, mixing, erasing and dropped paths; steps 6 and 12 are ends of an epoch."""
    recipe, teacher = replace(RICH, distillation=0.3, steps=13), fresh(seed=1)
    whole = trained(recipe, teacher=teacher)
    state = trained(recipe, stop, teacher=teacher).state()
    random.random(), np.random.rand(), torch.rand(3)
    resumed = Trainer(fresh(seed=5), DATA, recipe, teacher)
    resumed.load_state({name: tensor.clone() for name, tensor in state.items()})
    assert resumed.step == stop
    for report in resumed.train(13):
        assert report.step > stop
    assert_same_state(resumed.state(), whole.state())
    assert not torch.equal(whole.averaged.head.weight, whole.model.head.weight)


def test_the_callers_random_generators_go_on_as_if_nothing_had_been_drawn():
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected, model = draws(), fresh()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    trained(RICH, 3, model)
    assert draws() == expected


def test_a_state_of_another_recipe_or_model_is_refused():
    state = trained(PLAIN, 1).state()
    with pytest.raises(TrainingError, match="another model or recipe"):
        Trainer(fresh(), DATA, RICH).load_state(state)
    with pytest.raises(TrainingError, match="another model or recipe"):
        Trainer(fresh(DISTILLED), DATA, PLAIN).load_state(state)


def test_the_state_is_a_copy():
    trainer = trained(RICH, 3)
    state = trainer.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for _ in trainer.train(5):
        pass
    assert_same_state(state, before)


# --- a model that was cut on the way -----------------------------------------------------------------------------


def test_to_adopt_a_model_of_which_everything_stays_changes_nothing():
    whole = trained(RICH)
    cut = trained(RICH, 5)
    keep = Keep.of(ARCH, {})
    cut.adopt(shrink(cut.model, keep), keep)
    for _ in cut.train(12):
        pass
    assert_same_state(cut.model.state_dict(), whole.model.state_dict())
    assert_same_state(cut.averaged.state_dict(), whole.averaged.state_dict())


@pytest.mark.parametrize("name", ["class_token", "distilled", "rms_norm", "unequal"])
def test_an_adopted_model_keeps_the_moments_of_its_weights_and_its_mean_is_cut_as_it_was(name):
    """A LayerNorm model with the moments for weights, shrunk, holds the moments that have to stay."""
    arch = CASES[name].replace(num_classes=3, in_chans=1, image_size=(8, 8), patch_size=(4, 4))
    trainer = trained(replace(RICH, mixup=0.0), 5, fresh(arch))
    state, average = trainer.state(), copy.deepcopy(trainer.averaged)
    keep = some_units(arch, Unit, seed=1)
    small = shrink(trainer.model, keep)
    trainer.adopt(small, keep)
    assert trainer.model is small
    found = trainer.state()
    for key in ("exp_avg", "exp_avg_sq"):
        stand_in = fresh(arch.replace(norm="layer"))
        moments = {
            parameter: state.get(f"optimizer.{key}.{parameter}", tensor)
            for parameter, tensor in stand_in.state_dict().items()
        }
        stand_in.load_state_dict(moments)
        for parameter, expected in shrink(stand_in, keep).state_dict().items():
            if f"optimizer.{key}.{parameter}" in state:
                torch.testing.assert_close(found[f"optimizer.{key}.{parameter}"], expected, rtol=0, atol=0)
    assert all(int(found[f"optimizer.step.{parameter}"]) == 5 for parameter, _ in small.named_parameters())
    assert_same_state(trainer.averaged.state_dict(), shrink(average, keep).state_dict())
    before = copy.deepcopy(small.state_dict())
    assert [report.step for report in trainer.train(6)] == [6]
    assert not torch.equal(before["head.weight"], small.head.weight)


def test_only_what_is_left_of_the_trained_model_is_adopted():
    trainer, keep = trained(PLAIN, 1), some_units(ARCH, Unit, seed=1)
    with pytest.raises(TrainingError, match="adopt takes what shrink"):
        trainer.adopt(fresh(), keep)


# --- what a step does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 5, 8])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(micro_batch):
    recipe, in_float64 = replace(PLAIN, mixup=0.8, distillation=0.3), DATA.train.images.double()
    split = TensorSplit(in_float64, DATA.train.labels)
    data = Dataset("stripes", split, split, 3, 1, (8, 8), "64")
    whole, parts = (
        trained(some, model=fresh().double(), data=data, teacher=fresh(seed=1).double()).model.state_dict()
        for some in (recipe, replace(recipe, micro_batch=micro_batch))
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)


def test_the_running_mean_is_d_times_itself_plus_the_rest_of_the_weights():
    trainer = Trainer(fresh(), DATA, replace(PLAIN, ema=0.7))
    mean = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for step in range(1, 6):
        for _ in trainer.train(step):
            pass
        mean = {name: 0.7 * mean[name] + 0.3 * tensor for name, tensor in trainer.model.state_dict().items()}
    for name, tensor in trainer.averaged.state_dict().items():
        torch.testing.assert_close(tensor, mean[name])


def rates(**numbers):
    recipe = replace(PLAIN, report_every=1, lr=2e-3, min_lr=1e-4, **numbers)
    return recipe, [report.lr for report in Trainer(fresh(), DATA, recipe).train(recipe.steps)]


@pytest.mark.parametrize(("steps", "cycles", "length"), [(20, 1, 20), (20, 4, 5), (20, 3, 7)])
def test_the_cyclic_rate_is_equation_8_of_ovit(steps, cycles, length):
    recipe, found = rates(schedule="cyclic", steps=steps, cycles=cycles, warmup=0)
    expected = [recipe.lr - (recipe.lr - recipe.min_lr) * (t % length) / length for t in range(steps)]
    assert found == pytest.approx(expected)


def test_the_other_schedules_end_where_they_say_and_stay_where_they_are():
    recipe, found = rates(schedule="cosine", steps=20, warmup=0)
    low, high = recipe.min_lr, recipe.lr
    assert found == pytest.approx([low + (high - low) * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(20)])
    _, found = rates(schedule="constant", steps=10, warmup=2)
    assert found == pytest.approx([1e-3, 1.5e-3] + [2e-3] * 8)


def test_each_layer_learns_slower_than_the_next_by_the_factor_and_only_matrices_decay():
    arch = DISTILLED.replace(reg_tokens=1, layer_scale=True)
    trainer = Trainer(fresh(arch), DATA, replace(PLAIN, layer_decay=0.5, weight_decay=0.05, schedule="constant"))
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    seen = {}
    for group in trainer._optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[parameter]] = (group["lr_scale"], group["weight_decay"])
    assert seen.keys() == set(names.values())
    for name, (scale, decay) in seen.items():
        block = int(name.split(".")[1]) + 1 if name.startswith("blocks") else None
        layer = block or (3 if name.startswith("head") else 2 if name.startswith("norm") else 0)
        assert scale == 0.5 ** (3 - layer), name
        matrix = name.endswith("weight") and "norm" not in name
        assert decay == (0.05 if matrix else 0.0), name


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_a_dropped_path_is_left_out_for_some_images_and_doubled_up_for_the_others(rate):
    """Of two blocks the first drops nothing, the second with the whole rate, attention and MLP each for itself."""
    arch = CLASS_TOKEN
    model, batch = build(arch), images(arch, 64)
    block = model.each_block()[1]
    stream = model.each_block()[0](model.embed(batch))
    plain = model.blocks(model.embed(batch))
    outcomes = []
    for attention in (0, 1 / (1 - rate)):
        x = stream + attention * block.attn(block.norm1(stream))
        outcomes += [x + mlp * block.mlp(block.norm2(x)) for mlp in (0, 1 / (1 - rate))]
    torch.manual_seed(0)
    with stochastic_depth(model, rate):
        found = model.blocks(model.embed(batch))
    seen = [
        [index for index, outcome in enumerate(outcomes) if torch.allclose(found[row], outcome[row], atol=1e-6)]
        for row in range(64)
    ]
    assert all(len(which) == 1 for which in seen)
    assert {which[0] for which in seen} == {0, 1, 2, 3}
    assert torch.equal(model.blocks(model.embed(batch)), plain)


def test_dropped_paths_leave_the_model_as_it_was_built():
    trainer = trained(RICH, 3)
    assert list(trainer.model.state_dict()) == list(fresh().state_dict())
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_bf16_multiplications_train_float32_weights_alike():
    plain, fast = trained(PLAIN), trained(replace(PLAIN, amp="bf16"))
    assert fast.model.head.weight.dtype == torch.float32
    assert not torch.equal(fast.model.head.weight, plain.model.head.weight)
    moved = plain.model.head.weight - fresh().head.weight
    assert (fast.model.head.weight - plain.model.head.weight).norm() < 0.2 * moved.norm()  # bf16 has 8 bits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_training_on_a_gpu_goes_on_from_its_state(amp):
    recipe = replace(RICH, amp=amp)
    whole = trained(recipe, model=fresh().cuda())
    state = trained(recipe, 5, model=fresh().cuda()).state()
    resumed = Trainer(fresh(seed=5).cuda(), DATA, recipe)
    resumed.load_state(state)
    for _ in resumed.train(12):
        pass
    for name, tensor in whole.state().items():
        torch.testing.assert_close(resumed.state()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)  # atomic additions


# --- teachers ----------------------------------------------------------------------------------------------------


class Says(torch.nn.Module):
    """Decides for a class by the corner of the image, whatever the label."""

    def forward(self, batch):
        return torch.nn.functional.one_hot((batch[:, 0, 0, 0] > 0).long(), 3).float()


@pytest.mark.parametrize("arch", [ARCH, DISTILLED])
def test_with_all_weight_on_decisions_the_external_teacher_is_followed_whatever_the_labels(arch):
    recipe = replace(PLAIN, steps=120, hard_distillation=1.0, lr=5e-3)
    model = trained(recipe, model=fresh(arch), external=Says()).model.eval()
    with torch.no_grad():
        said = model.heads(DATA.train.images)[-1].argmax(-1)
    assert (said == Says()(DATA.train.images).argmax(-1)).float().mean() > 0.95
    assert (said == DATA.train.labels).float().mean() < 0.7


def test_without_an_external_teacher_the_uncut_models_decisions_count():
    recipe = replace(PLAIN, hard_distillation=0.5)
    teacher = fresh(seed=1)
    own, same = trained(recipe, teacher=teacher), trained(recipe, teacher=None, external=teacher)
    assert_same_state(own.model.state_dict(), same.model.state_dict())


class Broken(torch.nn.Module):
    def forward(self, batch):
        raise RuntimeError("expected 3 channels")


HARD = replace(PLAIN, hard_distillation=0.5)


@pytest.mark.parametrize(
    ("recipe", "teachers", "says"),
    [
        (HARD, {}, "hard_distillation needs a teacher"),
        (PLAIN, {"external": Says()}, "decisions have no weight here; hard_distillation=0.5"),
        (HARD, {"external": torch.nn.Flatten()}, r"gives \(2, 64\) for two images, the classes want \(2, 3\)"),
        (HARD, {"external": Broken()}, r"cannot read images of \(1, 8, 8\): expected 3 channels"),
        (replace(PLAIN, amp="fp16"), {}, "amp fp16 needs CUDA"),
        (replace(PLAIN, mixup=1.0, batch_size=128), {"odd": True}, r"95 images a step cannot be shared .* in pairs"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(recipe, teachers, says):
    data = stripes(95) if teachers.pop("odd", False) else DATA
    with pytest.raises(TrainingError, match=says):
        Trainer(fresh(), data, recipe, **teachers)


def test_weights_in_half_precision_and_teachers_of_other_classes_are_refused():
    with pytest.raises(TrainingError, match="weights are trained in float32, got"):
        Trainer(fresh().bfloat16(), DATA, PLAIN)
    with pytest.raises(DataError, match="num_classes"):
        Trainer(fresh(), DATA, PLAIN, fresh(ARCH.replace(num_classes=4)))


# --- memory ------------------------------------------------------------------------------------------------------


class Room:
    """A model's heads on a machine with room for so many images."""

    def __init__(self, heads, room, error):
        self.heads, self.room, self.error = heads, room, error

    def __call__(self, batch):
        if len(batch) > self.room:
            raise self.error
        return self.heads(batch)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_halving_micro_batch_as_a_full_memory_advises_ends_where_it_fits_or_at_one(error, monkeypatch):
    tried, micro_batch = [], None
    while True:
        model = fresh()
        before = copy.deepcopy(model.state_dict())
        monkeypatch.setattr(model, "heads", Room(model.heads, 5, error), raising=False)
        try:
            trained(replace(PLAIN, micro_batch=micro_batch), 1, model)
            break
        except TrainingError as found:
            text = str(found)
            assert "at step 1; the model holds the weights of step 0" in text
            assert_same_state(model.state_dict(), before)
            tried.append(int(text.split("memory with ")[1].split()[0]))
            micro_batch = int(text.split("micro_batch=")[1])
    assert (tried, micro_batch) == ([16, 8], 4)
    monkeypatch.setattr(model, "heads", Room(model.heads, 0, error))
    with pytest.raises(TrainingError, match=r"with 1 image\(s\) at a time .* needs more memory"):
        trained(replace(PLAIN, micro_batch=1), 1, model)


def test_other_errors_of_a_model_stay_what_they_are(monkeypatch):
    model = fresh()
    monkeypatch.setattr(model, "heads", Room(model.heads, 0, RuntimeError("shapes differ")), raising=False)
    with pytest.raises(RuntimeError, match="shapes differ"):
        trained(PLAIN, 1, model)


class Short(TensorSplit):
    def __len__(self):
        return 48

    def shuffled(self, batch_size, seed, *, augment, start=0, share=(0, 1)):
        yield from self.ordered(batch_size)


def test_a_split_with_fewer_batches_than_its_length_says_is_refused():
    split = Short(DATA.train.images[:32], DATA.train.labels[:32])
    with pytest.raises(TrainingError, match="48 training images give 2 batches of 16, not 3"):
        trained(PLAIN, data=Dataset("short", split, split, 3, 1, (8, 8), "x"))
