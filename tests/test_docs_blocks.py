"""Every block of the docs is executed, or says why it cannot be.

Three pages are typed as they stand, and what they print is compared (`test_docs_commands.py`). The others show commands
that a reader has a model, images and a card for. Such a page (of the README: a section) is one script, too: its fences
```sh and ```python in their order, in a bash that ends at the first error. Before it runs what the page takes for
granted (`before`), in a folder in which a tiny model and the like stand ready (`docs_ready.py`). `stands_for` says what
is typed in the place of what would take hours or a card; all else is typed as shown. Fences ```json and ```yaml become
the files that `files` names, and what `-o` names is there in the end.

A fence ```sh with a word behind it is shown only:

- `gpu`: needs a CUDA device;
- `cluster`: needs several machines;
- `network`: downloads;
- `make`: typed in the folder of a clone, where it installs an environment or runs for minutes.
"""

import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docs_ready import make_ready
from tests.docs_shell import ROOT, fences, page_text, typed
from tests.test_docs_commands import PAGES as COMPARED

SHOWN_ONLY = {"sh gpu", "sh cluster", "sh network", "sh make"}
ELSEWHERE = {
    "README.md": "test_the_readmes_python_works_on_the_demos_folder",
    "docs/library.md": "test_every_example_gives_what_it_says",
}
"""Fences of Python that another test runs."""

SERVED = """
curl() { command curl -sS --fail-with-body "$@"; }
id() { python -c 'import json, sys; found = json.load(sys.stdin); print(found.get("jobs", [found])[0]["id"])'; }
export SERVICE=http://127.0.0.1:$VITFIT_PORT
vitfit serve > serve.log 2>&1 &
until command curl -sf "$SERVICE/health/ready" > ready.json; do sleep 0.2; done
"""
"""A service, and a curl that ends with an error where the answer is one; `id` is the newest job's or the answer's."""

JOB = """$(curl "$SERVICE/v1/jobs" -H 'content-type: application/json' \
-d '{"kind": "finetune", "model": "small", "data": "flowers", "steps": 4}' | id)"""

HERE = "localhost:$VITFIT_PORT"
CARD, BIG = "rtx-4090-eager-pt2.9-amp-b256-n197", "rtx-4090-eager-pt2.9-amp-b8192-n17"
"""Only at large batches does the time of a model as small as the tiny one go with its sizes."""


@dataclass(frozen=True)
class Page:
    """
    Attributes:
        before: bash, typed first.
        stands_for: what is shown -> what is typed; in this order, everywhere.
        names: Python that runs before each fence of Python: what that takes for granted.
        files: kind of fence -> the file that it is.
        after: bash, typed last.
    """

    before: str = ""
    stands_for: dict[str, str] = field(default_factory=dict)
    names: str = ""
    files: dict[str, str] = field(default_factory=dict)
    after: str = ""


PAGES = {
    "README.md: From the command line": Page(
        before="""
python - <<'END'
import timm
import torch

torch.save(timm.create_model("test_vit", img_size=32, num_classes=4).state_dict(), "my.pth")
END
cat > shapes.yaml <<'END'
study: shapes
make: redistribute
target: macs
objectives: [params, latency_ms]
trials: 10
space: {profile: [nvidia, poster], embed_dim: {from: 104, to: 256, step: 8}}
END
export VITFIT_WORKER_IDLE_SECONDS=0.5
""",
        stands_for={
            "deit_small_patch16_224 --weights my.pth --num-classes 10 -o dense.safetensors": "test_vit "
            "--weights my.pth --num-classes 4 --img-size 32 -o imported.safetensors",
            "--batch 8                     # measures": "--batch 8 --points 32 --rounds 1 -o t.parquet  # measures",
            "-b8-n197": "-b8-n17",
            "-b1-n197": "-b1-n17",
            "v100-eager-amp-b256-n197=50": "v100-eager-amp-b8192-n17=3.4",
            "--budget-ms 3000 --minimum mlp_dim=512": "--budget-ms 0.3 --minimum mlp_dim=32",
            "--protect 0,11": "--protect 1",
            "--speedup 1.8 -o": "--speedup 1.8 --no-exports -o",
            "--budget-ms 30 -o": "--budget-ms 30 --no-exports -o",
            "--budget-ms 40 -o cut": "--budget-ms 40 --rounds 2 --interval 2 -o cut",
            "--budget-ms 60 -o larger": "--budget-ms 47 -o larger",
            "--teacher dense.safetensors -o": "--teacher dense.safetensors --steps 4 -o",
            "-s 0.75 -o": "-s 0.75 --gradients 8 -o",
            "--token-ratio 0.2 -o": "--token-ratio 0.2 --steps 4 -o",
            "--teacher small.safetensors -o": "--teacher small.safetensors --steps 4 -o",
            "--points auto --validate 20": "tiny.json --points auto --error 0.5 --rounds 1 --validate 2",
            "vitfit serve  ": "vitfit serve > serve.log 2>&1 &",
            "--gpu 0  ": "--gpu 0 --until-idle  ",
        },
    ),
    "README.md: Targets": Page(),
    "README.md: Over REST": Page(
        before=SERVED,
        stands_for={
            "localhost:8000": HERE,
            "# the newest first": '; ID=$(curl "$SERVICE/v1/jobs" | id); vitfit jobs follow $ID  #',
        },
    ),
    "docs/compress.md": Page(
        stands_for={
            f"{CARD} --budget-ms 60": f"{BIG} --budget-ms 1.65",
            f"{CARD}=60 -t v100-eager-amp-b256-n197=120": f"{BIG}=1.65 -t v100-eager-amp-b8192-n17=3.4 --no-exports",
            "--speedup 3": "--speedup 3 --no-exports",
        },
    ),
    "docs/prune.md": Page(
        stands_for={
            f"{CARD} --budget-ms 60": f"{BIG} --budget-ms 1.65 --rounds 2 --interval 2",
            "--budget-ms 80": "--budget-ms 1.72",
            "--teacher dense.safetensors": "--teacher dense.safetensors --steps 4",
        },
    ),
    "docs/sparsity.md": Page(
        stands_for={
            "-s 0.75": "-s 0.75 --gradients 8",
            "2:4": "2:4 --gradients 8",
            "--teacher dense.safetensors": "--teacher dense.safetensors --steps 4",
            "--recipe light1 -o": "--recipe light1 --gradients 8 --steps 6 --phases 6 --batch-size 16 --out",
        },
        names="""
import timm
import torch
from torch.nn.functional import cross_entropy

resnet = timm.create_model("test_resnet", num_classes=4, zero_init_last=False).eval()
draw = torch.Generator().manual_seed(0)
images, labels = torch.randn(4, 2, 3, 32, 32, generator=draw), torch.randint(4, (4, 2), generator=draw)


def batches(recomputation):
    return zip(images, labels)


def loss(model, images, labels):
    return cross_entropy(model(images), labels)
""",
        after="ls swept-50.safetensors swept-60.safetensors swept-90.safetensors",
    ),
    "docs/sparsity-run.md": Page(
        before="""
cp dense.safetensors model.safetensors
vitfit sparsify dense.safetensors -d path/to/images --method magnitude -s 0.75 -o sparse.safetensors
""",
        stands_for={
            "-d DATA": "-d path/to/images",
            "--token-ratio 0.2": "--token-ratio 0.2 --steps 4",
            "--teacher sparse.safetensors": "--teacher sparse.safetensors --steps 4",
        },
        after="ls int8.safetensors",
    ),
    "docs/training.md": Page(
        before="cp dense.safetensors cut.safetensors",
        stands_for={
            "torchrun --nproc-per-node 8": "torchrun --standalone --nproc-per-node 2",
            "-d imagenet": "-d path/to/images",
            "-r nvit --device cuda": "-r nvit --batch-size 16 --steps 4",
            "Recipe(steps=1000)": "Recipe(steps=6, batch_size=16)",
            "until=100": "until=3",
            "keep = ...": "keep = Keep.of(dense.arch, {Group('mlp', 0): range(32)})",
        },
        names="""
from pathlib import Path

from recovery.data import load_dataset
from recovery.recipes import Recipe
from recovery.training import Trainer
from vit.checkpoint import load_checkpoint
from vit.groups import Group, Keep
from vit.surgery import shrink

dense = load_checkpoint(Path("dense.safetensors")).model()
model = load_checkpoint(Path("cut.safetensors")).model()
data = load_dataset("path/to/images", dense.arch)
""",
    ),
    "docs/export.md": Page(
        before="""
python - <<'END'
import timm
import torch
from safetensors.torch import save_file

torch.save(timm.create_model("deit_small_patch16_224", num_classes=10).state_dict(), "mine.pth")
model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=3, img_size=(252, 448))
save_file(model.state_dict(), "mine.safetensors")
END
vitfit export dense.safetensors -f standalone -o home
""",
        names="""
import sys

import torch

sys.path.insert(0, "home")
pixels = torch.rand(2, 3, 16, 16)
""",
    ),
    "docs/profiling.md": Page(after="test -s ~/.ray/auth_token"),
    "docs/tables.md": Page(
        stands_for={
            "vitfit profile   ": "vitfit profile --grid small-grid.json --rounds 1   ",
            "--points auto ": "tiny.json --points auto --error 0.5 --grid small-grid.json --rounds 1 --batch 2 ",
            "--points 200": "tiny.json --grid small-grid.json --rounds 1 --points 32",
            "deit-t --batch 8 ": "tiny.json --batch 8 --points 32 --rounds 1 ",
            "--grid nvit": "tiny.json --grid small-grid.json --points 32 --rounds 1",
            "--dtype bf16": "--dtype fp32",  # not every processor has it
            "validate SLUG": "validate library/tables/*-1t-eager-fp32-b1-n197.parquet --models 2 --blocks 2",
            "SLUG": "v100-eager-amp-b256-n198",
            "OTHER": "amd-epyc-1t-eager-fp32-b1-n17",
        },
    ),
    "docs/design.md": Page(
        files={"json": "my-rule.json", "yaml": "shapes.yaml"},
        before="cp dense.safetensors small.safetensors",
        stands_for={"trials: 200": "trials: 2", "steps: 200": "steps: 2", "at_most: 2000000": "at_most: 20000000"},
        after="vitfit study run shapes.yaml",
    ),
    "docs/jobs.md": Page(
        before='export VITFIT_WORKER_IDLE_SECONDS=0.5 VITFIT_QUEUES=\'["cpu", "cuda", "a100"]\'' + SERVED,
        stands_for={
            "localhost:8000": HERE,
            f"curl -s -X POST {HERE}/v1/jobs/$ID/cancel": f"ID={JOB}\ncurl -s -X POST {HERE}/v1/jobs/$ID/cancel",
            '"steps": 500': '"steps": 4',
            "vitfit worker  ": "vitfit worker --until-idle  ",
            "--gpu 0": "--gpu 0 --until-idle",
            "--queue a100": "--queue a100 --until-idle",
        },
    ),
    "docs/operations.md": Page(
        stands_for={"/backups": ".", "/srv/vitfit-again": "again"}, after="test -d again/models"
    ),
    "docs/security.md": Page(
        before="export VITFIT_AUTH=on VITFIT_API_KEY=$(vitfit keys create me)" + SERVED,
        stands_for={
            "vitfit keys revoke 0123456789ab": "vitfit keys list --json > keys.json\nvitfit keys revoke $(python -c '"
            'import json; print(*(one["id"] for one in json.load(open("keys.json"))["keys"] if one["name"] == "alice"))'
            "')",
            "localhost:8000": HERE,
        },
    ),
    "docs/rest.md": Page(
        before=SERVED
        + """
cp dense.safetensors model.safetensors
cp s0.safetensors s.safetensors
curl --data-binary @library/tables/amd-epyc-1t-eager-fp32-b1-n17.parquet -D headers.txt > uploaded.json \\
  -H 'content-type: application/vnd.apache.parquet' "$SERVICE/v1/tables"
ID=$(id < uploaded.json)
ETAG=$(sed -n 's/^etag: *//ip' headers.txt | tr -d '\\r')
test -n "$ETAG"
""",
    ),
    "docs/client.md": Page(
        before=f"{SERVED}\nexport JOB={JOB}",
        stands_for={
            "https://vitfit.example.org": "$SERVICE",
            "vf_...": "vf_none",
            "019aa6f1": "$JOB",
            '"http://127.0.0.1:8000"': 'os.environ["SERVICE"]',
        },
        names='import os\n\njob_id = os.environ["JOB"]',
    ),
    "lut_data/README.md": Page(names='from vit.presets import preset\n\narch = preset("deit-s")'),
}


def markdown() -> list[str]:
    """Every page that is ours."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("lut_data/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def shown(name: str) -> str:
    """The text of a page, or of its section behind `: `."""
    page, _, heading = name.partition(": ")
    if not heading:
        return page_text(page)
    return next(
        part for part in re.split("^## ", page_text(page), flags=re.MULTILINE) if part.startswith(f"{heading}\n")
    )


def script_of(name: str, work: Path) -> str:
    """What is typed; its files are written."""
    page = PAGES[name]
    script, written = "", {}
    for kind, block in fences(shown(name)):
        if kind == "sh":
            script += block
        elif kind == "python":
            script += f"python - <<'PYTHON'\n{page.names}\n{block}PYTHON\n"
        elif kind in page.files:
            written[page.files[kind]] = block
    for text, instead in page.stands_for.items():
        assert any(text in one for one in (script, *written.values())), f"{name} shows no {text!r} any more"
        script = script.replace(text, instead)
        written = {file: block.replace(text, instead) for file, block in written.items()}
    for file, block in written.items():
        (work / file).write_text(block)
    made = re.findall(r"(?<=\s-o )[\w./-]+", script)
    return "\n".join([page.before, script, page.after, f"ls -d {' '.join(made)}" if made else ""])


@pytest.mark.parametrize("page", markdown())
def test_every_block_is_run_by_a_test_or_says_why_it_is_not(page):
    sections = [name for name in PAGES if name.partition(": ")[0] == page]
    run = {fence for name in sections for fence in fences(shown(name))}
    kinds = {"sh", "python"} | {kind for name in sections for kind in PAGES[name].files}
    for kind, block in fences(page_text(page)):
        if page.removeprefix("docs/") in COMPARED:
            assert kind in SHOWN_ONLY | {"sh", "text"}, block
        elif kind == "python" and page in ELSEWHERE:
            assert any(f"def {ELSEWHERE[page]}(" in path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
        elif kind not in SHOWN_ONLY:
            assert (kind, block) in run, f"in no section that is typed, and not marked:\n```{kind}\n{block}"
            assert kind in kinds, f"nothing is done with this kind of fence:\n```{kind}\n{block}"


@pytest.mark.parametrize("page", PAGES)
def test_what_something_else_stands_for_is_still_shown(page, tmp_path):
    assert script_of(page, tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ready")
    make_ready(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a page started is found in /proc")
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl; `make test` installs it as root on Debian")
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_ends_well(page, ready, tmp_path):
    shutil.copytree(ready, tmp_path / "work")
    status, printed = typed(f"export OMP_NUM_THREADS=1\n{script_of(page, tmp_path / 'work')}", tmp_path)
    assert status == 0, printed
