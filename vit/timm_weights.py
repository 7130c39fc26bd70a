"""A user's own weights into a timm model: read without running code from the file, a misfit told in one line."""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vit.errors import CheckpointError

_CLASSIFIERS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
_POSITIONS, _PATCHES = "pos_embed", "patch_embed.proj.weight"


def load_weights(model: nn.Module, name: str, path: Path) -> None:
    """Load a state dict into timm's model of this name, in place.

    Args:
        path: .safetensors, or what torch.save wrote: a state dict, or one under `model` or `state_dict` (their EMA
            goes before them), with or without DataParallel's `module.`.

    Raises:
        CheckpointError: not there, unreadable without running code from it, of another model, or of the same one with
            other classes, channels or image size; says what to pass then.
    """
    weights = _read(path)
    if problem := _misfit(model, name, weights):
        raise CheckpointError(f"{path} {problem}")
    model.load_state_dict(weights)


def _read(path: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    how = "save one as .safetensors, or with torch.save(model.state_dict(), PATH)"
    try:
        weights = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, safetensors and zipfile each have their own for a file that is none
        if isinstance(error.__cause__, pickle.UnpicklingError):  # timm says how to open it in spite of that
            raise CheckpointError(
                f"{path} holds more than a state dict (a pickled model?), and opening it would run code from it; {how}"
            ) from None
        raise CheckpointError(f"{path} is no readable state dict ({one_line(error)}); {how}") from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{path} is no state dict of tensors; {how}")
    return weights


def one_line(error: Exception) -> str:
    """The kind and the first line of an error of others, some of which say only a number."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first:.200}" if first else type(error).__name__


def _misfit(model: Any, name: str, weights: Mapping[str, Tensor]) -> str | None:
    """Why these weights are not this model's, and what to do; None if they are."""
    expected, found = _shapes(model.state_dict()), _shapes(weights)
    wrong = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
    explained = dict(_options(model, name, expected, found, wrong))
    if rest := sorted(wrong.difference(*explained.values())):
        key = rest[0]
        theirs, ours = (shapes.get(key, "not there") for shapes in (found, expected))
        return f"is of another model than {name}: {key} is {theirs}, in {name} it is {ours} ({len(rest)} such weights)"
    return "; ".join(explained) or None


def _options(
    model: Any, name: str, expected: Mapping[str, Any], found: Mapping[str, Any], wrong: set[str]
) -> Iterator[tuple[str, Iterable[str]]]:
    """Sentences that say which option of the import would explain which of the wrong weights."""
    if heads := wrong.intersection(_CLASSIFIERS):
        theirs, ours = (shapes.get(_CLASSIFIERS[0], (0,))[0] for shapes in (found, expected))
        if theirs != ours:
            yield f"has {theirs} classes, {name} has {ours}: pass --num-classes {theirs}", heads
    if _PATCHES in wrong and len(shape := found.get(_PATCHES, ())) == 4:
        ours = expected[_PATCHES]
        if shape[1] != ours[1] and shape[2:] == ours[2:] and shape[0] == ours[0]:
            yield f"takes {shape[1]} channels, {name} takes {ours[1]}: pass --in-chans {shape[1]}", {_PATCHES}
    if _POSITIONS in wrong and len(shape := found.get(_POSITIONS, ())) == 3 and _POSITIONS in expected:
        ours = expected[_POSITIONS]
        if shape[2] == ours[2]:
            yield (
                f"has {shape[1]} positions, {name} has {ours[1]}: pass the --img-size that it was trained with"
                + _square(model, shape[1]),
                {_POSITIONS},
            )


def _square(model: Any, positions: int) -> str:
    """The image size of that many positions, if the image was square."""
    patches = positions - (0 if model.no_embed_class else model.num_prefix_tokens)
    side = round(max(patches, 0) ** 0.5)
    height, width = model.patch_embed.patch_size
    return f", {side * height} if that was square" if side and side * side == patches and height == width else ""


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
