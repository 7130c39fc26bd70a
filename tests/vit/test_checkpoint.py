"""A checkpoint comes back bit for bit, and what is none is refused without running code from it."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vit.checkpoint
from tests.cases import CASES, CLASS_TOKEN, UNEQUAL, assert_same_state, build, images, some_units
from vit.architecture import Unit
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.checkpoint_header import FORMAT, VERSION, read_header
from vit.errors import CheckpointError
from vit.surgery import shrink

LINEAGE = (
    {"step": "import", "timm": "deit_tiny_patch16_224", "when": "λ"},
    {"step": "prune", "damp": 1e-3, "keep": [1, 2], "nested": {"none": None, "yes": True}},
)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A whole checkpoint of CLASS_TOKEN, fp32."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(Checkpoint.of(build(CLASS_TOKEN, dtype=torch.float32), LINEAGE), path)
    return path


def rewrite(path: Path, *, weights: dict | None = None, **metadata: str | None) -> None:
    """The same file with other weights or header entries (None: left out)."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": CLASS_TOKEN.to_json(),
        "lineage": "[]",
    } | metadata
    save_file(
        load_file(path) if weights is None else weights,
        path,
        {key: value for key, value in header.items() if value is not None},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_architecture_weights_and_lineage_come_back_bit_for_bit(tmp_path, name, dtype):
    model, path = build(CASES[name], dtype=dtype), tmp_path / "model.safetensors"
    save_checkpoint(Checkpoint.of(model, LINEAGE), path)
    back = load_checkpoint(path)
    assert back.arch == CASES[name]
    assert back.lineage == LINEAGE
    expected = model.state_dict()
    assert_same_state(dict(sorted(back.weights.items())), dict(sorted(expected.items())))
    assert_same_state(back.model().state_dict(), expected)


def test_a_loaded_model_is_in_eval_mode_and_gives_the_same_outputs(tmp_path):
    model = shrink(build(UNEQUAL), some_units(UNEQUAL, Unit)).train()
    save_checkpoint(Checkpoint.of(model), tmp_path / "model")
    back = load_checkpoint(tmp_path / "model").model()
    assert not back.training
    assert back.arch.scales == UNEQUAL.scales  # not those of the smaller QK
    batch = images(UNEQUAL)
    torch.testing.assert_close(back(batch), model(batch), rtol=0, atol=0)


def test_extreme_numbers_survive(tmp_path):
    model = build(CLASS_TOKEN, dtype=torch.float32)
    odd = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1e-45, 3.4e38])
    with torch.no_grad():
        model.cls_token[0, 0, :6] = odd
    save_checkpoint(Checkpoint.of(model), tmp_path / "model")
    found = load_checkpoint(tmp_path / "model").weights["cls_token"][0, 0, :6]
    assert torch.equal(found.view(torch.int32), odd.view(torch.int32))


def test_a_model_from_a_checkpoint_shares_no_memory_with_it(saved):
    checkpoint = load_checkpoint(saved)
    before = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    with torch.no_grad():
        for parameter in checkpoint.model().parameters():
            parameter.add_(1)
    assert_same_state(dict(checkpoint.weights), before)


def test_the_header_is_read_without_the_weights(saved):
    header = read_header(saved)
    assert (header.arch, header.lineage) == (CLASS_TOKEN, LINEAGE)
    rewrite(saved, weights={})
    assert read_header(saved).arch == CLASS_TOKEN


def test_the_header_is_read_without_torch(saved):
    code = (
        "import sys; from pathlib import Path; from vit.checkpoint_header import read_header; "
        f"read_header(Path({str(saved)!r})); sys.exit('torch' in sys.modules)"
    )
    root = Path(vit.checkpoint.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_second_checkpoint_replaces_the_first(saved):
    save_checkpoint(Checkpoint.of(build(UNEQUAL)), saved)
    assert load_checkpoint(saved).arch == UNEQUAL
    assert load_checkpoint(saved).lineage == ()
    assert list(saved.parent.iterdir()) == [saved]


def test_the_file_is_a_json_header_and_numbers_and_no_pickle(saved):
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert json.loads(metadata["architecture"]) == CLASS_TOKEN.to_dict()
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert spans[0][0] == 0
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    assert 8 + length + spans[-1][1] == len(content)  # nothing is left that could be a pickle
    assert {entry["dtype"] for entry in header.values()} == {"F32"}


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(saved, fraction):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointError, match="truncated or another format"):
        load_checkpoint(saved)


def test_a_file_that_lacks_its_last_byte_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or another format"):
        load_checkpoint(saved)


def test_a_file_with_bytes_after_its_end_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="truncated or another format"):
        load_checkpoint(saved)


class Bomb:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "model.pth", tmp_path / "ran"
    torch.save({"bomb": Bomb(trace)}, path)
    with pytest.raises(CheckpointError, match="truncated or another format"):
        load_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the bomb works


@pytest.mark.parametrize("content", [b"{}", b"PK\x03\x04", bytes(1000), b"\xff" * 1000])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or another format"):
        load_checkpoint(tmp_path / "file")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_checkpoint(tmp_path)


def test_safetensors_of_others_are_refused_with_the_way_to_import_them(saved):
    save_file(load_file(saved), saved)
    with pytest.raises(CheckpointError, match=r"no vitfit checkpoint.*vitfit import TIMM_NAME --weights FILE"):
        load_checkpoint(saved)
    rewrite(saved, format="pt")
    with pytest.raises(CheckpointError, match="no vitfit checkpoint"):
        load_checkpoint(saved)


@pytest.mark.parametrize("version", ["0", "2", "1.0", "", None])
def test_another_version_is_refused_by_its_number(saved, version):
    rewrite(saved, version=version)
    with pytest.raises(CheckpointError, match=f"version {version}, this vitfit reads 1"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "metadata",
    [
        {"architecture": None},
        {"architecture": "{"},
        {"architecture": "[" * 100_000},
        {"architecture": "{}"},
        {"architecture": "null"},
        {"lineage": None},
        {"lineage": "["},
        {"lineage": "[" * 100_000},
        {"lineage": "null"},
        {"lineage": "5"},
        {"lineage": '"steps"'},
        {"lineage": '{"step": "prune"}'},
        {"lineage": '["prune"]'},
    ],
)
def test_a_damaged_header_is_refused(saved, metadata):
    rewrite(saved, **metadata)
    with pytest.raises(CheckpointError, match="damaged header"):
        load_checkpoint(saved)


def test_weights_that_do_not_fit_the_architecture_are_refused_by_name(saved):
    weights = load_file(saved)
    rewrite(saved, weights={n: t for n, t in weights.items() if n != "pos_embed"})
    with pytest.raises(CheckpointError, match=r"weight pos_embed has shape None, .* says \(1, 5, 12\)"):
        load_checkpoint(saved)
    rewrite(saved, weights=weights | {"more": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"weight more has shape \(2,\), .* says None"):
        load_checkpoint(saved)
    rewrite(saved, weights=weights | {"head.bias": torch.zeros(6)})
    with pytest.raises(CheckpointError, match=r"weight head.bias has shape \(6,\), .* says \(5,\)"):
        load_checkpoint(saved)
    rewrite(saved, weights={})
    with pytest.raises(CheckpointError, match="has shape None"):
        load_checkpoint(saved)
    rewrite(saved, weights=weights | {"head.bias": torch.zeros(5, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match=r"head\.bias holds torch\.int64"):
        load_checkpoint(saved)
    rewrite(saved, weights=weights)
    assert load_checkpoint(saved).arch == CLASS_TOKEN


def test_a_huge_architecture_is_compared_without_building_it(saved):
    huge = CLASS_TOKEN.replace(embed_dim=65_536, blocks=CLASS_TOKEN.blocks * 4)
    rewrite(saved, architecture=huge.to_json())
    with pytest.raises(CheckpointError, match="its architecture says"):
        load_checkpoint(saved)


def _survivors(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_checkpoint_and_no_temporary_file(saved, monkeypatch, error):
    before = _survivors(saved)

    def fail(weights: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise error("disk full")

    monkeypatch.setattr(vit.checkpoint, "save_file", fail)
    with pytest.raises(error, match="disk full"):
        save_checkpoint(Checkpoint.of(build(UNEQUAL)), saved)
    assert _survivors(saved) == before
    assert load_checkpoint(saved).lineage == LINEAGE


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_stop_between_write_and_rename_leaves_the_old_checkpoint(saved, monkeypatch, error):
    before = _survivors(saved)

    def stop(*args: object) -> None:
        raise error("killed")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(error, match="killed"):
        save_checkpoint(Checkpoint.of(build(UNEQUAL)), saved)
    assert _survivors(saved) == before


def test_a_lineage_that_is_no_json_is_refused_before_anything_is_written(saved):
    before = _survivors(saved)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(Checkpoint.of(build(UNEQUAL), ({"step": object()},)), saved)
    assert _survivors(saved) == before


def test_the_last_step_that_knows_the_pixels_says_how_they_were_normalised():
    def with_lineage(*steps):
        return Checkpoint(CLASS_TOKEN, {}, steps).normalisation()

    first, second = {"step": "import", "mean": [0.5], "std": [0.2]}, {"mean": [0, 1, 2], "std": [1, 1, 1]}
    assert with_lineage() is None
    assert with_lineage({"step": "prune"}, {"mean": [0.5]}) is None
    assert with_lineage(first, {"step": "prune"}) == ((0.5,), (0.2,))
    assert with_lineage(first, second, {"step": "prune"}) == ((0.0, 1.0, 2.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("values", ["0.5", 0.5, [], ["0.5"], [None], [True], [float("inf")], {"a": 0.5}], ids=repr)
@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_normalisation_that_is_no_numbers_is_refused(name, values):
    step = {"mean": [0.5], "std": [0.5]} | {name: values}
    with pytest.raises(CheckpointError, match=f"lineage has a {name} "):
        Checkpoint(CLASS_TOKEN, {}, (step,)).normalisation()
