"""Models for other runtimes; an export whose outputs differ from the model's is refused and leaves no file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from vit.checkpoint import Checkpoint
from vit.errors import ExportError
from vit.files import write_atomically, write_folder_atomically
from vit.model import VisionTransformer
from vit.standalone import run_standalone, write_standalone
from vit.tokens import TokenPrunedTransformer

TOLERANCE = 1e-4
"""Largest allowed difference of logits, relative to the largest logit; other kernels add in another order."""


MAX_BATCH = 2**16
"""Exported models take any batch up to this; without a bound torch 2.6 refuses to leave the batch size open."""


def _batch() -> Any:
    return torch.export.Dim("batch", min=1, max=MAX_BATCH)


def _samples(model: VisionTransformer) -> Tensor:
    """Two images, so that a batch size that was frozen by mistake shows.

    Of a model that drops tokens two of 32 on which its decisions are clearest: where two tokens are equal but for
    rounding, each runtime drops another one.
    """
    generator = torch.Generator().manual_seed(0)
    dropping = isinstance(model, TokenPrunedTransformer)
    images = torch.randn(32 if dropping else 2, model.arch.in_chans, *model.arch.image_size, generator=generator)
    return images[model.margins(images).topk(2).indices] if isinstance(model, TokenPrunedTransformer) else images


def _check(expected: Tensor, found: Tensor, what: str) -> float:
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the {what} export differs from the model by {difference:.1e} of the largest logit "
            f"(allowed {TOLERANCE:.0e}); nothing was written"
        )
    return difference


@torch.no_grad()
def onnx_model(model: VisionTransformer, images: Tensor) -> Any:
    """The model as an ONNX document, `images` to `logits`, with a free batch size."""
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: _batch()}},
        verbose=False,
    )
    assert program is not None  # None only without dynamo
    return program.model_proto


@torch.no_grad()
def export_onnx(checkpoint: Checkpoint, path: Path) -> float:
    """Write an ONNX file with a free batch size and compare it in ONNX Runtime.

    Returns:
        The largest difference of logits over the largest logit.

    Raises:
        ExportError: outputs differ.
    """
    import onnxruntime

    model = checkpoint.model().float()
    images = _samples(model)
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        onnx.save(onnx_model(model, images), temporary)
        batches = (images, images[:1].repeat(5, 1, 1, 1))
        try:
            session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
            found = [session.run(None, {"images": batch.numpy()})[0] for batch in batches]
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise ExportError(f"ONNX Runtime refuses the exported file, nothing was written: {error}") from None
        for batch, logits in zip(batches, found, strict=True):
            difference = max(difference, _check(model(batch), torch.from_numpy(np.asarray(logits)), "ONNX"))

    write_atomically(path, write)
    return difference


@torch.no_grad()
def export_torch(checkpoint: Checkpoint, path: Path) -> float:
    """Write a torch.export program (.pt2) with a free batch size and compare it with the model."""
    model = checkpoint.model().float()
    images = _samples(model)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: _batch()},))
    difference = _check(model(images), program.module()(images), "torch.export")
    write_atomically(path, lambda temporary: torch.export.save(program, temporary))
    return difference


@torch.no_grad()
def export_standalone(checkpoint: Checkpoint, path: Path) -> float:
    """Write a folder with model.py and model.safetensors, which need torch alone, and compare it in a new process.

    Raises:
        ExportError: outputs differ, or something is at `path`.
    """
    if path.suffix in (".py", ".safetensors"):
        raise ExportError(f"a stand-alone export is a folder with model.py and model.safetensors; {path} names a file")
    model = checkpoint.model().float()
    images = _samples(model)
    difference = 0.0

    def write(folder: Path) -> None:
        nonlocal difference
        write_standalone(checkpoint, folder)
        difference = _check(model(images), run_standalone(folder, images), "stand-alone")

    try:
        write_folder_atomically(path, write)
    except FileExistsError as error:
        raise ExportError(f"{error}; name a new folder") from None
    return difference


EXPORTS: dict[str, Callable[[Checkpoint, Path], float]] = {
    "onnx": export_onnx,
    "torch": export_torch,
    "standalone": export_standalone,
}
