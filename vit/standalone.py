"""A model to take home: a folder with model.py, written for one architecture, and its weights; it needs torch alone.

The weights are a checkpoint of ours, so model.safetensors still has its lineage and can be evaluated or cut again.
model.py reads it in a dozen lines of its own: a safetensors file is a JSON header and plain numbers, so neither the
safetensors package nor unpickling (torch.load) is needed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from vit.checkpoint import Checkpoint, save_checkpoint
from vit.errors import ExportError
from vit.files import write_text
from vit.standalone_source import standalone_source
from vit.tokens import refuse_token_pruned


def write_standalone(checkpoint: Checkpoint, folder: Path) -> None:
    """model.py and model.safetensors (fp32, dense: masked weights are written as zeros) into a folder."""
    model = checkpoint.model().float()
    refuse_token_pruned(model, "a stand-alone export")
    save_checkpoint(Checkpoint.of(model, checkpoint.lineage), folder / "model.safetensors")
    write_text(folder / "model.py", standalone_source(checkpoint.arch, checkpoint.normalisation()))


_ELSEWHERE = """
import sys
for name in ("vit", "timm", "safetensors"):
    sys.modules[name] = None  # importing it fails
folder, place, threads = sys.argv[1:]
sys.path.insert(0, folder)
import torch
from model import load
torch.set_num_threads(int(threads))
with torch.no_grad():
    torch.save(load()(torch.load(place + "/images.pt", weights_only=True)), place + "/outputs.pt")
"""


def run_standalone(folder: Path, images: Tensor) -> Tensor:
    """The outputs of a folder's model for these images, from a new process that has torch and can import none of ours.

    Raises:
        ExportError: the process failed; with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as place:
        torch.save(images, Path(place, "images.pt"))
        # -B: no compiled model.py is left in the folder.
        command = [sys.executable, "-B", "-c", _ELSEWHERE, str(folder), place, str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ExportError(f"the exported model.py does not run, nothing was written: {said[-1]}")
        outputs: Tensor = torch.load(Path(place, "outputs.pt"), weights_only=True)
        return outputs
