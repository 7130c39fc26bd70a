"""A folder with model.py and model.safetensors computes what the model computes, wherever there is torch."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import vit.standalone
from tests.cases import CASES, UNEQUAL, assert_same_state, build, images, some_units
from vit.architecture import Architecture, Unit
from vit.checkpoint import Checkpoint, load_checkpoint
from vit.errors import CheckpointError, ExportError
from vit.export import export_standalone
from vit.standalone import standalone_source, write_standalone
from vit.surgery import shrink

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMPORTED = {"step": "import", "mean": list(IMAGENET[0]), "std": list(IMAGENET[1])}

CUT = shrink(build(UNEQUAL, dtype=torch.float32), some_units(UNEQUAL, Unit, seed=1)).arch
"""Softmax scales of sizes that are gone."""

ARCHS: dict[str, Architecture] = {
    **CASES,
    "cut": CUT,
    "distilled_features": CASES["distilled"].replace(num_classes=0),
    "distilled_unused_norm": CASES["distilled"].replace(final_norm="after_pool", reg_tokens=3),
    "token_after_pool": CASES["class_token"].replace(final_norm="after_pool"),
    "one_block": CASES["class_token"].replace(blocks=UNEQUAL.blocks[:1]),
}

ELSEWHERE = """
import importlib.util, pickle, sys
from pathlib import Path

import torch
torch.set_num_threads(1)
batches = torch.load(sys.argv[1], weights_only=True)
torch.load = pickle.load = pickle.loads = pickle.Unpickler = None
outputs = {}
for folder, images in batches.items():
    spec = importlib.util.spec_from_file_location("model", Path(folder, "model.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        outputs[folder] = module.load()(images)
torch.save(outputs, sys.argv[2])
"""


def checkpoint_of(arch, *lineage, dtype=torch.float32):
    return Checkpoint.of(build(arch, dtype=dtype), lineage)


def module_of(folder):
    """model.py, loaded here."""
    spec = importlib.util.spec_from_file_location("standalone_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each architecture."""
    root = tmp_path_factory.mktemp("standalone")
    for name, arch in ARCHS.items():
        (root / name).mkdir()
        write_standalone(checkpoint_of(arch, IMPORTED), root / name)
    return root


@pytest.fixture(scope="module")
def outputs_elsewhere(folders, torch_alone):
    """What the folders' models give in a fresh environment with torch alone, in a process that cannot unpickle."""
    batches = {str(folders / name): images(arch, dtype=torch.float32) for name, arch in ARCHS.items()}
    torch.save(batches, folders / "images.pt")
    command = [torch_alone, "-I", "-B", "-c", ELSEWHERE, str(folders / "images.pt"), str(folders / "outputs.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folders)
    assert done.returncode == 0, done.stderr
    return torch.load(folders / "outputs.pt", weights_only=True)


@pytest.mark.parametrize("name", ARCHS)
def test_it_computes_what_the_model_computes_where_only_torch_is(folders, outputs_elsewhere, name):
    model = build(ARCHS[name], dtype=torch.float32)
    with torch.no_grad():
        expected = model(images(model.arch, dtype=torch.float32))
    torch.testing.assert_close(
        outputs_elsewhere[str(folders / name)], expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("width", [88, 120])
def test_the_source_is_formatted_and_has_nothing_unused(folders, width):
    how = ["--isolated", "--line-length", str(width)]
    for command in (["format", "--check", "--diff", *how], ["check", *how, "--select", "E,F,W,I,B,C4,UP,SIM,PTH,S"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, folders], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ARCHS)
def test_every_block_is_listed_with_its_sizes(folders, name):
    arch, module = ARCHS[name], module_of(folders / name)
    expected = [(b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim) for b in arch.blocks]
    assert [tuple(sizes[:4]) for sizes in module.BLOCKS] == expected
    if arch.softmax_scale is not None:
        assert tuple(sizes.scale for sizes in module.BLOCKS) == arch.softmax_scale
    assert len(re.findall(r"^    Sizes\(.*\),$", (folders / name / "model.py").read_text(), re.M)) == arch.depth


def test_the_softmax_scale_of_a_cut_model_is_written_as_people_know_it():
    arch = CASES["class_token"].replace(softmax_scale=(64**-0.5, 0.3))
    source = standalone_source(arch)
    assert "scale=64**-0.5)," in source
    assert "scale=0.3)," in source


@pytest.mark.parametrize(
    ("word", "cases"),
    [
        ("F.pad", {"unequal", "unequal_scale", "cut", "one_block"}),
        ("gamma", {"layer_scale"}),
        ("q_norm", {"qk_norm", "rms_qk_norm"}),
        ("RMSNorm", {"rms_norm", "rms_qk_norm"}),
        ("head_dist", {"distilled", "distilled_unused_norm"}),
        ("scale: float", {"unequal_scale", "cut"}),
        ("sigmoid", {"quick_gelu"}),
        ("bias=False", {"no_biases", "pre_norm"}),
        ("mean(dim=1)", {"pooled", "pooled_without_prefix", "pooled_with_prefix", "pooled_before_norm"}),
        ("features", {"features", "distilled_features"}),
    ],
)
def test_the_source_has_only_what_its_architecture_uses(word, cases):
    assert {name for name, arch in ARCHS.items() if word in standalone_source(arch)} == cases


def test_the_weights_are_a_checkpoint_with_its_lineage_and_no_pickle(tmp_path):
    checkpoint = checkpoint_of(UNEQUAL, IMPORTED, {"step": "prune"})
    write_standalone(checkpoint, tmp_path)
    back = load_checkpoint(tmp_path / "model.safetensors")
    assert back.arch == UNEQUAL
    assert back.lineage == checkpoint.lineage
    assert_same_state(dict(sorted(back.weights.items())), dict(sorted(checkpoint.weights.items())))
    source = (tmp_path / "model.py").read_text()
    assert "pickle" not in source.replace("unpickles nothing", "")
    assert "torch.load" not in source


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_become_fp32(tmp_path, dtype):
    checkpoint = checkpoint_of(UNEQUAL, dtype=dtype)
    assert export_standalone(checkpoint, tmp_path / "model") < 1e-5
    assert {t.dtype for t in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float32}


def test_normalise_makes_pixels_what_the_imported_weights_expect(folders):
    module = module_of(folders / "class_token")
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    torch.testing.assert_close(module.normalise(pixels), (pixels - mean) / std)
    torch.testing.assert_close(module.normalise(pixels[0]), module.normalise(pixels)[0])
    grey = module_of(folders / "grey")
    torch.testing.assert_close(grey.normalise(pixels[:, :1]), (pixels[:, :1] - 0.485) / 0.229)


def test_where_nothing_is_known_about_pixels_nothing_is_said(tmp_path):
    write_standalone(checkpoint_of(UNEQUAL, {"step": "train"}), tmp_path)
    assert not {"normalise", "MEAN", "STD"} & set(vars(module_of(tmp_path)))
    assert "normalise" not in (tmp_path / "model.py").read_text()


@pytest.mark.parametrize(
    "mean", ["print(1)", ["print(1)"], [], [float("nan")], [True], {"a": 1}, None, [[0.5]]], ids=repr
)
def test_a_lineage_cannot_put_code_into_the_source(tmp_path, mean):
    checkpoint = checkpoint_of(UNEQUAL, {"step": "import", "mean": mean, "std": [0.5]})
    with pytest.raises(CheckpointError, match="the checkpoint's lineage has a mean "):
        export_standalone(checkpoint, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_fresh_environment_has_torch_and_none_of_ours(torch_alone):
    ours = ["api", "latency", "recovery", "search", "vit", "timm", "safetensors", "torchvision", "onnxruntime"]
    probe = (
        f"import importlib.util, torch; print([n for n in {ours} if importlib.util.find_spec(n)], torch.__version__)"
    )
    done = subprocess.run([torch_alone, "-I", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == f"[] {torch.__version__}\n"


def test_model_py_runs_by_itself(folders, torch_alone):
    command = [torch_alone, "-I", "-B", folders / "unequal" / "model.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 3, 16, 16) -> (1, 5)\n"


@pytest.mark.parametrize("name", ["cut", "distilled", "pooled_without_prefix"])
def test_its_model_can_be_compiled_and_exported_with_a_free_batch_size(folders, name):
    model = module_of(folders / name).load()
    batch = images(ARCHS[name], 5, dtype=torch.float32)
    with torch.no_grad():
        expected = model(batch)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(batch), expected)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (batch[:2],), dynamic_shapes=(dynamic,)).module()
    torch.testing.assert_close(program(batch), expected)


def test_it_reads_weights_that_were_trained_on_and_refuses_those_of_another_type(folders, tmp_path):
    module = module_of(folders / "unequal")
    weights = {name: tensor + 1 for name, tensor in module.load().state_dict().items()}
    save_file(weights, tmp_path / "more.safetensors")
    assert_same_state(module.load(tmp_path / "more.safetensors").state_dict(), weights)
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="is of type F16, not F32"):
        module.load(tmp_path / "half.safetensors")


def test_an_exported_folder_holds_two_files_and_says_how_close_it_is(tmp_path):
    assert 0 <= export_standalone(checkpoint_of(CUT), tmp_path / "some" / "model") < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["some"]
    assert sorted(path.name for path in (tmp_path / "some" / "model").iterdir()) == ["model.py", "model.safetensors"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "model").mkdir()
    export_standalone(checkpoint_of(UNEQUAL), tmp_path / "model")
    assert (tmp_path / "model" / "model.py").exists()


def test_a_folder_that_holds_something_and_a_file_are_left_alone(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, why in (("folder", "exists and is not empty"), ("file", "exists and is no folder")):
        with pytest.raises(ExportError, match=f"{name} {why}; name a new folder"):
            export_standalone(checkpoint_of(UNEQUAL), tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "notes.txt"]


@pytest.mark.parametrize("name", ["model.py", "model.safetensors"])
def test_the_name_of_a_file_is_refused(tmp_path, name):
    with pytest.raises(ExportError, match=f"is a folder with model.py and model.safetensors; .*{name} names a file"):
        export_standalone(checkpoint_of(UNEQUAL), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["import vit", "import timm", "import safetensors.torch", "load = no"])
def test_a_source_that_does_not_run_elsewhere_is_refused_and_leaves_nothing(tmp_path, monkeypatch, source):
    monkeypatch.setattr(vit.standalone, "standalone_source", lambda arch, normalisation: source)
    with pytest.raises(ExportError, match=r"model.py does not run, nothing was written: (ModuleNotFound|Name)Error: "):
        export_standalone(checkpoint_of(UNEQUAL), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
