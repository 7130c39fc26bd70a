"""Files that somebody might upload, good ones mutated by chance and bombs, and a service that gets them."""

import gzip
import io
import json
import random
import resource
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from api.uploads import CSV, JSON, PARQUET, SAFETENSORS
from latency.interop import export_table
from latency.storage import save_table
from search.saliency import save_saliency
from tests.api.factories import TINY, save_model, tiny_table
from tests.reference import random_saliency

SAID = {"target": "testbed-eager-fp32-b2-n5", "outside_ms": 1, "norm": "layer", "image_size": 16, "patch_size": 8}
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\x00", "é" * 1000,
    "../../etc/passwd", [], {}, [[]], [{}], {"": {}}, [1, "2", None], "0" * 5000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """
    Attributes:
        name: what was done to what.
        path: of the noun that it is sent to.
    """

    name: str
    path: str
    media_type: str
    data: bytes
    query: dict[str, Any]


class FuzzedService:
    """A service without anything in it, in this process."""

    def __init__(self, root: Path) -> None:
        self._root = root / "library"
        self._client = TestClient(
            create_app(Settings(data_dir=self._root, worker=False, shipped_tables=False)), raise_server_exceptions=False
        )

    def __enter__(self) -> Self:
        self._client.__enter__()
        for path in ("/v1/tables", "/v1/models", "/v1/saliencies"):
            assert (
                self._client.post(f"{path}?name=a", content=b"x", headers={"content-type": PARQUET}).status_code > 399
            )
        self._before = self._files()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(None, None, None)

    def send(self, upload: Fuzzed) -> tuple[int, str]:
        """Status, and what is wrong about the answer; empty where nothing is. What was taken is deleted again."""
        answer = self._client.post(
            upload.path, params=upload.query, content=upload.data, headers={"content-type": upload.media_type}
        )
        if 400 <= answer.status_code < 500:
            kind, problem = answer.headers["content-type"], answer.json()
            whole = kind == "application/problem+json" and problem["type"] != "about:blank" and problem["detail"]
            if not whole or str(self._root) in answer.text:
                return answer.status_code, f"no clean problem: {answer.text[:300]}"
            return answer.status_code, ""
        if answer.status_code not in (200, 201):
            return answer.status_code, f"{answer.status_code} {answer.text[:300]}"
        if answer.status_code == 200:  # checked, not kept
            return 200, ""
        return 201, self._harmless(upload.path, answer.headers["location"])

    def _harmless(self, noun: str, place: str) -> str:
        for method, path in (("GET", noun), ("GET", place), ("GET", f"{place}/file"), ("DELETE", place)):
            answer = self._client.request(method, path)
            if answer.status_code != 200:
                return f"taken, and then {method} {path} is {answer.status_code} {answer.text[:300]}"
        return ""

    def left(self) -> list[str]:
        """Files that were not there before, save the database and the list of what this machine has of it."""
        return sorted(self._files() - self._before)

    def _files(self) -> set[str]:
        kept = (".stored.json", "vitfit.db", "service.db", ".sqlite", "-wal", "-shm", "-journal")
        return {
            str(path.relative_to(self._root))
            for path in self._root.rglob("*")
            if path.is_file() and not any(word in path.name for word in kept)
        }

    @staticmethod
    def peak_bytes() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzzed(count: int, seed: int, folder: Path) -> Iterator[Fuzzed]:
    """Every bomb, and then good files mutated, the same ones for the same seed."""
    chance, good = random.Random(seed), good_files(folder)
    bombs = list(bombs_of(good, folder))[:count]
    yield from bombs
    for index in range(count - len(bombs)):
        one = chance.choice(good)
        how = chance.choice(_MUTATIONS)
        data = how(one.data, chance)
        for _ in range(chance.choice((0, 0, 1, 3))):
            data = chance.choice(_BYTES)(data, chance)
        other = chance.random() < 0.05
        name = f"{index} {how.__name__.strip('_')} {one.name}"
        query = one.query if chance.random() < 0.9 else {**one.query, "target": chance.choice(("", "x-y", "é"))}
        media_type = chance.choice((PARQUET, CSV, JSON, SAFETENSORS)) if other else one.media_type
        yield Fuzzed(name, one.path, media_type, data or b"\0", query)


def good_files(folder: Path) -> list[Fuzzed]:
    table, place = tiny_table(), folder / "good"
    place.mkdir()
    save_table(table, place / "table.parquet")
    export_table(table, place / "table.csv", "csv")
    export_table(table, place / "table.json", "nvit")
    save_model(TINY, place / "model.safetensors", ({"step": "import"},))
    save_saliency(random_saliency(TINY, seed=0), place / "saliency.safetensors")
    rows = (
        ("/v1/tables", "table.parquet", PARQUET, {}),
        ("/v1/tables/validate", "table.parquet", PARQUET, {}),
        ("/v1/tables", "table.csv", CSV, {}),
        ("/v1/tables/validate", "table.csv", CSV, {}),
        ("/v1/tables", "table.json", JSON, SAID),
        ("/v1/models", "model.safetensors", SAFETENSORS, {"name": "fuzzed"}),
        ("/v1/saliencies", "saliency.safetensors", SAFETENSORS, {"name": "fuzzed"}),
    )
    return [Fuzzed(name, path, kind, (place / name).read_bytes(), query) for path, name, kind, query in rows]


# --- mutations ---------------------------------------------------------------------------------------------------


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 4, 64))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _gap(data: bytes, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(data) + 1), chance.choice((1, 8, 100))
    return data[:start] + data[start + length :]


def _doubled(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    piece = data[start : start + chance.choice((1, 30, 1000))]
    return data[:start] + piece * 2 + data[start + len(piece) :]


def _put_in(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    piece = chance.choice(
        (b"\0" * 8, b"\xff" * 8, b"NaN", b"-1", b"1e999", b'"', b"{" * 50, b"\n", b",", b"99999999999")
    )
    return data[:start] + piece + data[start:]


def _length_changed(data: bytes, chance: random.Random) -> bytes:
    """The first eight bytes, safetensors' length of its header, or the last eight, Parquet's."""
    length = struct.pack("<Q", chance.choice((0, 1, 2**20, 2**31, 2**63, 2**64 - 1, len(data))))
    return length + data[8:] if chance.random() < 0.5 else data[:-8] + length[:4] + data[-4:]


def _document_changed(data: bytes, chance: random.Random) -> bytes:
    """A value somewhere in the JSON that the file holds is another one."""
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        changed = _value_changed(json.loads(table.schema.metadata[b"vitfit"]), chance)
        out = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({b"vitfit": json.dumps(changed).encode()}), out)
        return out.getvalue()
    if data[:1] == b"#":
        first, _, rest = data.partition(b"\n")
        prefix, _, text = first.partition(b":")
        return prefix + b": " + json.dumps(_value_changed(json.loads(text), chance)).encode() + b"\n" + rest
    if data[:1] == b"{":
        return json.dumps(_value_changed(json.loads(data), chance)).encode()
    (length,) = struct.unpack("<Q", data[:8])
    header = dict(sorted(json.loads(data[8 : 8 + length]).items()))  # safetensors writes them in any order
    said = header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    if chance.random() < 0.8:
        texts = [key for key in said if said[key][:1] in ("{", "[")]
        key = chance.choice(texts)
        said[key] = json.dumps(_value_changed(json.loads(said[key]), chance))
    else:
        header = _value_changed(header, chance)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _value_changed(document: Any, chance: random.Random) -> Any:
    """Go down at random, and put something else there, or take it away."""
    if not isinstance(document, (dict, list)) or not document or chance.random() < 0.15:
        return chance.choice(STRANGE)
    key = chance.choice(list(document)) if isinstance(document, dict) else chance.randrange(len(document))
    if chance.random() < 0.1:
        del document[key]
    elif isinstance(document, list) and chance.random() < 0.1:
        document.insert(key, document[key])
    else:
        document[key] = _value_changed(document[key], chance)
    return document


def _rows_changed(data: bytes, chance: random.Random) -> bytes:
    """Of a table in Parquet: rows doubled, left out, in another order, or a column of another type."""
    if data[:4] != b"PAR1":
        return _flipped(data, chance)
    table = pq.read_table(io.BytesIO(data))
    order = list(range(table.num_rows))
    how = chance.randrange(4)
    if how == 0:
        del order[chance.randrange(len(order))]
    elif how == 1:
        order.insert(chance.randrange(len(order)), chance.choice(order))
    elif how == 2:
        chance.shuffle(order)
    changed = table.take(order)
    if how == 3:
        index = chance.randrange(table.num_columns)
        values = [chance.choice((None, "x", "1", "-1", "nan")) for _ in order]
        typed = chance.choice((pa.string(), pa.list_(pa.string()), pa.binary()))
        column = pa.array([[v] if typed == pa.list_(pa.string()) else v for v in values], typed)
        changed = changed.set_column(index, table.schema.names[index], column)
    out = io.BytesIO()
    pq.write_table(changed, out)
    return out.getvalue()


_BYTES = (_flipped, _cut, _gap, _doubled, _put_in)
_MUTATIONS = (*_BYTES, _length_changed, _document_changed, _document_changed, _document_changed, _rows_changed)


# --- bombs -------------------------------------------------------------------------------------------------------


def bombs_of(good: list[Fuzzed], folder: Path) -> Iterator[Fuzzed]:
    """Small files that claim, or unpack to, far more than a machine has."""
    zeros = bytes(64 * 2**20)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.parquet", zeros)
    raw = {
        "gzip": gzip.compress(zeros),
        "zip": zipped.getvalue(),
        "header of 2^62 bytes": struct.pack("<Q", 2**62) + b"{}",
        "header of 99 MB": struct.pack("<Q", 99_000_000) + b" " * 10_000,
        "deep JSON": b"[" * 1_000_000,
        "deep object": b'{"EMB_256":' * 100_000,
        "one number of a million digits": b'{"EMB_256":{"QK_1_16":{"V_16":{"MLP_128":' + b"9" * 1_000_000 + b"}}}}",
        "a million columns": b"part," * 1_000_000 + b"\n1",
        "one field of 20 MB": b"part,embed_dim\n" + b"x" * 20_000_000,
    }
    places = {(one.path, one.media_type): one.query for one in good}
    for name, data in raw.items():
        for (path, media_type), query in places.items():
            yield Fuzzed(f"bomb {name}", path, media_type, data, query)
    (table,) = [one for one in good if one.name == "table.parquet" and one.path == "/v1/tables"]
    for name, data in _parquet_bombs(table.data):
        yield Fuzzed(f"bomb {name}", "/v1/tables", PARQUET, data, {})
    for one in good:
        if one.media_type == SAFETENSORS:
            for name, data in _safetensors_bombs(one.data):
                yield Fuzzed(f"bomb {name} {one.name}", one.path, SAFETENSORS, data, one.query)


def _parquet_bombs(data: bytes) -> Iterator[tuple[str, bytes]]:
    table = pq.read_table(io.BytesIO(data))

    def written(changed: pa.Table) -> bytes:
        out = io.BytesIO()
        pq.write_table(changed, out, compression="zstd", use_dictionary=True)
        return out.getvalue()

    rows, long = 8_000, pa.array(["x" * 100_000])  # 800 MB where each row gets a copy of its own
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), long)
    many = table.take([0] * rows)
    for index, name in enumerate(table.schema.names):
        yield f"long texts in {name}", written(many.set_column(index, name, texts))
    yield "2.1 million rows", written(table.slice(0, 1).take(np.zeros(2_100_000, np.int64)))
    wide = table
    for index in range(300):
        wide = wide.append_column(f"c{index}", wide.column("median_ms"))
    yield "300 columns", written(wide)
    for name, text in (("deep", "[" * 200_000), ("long", json.dumps("x" * 5_000_000))):
        yield f"{name} metadata", written(table.replace_schema_metadata({b"vitfit": text.encode()}))


def _safetensors_bombs(data: bytes) -> Iterator[tuple[str, bytes]]:
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]

    def written(document: Any) -> bytes:
        text = json.dumps(document).encode()
        return struct.pack("<Q", len(text)) + text + body

    for key, text in header["__metadata__"].items():
        for name, value in (("deep", "[" * 100_000), ("huge", text[:-1] + " " * 5_000_000 + text[-1:])):
            yield f"{name} {key}", written({**header, "__metadata__": {**header["__metadata__"], key: value}})
    shape = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, len(body)]}
    yield "a tensor of 4 TB", written({**header, "bomb": shape})
    flat = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(50_000)}
    yield "50,000 empty tensors", written({**flat, **header})
