"""Saliency as a value and as a file."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from search import saliency as module
from search.errors import SaliencyError
from search.saliency import Saliency, load_saliency, save_saliency, smoothed
from tests.cases import CASES, UNEQUAL, some_units
from tests.reference import random_saliency, slow_kept
from vit.architecture import Unit
from vit.groups import EMBED, Group, Keep, groups, size

SALIENCY = Saliency(UNEQUAL, random_saliency(UNEQUAL, 0).values, "nvit", "model-1", "data-2", 7)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "s.safetensors"
    save_saliency(SALIENCY, target)
    return target


def rewrite(path, tensors=lambda tensors: None, metadata=lambda metadata: None):
    with safe_open(path, framework="numpy") as file:
        held, said = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    tensors(held)
    metadata(said)
    save_file(held, path, said)


@pytest.mark.parametrize("name", CASES)
def test_a_saliency_survives_the_disk_in_every_field(tmp_path, name):
    saliency = Saliency(CASES[name], random_saliency(CASES[name], 1).values, "fisher", "m", "d", 3)
    save_saliency(saliency, tmp_path / "s")
    found = load_saliency(tmp_path / "s")
    assert list(found.values) == list(saliency.values)
    assert all(np.array_equal(found.values[group], vector) for group, vector in saliency.values.items())
    assert found.document() == saliency.document()
    assert found.arch == saliency.arch


def test_a_failing_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def half_written(tensors, temporary, metadata):
        temporary.write_bytes(before[:10])
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_saliency(SALIENCY, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(SaliencyError, match="is no readable saliency"):
        load_saliency(path)


def test_a_missing_file_a_folder_and_another_format_are_refused(tmp_path):
    with pytest.raises(SaliencyError, match="no saliency at"):
        load_saliency(tmp_path / "nothing")
    with pytest.raises(SaliencyError, match="is no readable saliency"):
        load_saliency(tmp_path)
    (tmp_path / "text").write_text("hello, this is no safetensors file at all")
    with pytest.raises(SaliencyError, match="is no readable saliency"):
        load_saliency(tmp_path / "text")


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": "2"}, {"format": ""}])
def test_another_format_or_version_is_refused(path, change):
    rewrite(path, metadata=lambda metadata: metadata.update(change))
    with pytest.raises(SaliencyError, match="is no vitfit saliency of version 1"):
        load_saliency(path)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1e-9])
def test_numbers_that_are_not_finite_or_negative_are_refused_with_their_group(path, wrong):
    def spoil(tensors):
        tensors["blocks.1.mlp"][3] = wrong

    rewrite(path, spoil)
    with pytest.raises(SaliencyError, match=r"saliency of blocks\.1\.mlp holds NaN, infinite or negative numbers"):
        load_saliency(path)
    with pytest.raises(SaliencyError, match="saliency of embed holds"):
        Saliency(UNEQUAL, {**SALIENCY.values, EMBED: np.full(12, wrong)}, "x", "", "", 0)


@pytest.mark.parametrize("group", [str(group) for group in groups(UNEQUAL)])
def test_a_missing_group_is_refused_by_name(path, group):
    rewrite(path, lambda tensors: tensors.pop(group))
    with pytest.raises(SaliencyError, match=f"is damaged: saliency of {group} is missing"):
        load_saliency(path)
    values = {g: v for g, v in SALIENCY.values.items() if str(g) != group}
    with pytest.raises(SaliencyError, match=f"saliency of {group} is missing"):
        Saliency(UNEQUAL, values, "x", "", "", 0)


def test_a_group_of_another_size_is_refused_by_name(path):
    rewrite(path, lambda tensors: tensors.update({"blocks.2.qk": np.ones(5)}))
    with pytest.raises(SaliencyError, match=r"saliency of blocks\.2\.qk has shape \(5,\), the model has 4 units"):
        load_saliency(path)


@pytest.mark.parametrize("document", ["{", "[]", "{}", "null", json.dumps({"architecture": {"depth": 3}})])
def test_a_damaged_document_is_refused(path, document):
    rewrite(path, metadata=lambda metadata: metadata.update(document=document))
    with pytest.raises(SaliencyError, match="is damaged"):
        load_saliency(path)


def test_kept_is_what_stays_when_the_most_salient_units_stay():
    for group in groups(UNEQUAL):
        kept = SALIENCY.kept(group)
        assert kept[0] == 0.0
        slow = [slow_kept(SALIENCY, {group: count}) for count in range(size(UNEQUAL, group) + 1)]
        np.testing.assert_allclose(kept, slow)
        assert (np.diff(kept, 2) <= 1e-12).all()  # each further unit adds no more than the one before
    np.testing.assert_allclose(SALIENCY.total, sum(SALIENCY.kept(group)[-1] for group in groups(UNEQUAL)))


@pytest.mark.parametrize("seed", range(3))
def test_keep_picks_the_most_salient_units(seed):
    draw = np.random.default_rng(seed)
    saliency = random_saliency(UNEQUAL, seed)
    sizes = {group: int(draw.integers(1, size(UNEQUAL, group) + 1)) for group in groups(UNEQUAL)}
    keep = saliency.keep(sizes)
    for group, count in sizes.items():
        values, chosen = saliency.values[group], keep.indices[group]
        assert len(chosen) == count
        assert (np.diff(chosen) > 0).all()
        rest = np.setdiff1d(np.arange(len(values)), chosen)
        assert rest.size == 0 or values[chosen].min() >= values[rest].max()
        np.testing.assert_allclose(values[chosen].sum(), saliency.kept(group)[count])


def test_of_equally_salient_units_those_with_lower_indices_stay():
    values = {group: np.ones(size(UNEQUAL, group)) for group in groups(UNEQUAL)}
    mlp = Group(Unit.MLP, 1)
    values[mlp] = np.array([1.0, 2.0] * 9)
    keep = Saliency(UNEQUAL, values, "x", "", "", 0).keep({EMBED: 5, mlp: 11})
    assert keep.indices[EMBED].tolist() == [0, 1, 2, 3, 4]
    assert keep.indices[mlp].tolist() == sorted([*range(1, 18, 2), 0, 2])


def test_groups_that_are_not_named_stay_whole():
    keep = SALIENCY.keep({EMBED: 3})
    assert all(len(keep.indices[group]) == size(UNEQUAL, group) for group in groups(UNEQUAL) if group != EMBED)


def test_the_vectors_are_read_only_copies():
    values = {group: np.ones(size(UNEQUAL, group)) for group in groups(UNEQUAL)}
    saliency = Saliency(UNEQUAL, values, "x", "", "", 0)
    values[EMBED][:] = 9
    assert saliency.values[EMBED].sum() == 12
    with pytest.raises(ValueError, match="read-only"):
        saliency.values[EMBED][0] = 1.0


# --- the moving average between pruning steps --------------------------------------------------------------------


def scored(arch, seed, criterion="nvit"):
    return Saliency(arch, random_saliency(arch, seed).values, criterion, f"model-{seed}", f"data-{seed}", seed)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_smoothed_saliency_is_the_moving_average_unit_by_unit_of_what_is_left(decay):
    keep = some_units(UNEQUAL, Unit, seed=3)
    before, after = scored(UNEQUAL, 1), scored(keep.architecture(UNEQUAL), 2)
    found = smoothed(before, after, decay, keep)
    for group in groups(UNEQUAL):
        expected = [
            decay * before.values[group][old] + (1 - decay) * after.values[group][new]
            for new, old in enumerate(keep.indices[group])
        ]
        np.testing.assert_allclose(found.values[group], expected)
    assert (found.arch, found.criterion) == (after.arch, "nvit")
    assert (found.model, found.data, found.num_batches) == ("model-2", "data-2", 3)


def test_without_a_cut_all_units_are_averaged_with_nvits_decay():
    before, after = scored(UNEQUAL, 1), scored(UNEQUAL, 2)
    for group, vector in smoothed(before, after).values.items():
        np.testing.assert_allclose(vector, 0.9 * before.values[group] + 0.1 * after.values[group])


def test_without_a_previous_saliency_the_new_one_is_all_there_is():
    assert smoothed(None, SALIENCY) is SALIENCY


def test_smoothing_step_by_step_weighs_every_step_by_a_power_of_the_decay():
    keep = some_units(UNEQUAL, Unit)
    first, second = scored(UNEQUAL, 1), scored(UNEQUAL, 2)
    third = scored(keep.architecture(UNEQUAL), 3)
    found = smoothed(smoothed(first, second, 0.8), third, 0.8, keep)
    for group, left in keep.indices.items():
        expected = 0.64 * first.values[group][left] + 0.16 * second.values[group][left] + 0.2 * third.values[group]
        np.testing.assert_allclose(found.values[group], expected)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_outside_zero_to_one_is_refused(decay):
    for previous in (None, SALIENCY):
        with pytest.raises(SaliencyError, match="decay must be from 0 to below 1, got"):
            smoothed(previous, SALIENCY, decay)


def test_two_criteria_are_not_averaged():
    with pytest.raises(SaliencyError, match="saliency of nvit and of fisher cannot be averaged; score anew"):
        smoothed(scored(UNEQUAL, 1), scored(UNEQUAL, 2, "fisher"))


def test_saliencies_of_other_units_than_were_kept_are_refused():
    keep = Keep.of(UNEQUAL, {Group(Unit.MLP, 1): range(10)})
    small, shallow = scored(keep.architecture(UNEQUAL), 1), scored(UNEQUAL.replace(blocks=UNEQUAL.blocks[:2]), 1)
    text = r"18 of 18 units of blocks.1.mlp are said to be left, the new saliency has 10; give what was kept"
    with pytest.raises(SaliencyError, match=text):
        smoothed(SALIENCY, small)
    with pytest.raises(SaliencyError, match=r"10 of 18 units of blocks.1.mlp are said to be left, .* has 18"):
        smoothed(SALIENCY, SALIENCY, keep=keep)
    with pytest.raises(SaliencyError, match="saliency of 2 and of 3 blocks cannot be averaged"):
        smoothed(shallow, SALIENCY)
    wide = UNEQUAL.replace(embed_dim=24)  # a keep of another model, that names units the previous one does not have
    other = Keep.of(wide, {EMBED: range(12, 24)})
    with pytest.raises(SaliencyError, match="12 of 12 units of embed are said to be left"):
        smoothed(SALIENCY, SALIENCY, keep=other)
