"""Sparse weights come back bit for bit from a file that is smaller by what was removed; damage is refused by name."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, load_file, save, save_file

import vit.checkpoint
from tests.cases import CASES, CLASS_TOKEN, UNEQUAL, assert_same_state, build, generator, images, mask, some_units
from vit.architecture import BLOCK_UNITS, Unit
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, storage_bytes
from vit.checkpoint_header import FORMAT, VERSION, MaskedWeights, read_header
from vit.errors import CheckpointError, MaskError
from vit.masks import SparsityMask
from vit.sparse_storage import pack, stored_bytes, unpack
from vit.surgery import cut_masks, shrink


def random_masks(model, sparsity=0.75, seed=0):
    """Of every matrix in the blocks, as many weights as asked for, at random."""
    draw, keep = generator(seed), {}
    for name, parameter in model.named_parameters():
        if "blocks" in name and parameter.ndim == 2:
            order = torch.rand(parameter.numel(), generator=draw).argsort()
            keep[name] = (order >= round(sparsity * parameter.numel())).reshape(parameter.shape)
    return SparsityMask(keep)


def sparse(arch=CLASS_TOKEN, sparsity=0.75, dtype=torch.float32, seed=0):
    model = build(arch, dtype=dtype)
    masks = random_masks(model, sparsity, seed)
    return Checkpoint.of(masks.applied(model), ({"step": "sparsify"},), masks)


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "sparse.safetensors"
    save_checkpoint(sparse(), path)
    return path


def assert_same_masks(found, expected):
    assert_same_state(dict(sorted(found.keep.items())), dict(sorted(expected.keep.items())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", ["class_token", "unequal", "no_biases", "distilled"])
def test_weights_and_masks_come_back_bit_for_bit(tmp_path, name, sparsity, dtype):
    checkpoint = sparse(CASES[name], sparsity, dtype)
    save_checkpoint(checkpoint, tmp_path / "model")
    back = load_checkpoint(tmp_path / "model")
    assert_same_state(dict(sorted(back.weights.items())), dict(sorted(checkpoint.weights.items())))
    assert_same_masks(back.masks, checkpoint.masks)
    assert (back.arch, back.lineage) == (checkpoint.arch, checkpoint.lineage)


def test_a_weight_that_stays_at_zero_is_not_a_removed_one(tmp_path):
    checkpoint = sparse()
    name = next(iter(checkpoint.masks.keep))
    weights = dict(checkpoint.weights) | {name: torch.zeros_like(checkpoint.weights[name])}
    save_checkpoint(Checkpoint(checkpoint.arch, weights, (), checkpoint.masks), tmp_path / "model")
    assert_same_masks(load_checkpoint(tmp_path / "model").masks, checkpoint.masks)


def test_a_checkpoint_without_masks_has_none_when_it_comes_back(tmp_path):
    save_checkpoint(Checkpoint.of(build(CLASS_TOKEN)), tmp_path / "model")
    assert load_checkpoint(tmp_path / "model").masks is None
    assert read_header(tmp_path / "model").masked is None


def test_the_file_shrinks_by_the_removed_weights_and_grows_by_a_bit_each():
    checkpoint = sparse(sparsity=0.75)
    stored, dense = storage_bytes(checkpoint)
    kept = checkpoint.masks.total - checkpoint.masks.zeros
    bits = sum(math.ceil(mask.numel() / 8) for mask in checkpoint.masks.keep.values())
    shapes = 16 * len(checkpoint.masks.keep)
    assert stored == dense - 4 * checkpoint.masks.total + 4 * kept + bits + shapes
    assert storage_bytes(Checkpoint(checkpoint.arch, checkpoint.weights)) == (dense, dense)


def test_what_is_reported_is_what_is_on_disk(saved):
    size = saved.stat().st_size
    header = int.from_bytes(saved.read_bytes()[:8], "little")
    assert size - 8 - header == storage_bytes(load_checkpoint(saved))[0]


def test_the_header_tells_the_sparsity_without_torch(saved):
    assert read_header(saved).masked == MaskedWeights(load_checkpoint(saved).masks.total, 1440)
    code = (
        "import sys; from pathlib import Path; from vit.checkpoint_header import read_header; "
        f"found = read_header(Path({str(saved)!r})).masked.sparsity; sys.exit('torch' in sys.modules or found != 0.75)"
    )
    root = Path(vit.checkpoint.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_there_are_plain_tensors_alone_in_the_file(saved):
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    assert {entry["dtype"] for entry in header.values()} == {"F32", "U8", "I64"}
    name = "blocks.0.mlp.fc1.weight"
    assert {f"{name}.keep_bits", f"{name}.kept_values", f"{name}.dense_shape"} <= header.keys()
    assert name not in header


def test_masks_that_do_not_fit_the_weights_make_no_checkpoint():
    model, name = build(CLASS_TOKEN), "blocks.0.mlp.fc1.weight"
    with pytest.raises(
        MaskError, match=r"weight\(s\) of blocks.0.attn.qkv.weight are removed by its mask but not zero"
    ):
        Checkpoint.of(model, (), random_masks(model))
    with pytest.raises(MaskError, match=r"mask of blocks.0.mlp.fc1.weight has shape \(2,\), the weights have"):
        Checkpoint.of(model, (), SparsityMask({name: torch.ones(2, dtype=torch.bool)}))
    with pytest.raises(MaskError, match="mask of 'nowhere', but no such weights"):
        Checkpoint.of(model, (), SparsityMask({"nowhere": torch.ones(2, dtype=torch.bool)}))
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    one = torch.ones_like(model.blocks[0].mlp.fc1.weight, dtype=torch.bool)
    one[0, 0] = False
    with pytest.raises(MaskError, match=r"^1 weight"):
        Checkpoint.of(model, (), SparsityMask({name: one}))


NAME = "blocks.1.attn.proj.weight"
DAMAGE = {
    "no bits": ({".keep_bits": None}, "weight.keep_bits is missing"),
    "no values": ({".kept_values": None}, "weight.kept_values is missing"),
    "no shape": ({".dense_shape": None}, "weight.dense_shape is missing"),
    "a value less": ({".kept_values": lambda t: t[1:]}, "keeps 36 weights, the file has the values of 35"),
    "a value more": ({".kept_values": lambda t: torch.cat([t, t[:1]])}, "keeps 36 weights, the file has the values of"),
    "a bit flipped": ({".keep_bits": lambda t: t ^ (torch.arange(len(t)) == 3).to(torch.uint8)}, "keeps 3[57] weights"),
    "bits cut": ({".keep_bits": lambda t: t[:-1]}, "has 17 bytes, its shape"),
    "bits of another kind": ({".keep_bits": lambda t: t.to(torch.int8)}, "rows of uint8"),
    "values in rows": ({".kept_values": lambda t: t.reshape(2, -1)}, "rows of uint8"),
    "another shape": ({".dense_shape": lambda t: torch.tensor([6, 24])}, r"has shape \(6, 24\), its architecture says"),
    "a huge shape": ({".dense_shape": lambda t: torch.tensor([2**40, 2**40])}, "has 18 bytes, its shape"),
    "a negative shape": ({".dense_shape": lambda t: -t}, "row of int64 sizes"),
    "a shape of fractions": ({".dense_shape": lambda t: t.double()}, "row of int64 sizes"),
    "no masks at all": (
        {"": torch.zeros(12, 12), ".keep_bits": None, ".kept_values": None, ".dense_shape": None},
        "ma",
    ),
    "both": ({"": torch.zeros(12, 12)}, "is there twice"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parts_are_refused_by_name(saved, damage):
    changes, message = DAMAGE[damage]
    tensors = load_file(saved)
    for part, change in changes.items():
        if change is None:
            del tensors[NAME + part]
        else:
            tensors[NAME + part] = (change(tensors[NAME + part]) if callable(change) else change).contiguous()
    save_file(tensors, saved, read_header(saved).to_metadata())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(saved)
    assert NAME in str(caught.value) or damage == "no masks at all"


def test_bits_beyond_the_last_weight_are_refused():
    packed = pack({"w": torch.zeros(3)}, {"w": torch.zeros(3, dtype=torch.bool)})
    packed["w.keep_bits"][0] = 1
    with pytest.raises(MaskError, match="mask of w has bits beyond its 3 weights"):
        unpack(packed)


@pytest.mark.parametrize(
    "masked", ["{", "5", "{}", '{"total": 3}', '{"total": 3, "zeros": 4}', '{"total": 3.5, "zeros": 1}', "null"]
)
def test_a_header_whose_counts_make_no_sense_is_refused(saved, masked):
    save_file(load_file(saved), saved, read_header(saved).to_metadata() | {"masked": masked})
    with pytest.raises(CheckpointError, match="damaged header"):
        read_header(saved)


def test_a_header_whose_counts_are_not_those_of_the_masks_is_refused(saved):
    counts = json.dumps({"total": 1920, "zeros": 1})
    save_file(load_file(saved), saved, read_header(saved).to_metadata() | {"masked": counts})
    with pytest.raises(CheckpointError, match="header says that 1 of 1920 weights are removed, its masks say 1440 of"):
        load_checkpoint(saved)


def test_files_from_before_masks_still_load(tmp_path):
    weights = dict(Checkpoint.of(build(CLASS_TOKEN, dtype=torch.float32)).weights)
    header = {"format": FORMAT, "version": VERSION, "architecture": CLASS_TOKEN.to_json(), "lineage": "[]"}
    save_file(weights, tmp_path / "model", header)
    assert_same_state(dict(sorted(load_checkpoint(tmp_path / "model").weights.items())), dict(sorted(weights.items())))


def test_the_state_of_any_module_can_be_packed():
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    state = swin.state_dict()
    keep = {n: torch.rand(t.shape, generator=generator()) > 0.8 for n, t in state.items() if n.endswith("fc1.weight")}
    state |= {name: state[name] * mask for name, mask in keep.items()}
    file = save(pack(state, keep))
    dense, masks = unpack(load(file))
    assert_same_state(dict(sorted(dense.items())), dict(sorted(state.items())))
    assert_same_state(dict(sorted(masks.items())), dict(sorted(keep.items())))
    assert stored_bytes(pack(state, keep)) < stored_bytes(state)


def test_a_tensor_with_the_name_of_a_part_is_refused():
    tensors = {"w": torch.zeros(2), "w.keep_bits": torch.zeros(2)}
    for order in (("w", "w.keep_bits"), ("w.keep_bits", "w")):
        with pytest.raises(MaskError, match=r"w\.keep_bits is the name of a tensor and of a part"):
            pack({name: tensors[name] for name in order}, {"w": torch.zeros(2, dtype=torch.bool)})


@pytest.mark.parametrize("name", [n for n in CASES if not CASES[n].qk_norm])
def test_cutting_units_cuts_the_masks_like_the_weights(name):
    arch = CASES[name]
    model = build(arch)
    masks, keep = random_masks(model), some_units(arch, Unit)
    small = shrink(masks.applied(model), keep)
    cut = cut_masks(arch, keep, masks)
    cut.check(small)
    assert 0 < cut.zeros < cut.total
    before = {n: p.clone() for n, p in small.named_parameters()}
    cut.apply_(small)
    assert_same_state(dict(small.named_parameters()), before)  # what it removes was zero already
    assert cut.zeros == sum(int((p == 0).sum()) for n, p in small.named_parameters() if n in cut.keep)  # and all of it


def test_structured_after_unstructured_equals_masking_both():
    model = build(UNEQUAL)
    masks, keep = random_masks(model), some_units(UNEQUAL, BLOCK_UNITS)
    small = shrink(masks.applied(model), keep)
    batch = images(UNEQUAL)
    torch.testing.assert_close(small(batch), mask(masks.applied(model), keep)(batch))
    torch.testing.assert_close(cut_masks(UNEQUAL, keep, masks).applied(shrink(model, keep))(batch), small(batch))
