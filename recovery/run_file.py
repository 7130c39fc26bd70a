"""A training run on disk, to go on with after kill -9: safetensors, whole or not there, read without running code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recovery.errors import TrainingError
from vit.files import write_atomically
from vit.fingerprint import fingerprint

FORMAT = "vitfit-training-run"
VERSION = "1"

Arguments = Mapping[str, object]
"""What a run was started with, by name; JSON values."""


@dataclass(frozen=True, eq=False)
class Best:
    """The best weights so far by the validation images.

    Attributes:
        accuracy: theirs, in [0, 1].
        step: after which they were found.
        weights: state dict of the model.
    """

    accuracy: float
    step: int
    weights: Mapping[str, Tensor]


def weights_id(model: nn.Module | None, *, parameters_alone: bool = False) -> str:
    """Changes with any weight; empty for no model."""
    if model is None:
        return ""
    state = dict(model.named_parameters()) if parameters_alone else model.state_dict()
    arrays = (state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for name in sorted(state))
    return fingerprint([type(model).__name__, *sorted(state)], *arrays)[:16]


def save_run(path: Path, arguments: Arguments, state: Mapping[str, Tensor], best: Best | None) -> None:
    tensors = {f"state.{name}": tensor for name, tensor in state.items()}
    metadata = {"format": FORMAT, "version": VERSION, "arguments": json.dumps(dict(arguments))}
    if best is not None:
        tensors |= {f"best.{name}": tensor.detach().to("cpu", copy=True) for name, tensor in best.weights.items()}
        metadata["best"] = json.dumps({"accuracy": best.accuracy, "step": best.step})
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_run(path: Path, arguments: Arguments) -> tuple[dict[str, Tensor], Best | None]:
    """The trainer's state and the best weights.

    Raises:
        TrainingError: no run file, or one of a run with other arguments, of which one is named.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise ValueError("another format or version")
        made_with = json.loads(metadata["arguments"])
        found = json.loads(metadata["best"]) if "best" in metadata else None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{path} holds no training run that can go on: {error}; remove it to start anew") from None
    for name in sorted({*arguments, *made_with}):
        if made_with.get(name) != arguments.get(name):
            raise TrainingError(
                f"{path} is of a run with {name} {made_with.get(name)!r:.80}, now it is {arguments.get(name)!r:.80}; "
                "give what it was started with, or remove the file to start anew"
            )
    state = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    weights = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
    return state, None if found is None else Best(found["accuracy"], found["step"], weights)
