"""An architecture in ONNX with random weights, made in a process of its own: the service never loads torch."""

import subprocess
import sys
from pathlib import Path
from threading import Lock

from api.errors import LimitError
from vit.architecture import Architecture
from vit.cost import params
from vit.errors import ExportError
from vit.files import write_atomically

FOLDER = Path("cache", "onnx")
KEEP = 32
"""Files, of which those that were made longest ago go."""

MOST_PARAMS = 200_000_000
SECONDS = 300

_ONE = Lock()


def onnx_of(arch: Architecture, root: Path) -> Path:
    """The file, made where it is not there yet; one at a time.

    Raises:
        LimitError: a model that is too large to be made for a request.
        ExportError: it could not be made.
    """
    if (count := params(arch)) > MOST_PARAMS:
        raise LimitError(
            f"{arch.id} has {count:,} parameters; at most {MOST_PARAMS:,} are exported here; `vitfit export` takes more"
        )
    path = root / FOLDER / f"{arch.id}.onnx"
    with _ONE:
        if not path.exists():
            write_atomically(path, lambda temporary: _make(arch, temporary))
            files = sorted(path.parent.glob("*.onnx"), key=lambda one: one.stat().st_mtime_ns)
            for old in files[:-KEEP]:
                old.unlink(missing_ok=True)
    return path


def _make(arch: Architecture, path: Path) -> None:
    command = [sys.executable, "-m", "api.onnx_worker", str(path)]
    try:
        done = subprocess.run(  # noqa: S603
            command, input=arch.to_json(), text=True, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"{arch.id} was not exported within {SECONDS} s") from None
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise ExportError(f"{arch.id} was not exported: {reason[:500]}")


def _main() -> None:
    import json

    import torch

    from vit.checkpoint import Checkpoint
    from vit.export import export_onnx
    from vit.model import VisionTransformer, initialise

    arch = Architecture.from_dict(json.loads(sys.stdin.read()))
    model = initialise(VisionTransformer(arch), torch.Generator().manual_seed(0)).eval()
    export_onnx(Checkpoint.of(model, ({"step": "random", "seed": 0},)), Path(sys.argv[1]))


if __name__ == "__main__":
    _main()
