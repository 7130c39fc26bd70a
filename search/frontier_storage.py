"""Frontier on disk: its staircase as safetensors, and as JSON what it was made for.

A frontier answers for one saliency, one table and one set of constraints. The file carries the fingerprints of all
three and is refused for any other, so that no answer is ever given from numbers that have changed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from latency.estimate import LatencyModel
from search.constraints import Constraints
from search.errors import FrontierError
from search.frontier import Frontier, Staircase
from search.saliency import Saliency
from vit.files import write_atomically
from vit.fingerprint import fingerprint

FORMAT = "vitfit-frontier"
VERSION = "1"
"""Of the answers, too: a search that finds other ones has another version."""

_ARRAYS = ("ms", "kept", "bound", "sizes")


def made_for(saliency: Saliency, latency: LatencyModel, constraints: Constraints) -> dict[str, Any]:
    """What decides a frontier, as it is written into its file."""
    return {
        "saliency": saliency.fingerprint,
        "target": latency.target.slug,
        "latency": latency.fingerprint,
        "constraints": constraints.to_dict(),
    }


def save_frontier(frontier: Frontier, path: Path) -> None:
    """Write atomically: `path` holds a whole frontier or what it held before."""
    arrays: dict[str, npt.NDArray[np.generic]] = {name: getattr(frontier.staircase, name) for name in _ARRAYS}
    document = made_for(frontier.saliency, frontier.latency, frontier.constraints)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "document": json.dumps(document),
        "fingerprint": fingerprint(document, *arrays.values()),
    }
    write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))


def load_frontier(
    path: Path, saliency: Saliency, latency: LatencyModel, constraints: Constraints | None = None
) -> Frontier:
    """
    Raises:
        FrontierError: missing, truncated, damaged, another format or version, or made for another saliency, target,
            table or other constraints; says which.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FrontierError(f"no frontier at {path}") from None
    except (SafetensorError, OSError) as error:
        raise FrontierError(f"{path} is no readable frontier (truncated or another format): {error}") from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise FrontierError(f"{path} is no vitfit frontier of version {VERSION}")
    constraints = constraints or Constraints()
    try:
        document = json.loads(metadata["document"])
        if metadata["fingerprint"] != fingerprint(document, *(arrays[name] for name in _ARRAYS)):
            raise ValueError("its numbers are not those that were written")
        for name, wanted in made_for(saliency, latency, constraints).items():
            if document[name] != wanted:
                what = {"saliency": "another saliency", "constraints": "other constraints"}.get(name, "another table")
                raise FrontierError(f"{path} was made for {what}; build the frontier again")
        staircase = Staircase(**{name: arrays[name] for name in _ARRAYS})
        if staircase.sizes.shape[1] != 1 + 4 * saliency.arch.depth:
            raise ValueError(f"it is of {staircase.sizes.shape[1] // 4} blocks")
    except FrontierError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise FrontierError(f"{path} is damaged: {error}") from None
    return Frontier(saliency, latency, constraints, staircase=staircase)
