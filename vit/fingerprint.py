"""Fingerprint: one word that changes with any bit of what a value holds, for files made of that value."""

import hashlib
import json

import numpy as np
import numpy.typing as npt


def fingerprint(document: object, *arrays: npt.NDArray[np.generic]) -> str:
    """Of a JSON document and arrays, their types and shapes included."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
