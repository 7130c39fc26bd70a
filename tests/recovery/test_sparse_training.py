"""Training keeps what a mask removes at zero, whatever the optimiser remembers, and takes other masks on the way."""

from dataclasses import replace

import pytest
import torch

from recovery.errors import TrainingError
from recovery.loop import finetune
from recovery.training import Trainer
from tests.cases import CLASS_TOKEN, assert_same_state, build
from tests.recovery.toys import PLAIN, RICH, fresh, stripes
from vit.errors import MaskError
from vit.masks import SparsityMask

DATA = stripes()


def mask_of(model, share=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SparsityMask(
        {
            name: torch.rand(weight.shape, generator=generator) > share
            for name, weight in model.named_parameters()
            if name.startswith("blocks.") and weight.ndim == 2
        }
    )


def removed(model, mask):
    return torch.cat([model.get_parameter(name)[~keep] for name, keep in mask.keep.items()])


@pytest.mark.parametrize("recipe", [PLAIN, RICH], ids=["plain", "rich"])
def test_removed_weights_are_zero_after_every_step_and_the_others_learn(recipe):
    model = fresh()
    mask, before = mask_of(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = Trainer(model, DATA, replace(recipe, steps=5, report_every=1), mask=mask)
    for _ in trainer.train(5):
        assert not removed(model, mask).any()
        assert not removed(trainer.averaged, mask).any()
    for name, keep in mask.keep.items():
        assert (model.get_parameter(name)[keep] != before[name][keep]).float().mean() > 0.9


def test_a_step_with_a_mask_is_the_step_that_the_gradient_of_the_others_alone_gives():
    """Without weight decay AdamW's first step is lr · sign(gradient), and the norm that is clipped is the others'."""
    model, recipe = fresh(), replace(PLAIN, steps=1, weight_decay=0.0, warmup=0, schedule="constant", clip_grad=0.0)
    mask = mask_of(model)
    mask.apply_(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for _ in Trainer(model, DATA, recipe, mask=mask).train(1):
        pass
    for name, keep in mask.keep.items():
        change = (model.get_parameter(name) - before[name])[keep].abs()
        assert change.max() <= recipe.lr * 1.001
        assert (change > 0.9 * recipe.lr).float().mean() > 0.9


def test_another_mask_on_the_way_forgets_what_the_optimiser_knew_of_removed_weights():
    model = fresh()
    trainer = Trainer(model, DATA, replace(PLAIN, steps=8))
    for _ in trainer.train(4):
        pass
    mask = mask_of(model)
    trainer.prune(mask.applied(model), mask)
    state = trainer.state()
    for name, keep in mask.keep.items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert not state[f"optimizer.{key}.{name}"][~keep].any()
            assert state[f"optimizer.{key}.{name}"][keep].any()
    for _ in trainer.train(6):
        pass
    assert not removed(trainer.model, mask).any()
    trainer.prune(trainer.model, None)
    for _ in trainer.train(8):
        pass
    assert removed(trainer.model, mask).all(), "without a mask they learn again"


def test_a_fine_tune_with_a_mask_goes_on_from_its_run_file_and_another_mask_is_another_run(tmp_path):
    recipe, mask = replace(PLAIN, steps=6, validation=0.25), mask_of(fresh())
    whole, halves = fresh(), fresh()
    for _ in finetune(whole, DATA, recipe, mask=mask):
        pass
    reports = finetune(halves, DATA, replace(recipe, report_every=1), mask=mask, resume=tmp_path / "run", save_every=2)
    for report in reports:
        if report.step == 4:
            reports.close()
            break
    again, other = replace(recipe, report_every=1), mask_of(fresh(), seed=1)
    with pytest.raises(TrainingError, match="mask"):
        list(finetune(fresh(), DATA, again, mask=other, resume=tmp_path / "run"))
    halves = fresh()
    for _ in finetune(halves, DATA, again, mask=mask, resume=tmp_path / "run", save_every=2):
        pass
    assert not removed(halves, mask).any()
    assert_same_state(halves.state_dict(), whole.state_dict())


def test_masks_and_models_that_do_not_fit_are_refused():
    model = fresh()
    with pytest.raises(MaskError, match="no parameter 'nothing'"):
        Trainer(model, DATA, PLAIN, mask=SparsityMask({"nothing": torch.ones(2, dtype=torch.bool)}))
    trainer = Trainer(model, DATA, PLAIN)
    with pytest.raises(TrainingError, match="architecture that is trained"):
        trainer.prune(build(CLASS_TOKEN), None)
