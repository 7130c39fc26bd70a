"""Uploads that somebody damaged, by accident or on purpose; the same ones for the same seed."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latency.interop import export_table
from search.saliency import save_saliency
from tests.api.factories import TINY, TINY_TARGET, save_model, tiny_table
from tests.reference import random_saliency

PARQUET, CSV, JSON, SAFETENSORS = (
    "application/vnd.apache.parquet",
    "text/csv",
    "application/json",
    "application/octet-stream",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A file that is taken as it is, and how it is sent."""

    path: str
    media_type: str
    params: Mapping[str, str | int | float]
    data: bytes

    @property
    def is_text(self) -> bool:
        return self.media_type in (CSV, JSON)


def samples(folder: Path) -> dict[str, Sample]:
    """One of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in ("parquet", "csv", "nvit"):
        export_table(tiny_table(), folder / form, form)
    save_model(TINY, folder / "model")
    save_saliency(random_saliency(TINY, seed=1), folder / "saliency")
    said = {
        "target": TINY_TARGET.slug,
        "outside_ms": 0.5,
        "norm": "layer",
        "image_size": 16,
        "patch_size": 8,
        "num_classes": 5,
        "source": "made up",
        "license": "none",
    }
    forms = {
        "parquet": ("/v1/tables", PARQUET, {}),
        "csv": ("/v1/tables", CSV, {}),
        "nvit": ("/v1/tables", JSON, said),
        "model": ("/v1/models", SAFETENSORS, {"name": "fuzzed"}),
        "saliency": ("/v1/saliencies", SAFETENSORS, {"name": "fuzzed"}),
    }
    return {name: Sample(*how, (folder / name).read_bytes()) for name, how in forms.items()}


def bombs() -> dict[str, bytes]:
    """Small files that would unpack, nest or count to far more than they are."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.parquet", bytes(50 * 2**20))
    gzip = zlib.compressobj(9, wbits=31)
    rows = 20_000_000
    repeated = io.BytesIO()
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["block"]))
    pq.write_table(pa.table({"part": column}), repeated, compression="zstd")
    huge_header = struct.pack("<Q", 2**62) + b"{}"
    deep = b"[" * 100_000
    return {
        "zip": zipped.getvalue(),
        "gzip": gzip.compress(bytes(50 * 2**20)) + gzip.flush(),
        "parquet of many rows": repeated.getvalue(),
        "safetensors header of 2**62 bytes": huge_header,
        "safetensors header of nested lists": struct.pack("<Q", len(deep)) + deep,
        "safetensors of a huge shape": _safetensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}),
        "deep JSON": deep,
        "JSON of a long number": b'{"EMB_8": ' + b"9" * 100_000 + b"}",
        "CSV of many columns": b",".join([b"embed_dim"] * 200_000) + b"\n",
        "CSV of one endless field": b'"' + b"a" * 2_000_000,
        "pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    }


def _safetensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


def mutations(found: Mapping[str, Sample], count: int, seed: int) -> Iterator[tuple[str, Sample, bytes]]:
    """What was done, to what, and what it became: all kinds of files in turn, among them each bomb to each of them."""
    rng, kinds, unpacking = np.random.default_rng(seed), list(found), bombs()
    planted = [(kind, name) for name in unpacking for kind in kinds]
    for index in range(count):
        if index % 10 == 0 and index // 10 < len(planted):
            kind, name = planted[index // 10]
            yield f"{kind}: {name}", found[kind], unpacking[name]
            continue
        kind = kinds[index % len(kinds)]
        how, data = _mutated(found[kind], rng)
        yield f"{kind} {index}: {how}", found[kind], data


_NUMBERS = (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_WORDS = (
    b"NaN",
    b"-1",
    b"1e999",
    b"",
    b"9" * 400,
    b"\x00",
    b"\xff\xfe",
    b"null",
    b"[[",
    b'"',
    b"\n",
    b"../../etc/passwd",
)


def _mutated(sample: Sample, rng: np.random.Generator) -> tuple[str, bytes]:
    data, size = bytearray(sample.data), len(sample.data)
    # Headers and footers say what the rest is: half of all changes are there.
    near = int(rng.choice([64, 1024, size]))
    place = int(rng.integers(min(near, size)))
    if rng.random() < 0.5:
        place = size - 1 - place
    match int(rng.integers(7)):
        case 0:
            for _ in range(int(rng.integers(1, 9))):
                data[(place + int(rng.integers(64))) % size] ^= 1 << int(rng.integers(8))
            return f"bits flipped near {place}", bytes(data)
        case 1:
            return f"cut at {place}", bytes(data[:place])
        case 2:
            length = int(rng.integers(1, 257))
            return f"{length} bytes gone at {place}", bytes(data[:place] + data[place + length :])
        case 3:
            length = int(rng.integers(1, 257))
            return f"{length} random bytes at {place}", bytes(data[:place] + rng.bytes(length) + data[place:])
        case 4:
            length = int(rng.integers(1, 257))
            part = data[place : place + length]
            return f"{len(part)} bytes twice at {place}", bytes(data[:place] + part + data[place:])
        case 5:
            number = struct.pack("<Q", _NUMBERS[int(rng.integers(len(_NUMBERS)))])
            at = 0 if rng.random() < 0.3 else place
            data[at : at + 8] = number
            return f"the number {number.hex()} at {at}", bytes(data)
        case _:
            word = _WORDS[int(rng.integers(len(_WORDS)))]
            if sample.is_text and (numbers := [m for m, byte in enumerate(data) if 48 <= byte <= 57]):
                start = end = int(rng.choice(numbers))
                while end < size and data[end : end + 1] in (*(b"%d" % d for d in range(10)), b"."):
                    end += 1
                return f"{word[:20]!r} for the number at {start}", bytes(data[:start] + word + data[end:])
            return f"{word[:20]!r} at {place}", bytes(data[:place] + word + data[place + len(word) :])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one upload; `wrong` is empty where it was answered as it should be."""

    what: str
    status: int
    wrong: str


def send(client: Any, root: Path, what: str, sample: Sample, data: bytes) -> Outcome:
    """Upload; an upload that is taken is deleted again, so that after each one the data folder is as it was before."""
    before = _files(root)
    answer = client.post(
        sample.path, params=dict(sample.params), content=data, headers={"content-type": sample.media_type}
    )
    wrong = []
    if answer.status_code in (200, 201):
        deleted = client.delete(answer.headers["location"])
        if deleted.status_code != 200:
            wrong.append(f"taken, and then not deleted: {deleted.text[:200]}")
    elif not 400 <= answer.status_code < 500:
        wrong.append(f"answered {answer.status_code}: {answer.text[:200]}")
    elif answer.headers["content-type"] != "application/problem+json":
        wrong.append(f"refused with {answer.headers['content-type']}")
    elif str(root) in answer.text:
        wrong.append(f"the answer names a path of the machine: {answer.text[:300]}")
    if left := _files(root) - before:
        wrong.append(f"left {sorted(left)}")
    return Outcome(what, answer.status_code, "; ".join(wrong))


OWN = ("vitfit.sqlite", ".stored.json")
"""What the service itself keeps: its database, and its list of what is stored."""


def _files(root: Path) -> set[str]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)) for path in found if not path.name.startswith(OWN)}
