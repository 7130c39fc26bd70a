"""What is uploaded is there, once, for every machine; what cannot be trusted leaves nothing behind."""

import hashlib
import json
import multiprocessing
import os

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.blobs import BlobError, Blobs
from api.db import Database, normal_url
from api.errors import ChangedError, NameTakenError, NotStoredError
from api.settings import Settings
from api.stored import Store
from latency.interop import export_table
from latency.storage import load_table, save_table
from search.saliency import save_saliency
from tests.api.factories import TINY, TINY_TARGET, V100, fill, save_model, tiny_table
from tests.reference import random_saliency

PARQUET, CSV, SAFETENSORS = "application/vnd.apache.parquet", "text/csv", "application/octet-stream"


# --- blobs -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["here", "far"])
def blobs(request, tmp_path):
    url = "" if request.param == "here" else f"file://{tmp_path / 'shared'}"
    return Blobs.of(Settings(data_dir=tmp_path / "data", blob_url=url))


def test_a_blob_is_kept_once_under_the_sha256_of_its_bytes(blobs, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some bytes" * 1000)
    digest = blobs.put(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == blobs.put_bytes(path.read_bytes())
    assert blobs.exists(digest)
    assert blobs.size(digest) == 10_000
    assert blobs.local(digest).read_bytes() == path.read_bytes()
    with blobs.open(digest) as file:
        assert file.read(4) == b"some"
    blobs.delete(digest)
    assert not blobs.exists(digest)
    blobs.delete(digest)
    with pytest.raises(BlobError, match=digest):
        blobs.local(digest)
    assert not [one for one in tmp_path.rglob(".*") if one.is_file()], "nothing half-written stays"


def test_another_machine_fetches_what_it_lacks_and_notices_other_bytes(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    here, there = (Blobs.of(Settings(data_dir=tmp_path / name, blob_url=url)) for name in ("a", "b"))
    digest = here.put_bytes(b"weights")
    assert there.local(digest).read_bytes() == b"weights"
    bad = here.put_bytes(b"more weights")
    (tmp_path / "shared" / bad).write_bytes(b"tampered")
    with pytest.raises(BlobError, match="other bytes"):
        there.local(bad)
    assert not (tmp_path / "b" / "blobs" / bad).exists()


def test_a_store_that_cannot_be_reached_is_one_clear_error(tmp_path):
    with pytest.raises(BlobError, match="VITFIT_BLOB_URL"):
        Blobs.of(Settings(data_dir=tmp_path, blob_url="nonsense://bucket"))


# --- the store, on both databases --------------------------------------------------------------------------------


@pytest.fixture
def machines(database_url, tmp_path):
    """Two that share database and blobs."""
    url, opened = normal_url(database_url), []

    def machine(name):
        database = Database(url)
        opened.append(database)
        settings = Settings(data_dir=tmp_path / name, blob_url=f"file://{tmp_path / 'shared'}")
        return Store(tmp_path / name, Blobs.of(settings), lambda: database)

    yield machine("a"), machine("b")
    for database in opened:
        database.close()


def test_what_one_machine_stores_the_other_has_and_loses_when_it_is_deleted(machines, tmp_path):
    a, b = machines
    path = tmp_path / "table.parquet"
    save_table(tiny_table(), path)
    kept, new = a.add("table", "tiny-1", path, {"source": "test"})
    assert new
    assert a.add("table", "tiny-1", path, {}) == (kept, False)
    assert b.sync() == 1
    assert b.sync() == 0
    assert load_table(b.place("table", "tiny-1")).target == TINY_TARGET
    assert (b.get("table", "tiny-1"), b.uploaded("table", kept.upload)) == (kept, kept)
    assert b.all("table") == [kept]
    assert b.all("model") == []
    with pytest.raises(ChangedError, match=kept.digest):
        a.delete("table", "tiny-1", "0" * 64)
    assert a.delete("table", "tiny-1", kept.digest)
    assert not a.delete("table", "tiny-1")
    assert b.sync() == 1
    assert not b.place("table", "tiny-1").exists()
    assert not a.blobs.exists(kept.digest)


def test_another_file_does_not_take_a_name_and_the_operators_files_stay(machines, tmp_path):
    a, b = machines
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    a.add("model", "mine", first, {})
    with pytest.raises(NameTakenError, match="mine"):
        b.add("model", "mine", second, {})
    own = b.place("model", "own")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(b"by hand")
    with pytest.raises(NameTakenError, match="by hand"):
        b.add("model", "own", second, {})
    with pytest.raises(NotStoredError, match="by hand"):
        b.delete("model", "own")
    b.sync()
    assert own.read_bytes() == b"by hand"


def _add(root, url, path, barrier):
    database = Database(url)
    store = Store(root, Blobs(root / "blobs"), lambda: database)
    barrier.wait()
    try:
        store.add("model", "same", path, {})
    except NameTakenError:
        os._exit(3)
    os._exit(0)


def test_of_processes_that_store_at_once_one_gets_the_name(database_url, tmp_path):
    url = normal_url(database_url)
    Database(url).close()
    context = multiprocessing.get_context("fork")
    barrier, processes = context.Barrier(3), []
    for index in range(3):
        path = tmp_path / f"file{index}"
        path.write_bytes(bytes([index]))
        processes.append(context.Process(target=_add, args=(tmp_path / "root", url, path, barrier)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [0, 3, 3]


# --- over REST ---------------------------------------------------------------------------------------------------


def upload(client, path, data, media_type, **query):
    return client.post(path, content=data, headers={"content-type": media_type}, params=query)


@pytest.fixture
def table_bytes(tmp_path):
    path = tmp_path / "upload.parquet"
    save_table(tiny_table(), path)
    return path.read_bytes()


@pytest.fixture
def empty(tmp_path):
    root = tmp_path / "empty"
    with TestClient(create_app(Settings(data_dir=root, shipped_tables=False)), raise_server_exceptions=False) as client:
        yield client, root


def test_an_uploaded_table_answers_and_is_handed_back_byte_for_byte(empty, table_bytes):
    client, root = empty
    made = upload(client, "/v1/tables", table_bytes, PARQUET)
    assert made.status_code == 201, made.text
    body = made.json()
    assert body["digest"] == hashlib.sha256(table_bytes).hexdigest()
    assert made.headers["etag"] == f'"{body["digest"]}"'
    assert (body["origin"], body["answers"], body["target"]) == ("uploaded", True, TINY_TARGET.slug)
    assert upload(client, "/v1/tables", table_bytes, PARQUET).status_code == 200
    where = made.headers["location"]
    assert client.get(where).json()["provenance"]["kind"] == body["kind"]
    assert client.get(where, headers={"if-none-match": made.headers["etag"]}).status_code == 304
    assert client.get(f"{where}/file").content == table_bytes
    estimate = {"targets": [TINY_TARGET.slug], "architectures": [TINY.to_dict()]}
    assert client.post("/v1/latency/estimate", json=estimate).status_code == 200
    listed = client.get("/v1/tables")
    assert [one["id"] for one in listed.json()["tables"]] == [body["id"]]
    assert client.get("/v1/tables", headers={"if-none-match": listed.headers["etag"]}).status_code == 304
    assert client.delete(where, headers={"if-match": '"other"'}).status_code == 412
    assert client.delete(where, headers={"if-match": made.headers["etag"]}).json() == {"deleted": True}
    assert client.get(where).status_code == 404
    assert client.post("/v1/latency/estimate", json=estimate).status_code == 422
    assert list((root / "tables").iterdir()) == list((root / "blobs").iterdir()) == []


def test_csv_and_nvit_come_in_and_go_out(empty, tmp_path):
    client, _ = empty
    for form, media_type, query in (
        ("csv", CSV, {}),
        ("nvit", "application/json", {"target": TINY_TARGET.slug, "outside_ms": 1.5, "image_size": 8, "patch_size": 4}),
    ):
        path = tmp_path / f"table.{form}"
        export_table(tiny_table(), path, form)
        checked = upload(client, "/v1/tables/validate", path.read_bytes(), media_type, **query)
        assert checked.json()["valid"], checked.text
        made = upload(client, "/v1/tables", path.read_bytes(), media_type, **query)
        assert made.status_code == 201, made.text
        assert upload(client, "/v1/tables", path.read_bytes(), media_type, **query).status_code == 200
        assert client.get(f"{made.headers['location']}/file", params={"format": form}).status_code == 200
    assert len(client.get("/v1/tables").json()["tables"]) == 2
    first, second = (one["id"] for one in client.get("/v1/tables").json()["tables"])
    compared = client.post("/v1/tables/compare", json={"a": first, "b": second}).json()
    assert compared["ratio"]["50"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("data", "media_type", "status", "kind"),
    [
        (b"", PARQUET, 422, "invalid-upload"),
        (b"not parquet at all", PARQUET, 422, "invalid-table"),
        (b"part,embed_dim\nblock,64\n", CSV, 422, "invalid-table"),
        (b"[" * 100_000, "application/json", 422, "invalid-table"),
        (b"x", "text/plain", 415, "unsupported-media-type"),
    ],
)
def test_a_table_that_cannot_be_trusted_leaves_nothing(empty, data, media_type, status, kind):
    client, root = empty
    answer = upload(client, "/v1/tables", data, media_type)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}"), answer.text
    assert str(root) not in answer.text
    assert [path for path in root.rglob("*") if path.is_file() and "sqlite" not in path.name] in (
        [],
        [root / ".stored.json"],
    )


def test_an_upload_over_the_limit_is_refused_while_it_comes(tmp_path):
    app = create_app(Settings(data_dir=tmp_path, max_upload_bytes=10_000, shipped_tables=False))
    with TestClient(app) as client:
        answer = client.post("/v1/tables", content=iter([b"x" * 4096] * 5), headers={"content-type": PARQUET})
        assert answer.status_code == 413
        assert list((tmp_path / "uploads").iterdir()) == []


def test_what_a_killed_service_left_half_written_goes_and_what_another_is_receiving_stays(tmp_path):
    for folder in ("uploads", "blobs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".left").write_bytes(b"x")
        os.utime(tmp_path / folder / ".left", (0, 0))
        (tmp_path / folder / ".arriving").write_bytes(b"x")
    with TestClient(create_app(Settings(data_dir=tmp_path, shipped_tables=False))):
        left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/.*"))
    assert left == ["blobs/.arriving", "uploads/.arriving"]


def test_a_model_is_uploaded_listed_downloaded_and_deleted(client, data_dir, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(TINY, path, ({"step": "import"},))
    made = upload(client, "/v1/models", path.read_bytes(), SAFETENSORS, name="tiny-model")
    assert made.status_code == 201, made.text
    body = made.json()
    assert (body["model"], body["architecture"]["embed_dim"], body["rebased"]) == ("tiny-model", TINY.embed_dim, False)
    assert upload(client, "/v1/models", path.read_bytes(), SAFETENSORS, name="tiny-model").status_code == 200
    assert [one["model"] for one in client.get("/v1/models").json()["models"]] == ["tiny-model"]
    where = made.headers["location"]
    assert client.get(f"{where}/file").content == path.read_bytes()
    assert client.get(f"{where}/file", headers={"range": "bytes=0-7"}).content == path.read_bytes()[:8]
    assert client.delete(where).json() == {"deleted": True}
    assert client.get(where).status_code == 404
    for name in ("../up", ".hidden", "a/b", "x" * 200, ""):
        assert upload(client, "/v1/models", path.read_bytes(), SAFETENSORS, name=name).status_code == 422
    answer = upload(client, "/v1/models", b"\xff" * 64, SAFETENSORS, name="bad")
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-checkpoint")


def test_a_saliency_is_uploaded_and_searched_at_once(client, tmp_path):
    path = tmp_path / "s.safetensors"
    save_saliency(random_saliency(TINY, seed=3), path)
    made = upload(client, "/v1/saliencies", path.read_bytes(), SAFETENSORS, name="other")
    assert made.status_code == 201, made.text
    frontier = client.post("/v1/frontiers", json={"saliency": "other", "target": "macs", "most": 5}).json()
    assert 2 <= len(frontier["points"]) <= 5
    assert frontier["points"][-1]["kept"] <= 1
    half = {"saliency": "other", "target": "macs", "speedup": 2.0}
    assert client.post("/v1/architectures/search", json=half).status_code == 200
    assert client.delete("/v1/saliencies/tiny").json()["type"] == "/problems/not-stored"
    assert client.delete("/v1/saliencies/other").status_code == 200
    assert client.post("/v1/architectures/search", json=half).status_code == 422


def test_shipped_and_the_operators_tables_are_not_deleted_over_rest(client, data_dir):
    for one in client.get("/v1/tables").json()["tables"]:
        assert one["origin"] == "folder"
        assert client.delete(f"/v1/tables/{one['id']}").json()["type"] == "/problems/not-stored"
    assert len(list((data_dir / "tables").iterdir())) == 2
    assert V100.slug in client.get("/v1/tables", params={"device": "v100"}).text


def test_pages_of_tables_hold_every_one_once(tmp_path):
    with TestClient(create_app(Settings(data_dir=tmp_path))) as client:
        whole = [one["id"] for one in client.get("/v1/tables", params={"limit": 500}).json()["tables"]]
        seen, after = [], None
        while True:
            page = client.get("/v1/tables", params={"limit": 2, **({"after": after} if after else {})}).json()
            seen += [one["id"] for one in page["tables"]]
            if (after := page["next"]) is None:
                break
        assert seen == whole
        first = client.get("/v1/tables", params={"limit": 1}).json()
        gone = first["next"] + "0"  # as if the table that the page ended with had been deleted
        assert [one["id"] for one in client.get("/v1/tables", params={"after": gone}).json()["tables"]] == whole[1:]
        assert {"shipped"} == {one["origin"] for one in client.get("/v1/tables").json()["tables"]}


def test_architectures_are_handed_out_by_id_as_json_code_and_onnx(client):
    found = client.get("/v1/architectures/deit-t").json()
    assert found["params"] == 5717416
    assert client.get(f"/v1/architectures/{found['id']}").json() == found
    assert client.get("/v1/architectures/deit-t/json").json() == json.loads(json.dumps(found["architecture"]))
    code = client.get("/v1/architectures/deit-t/code").text
    compile(code, "model.py", "exec")
    assert "import vit" not in code
    assert client.get("/v1/architectures/nothing").status_code == 404


@pytest.mark.slow
def test_an_architecture_runs_in_onnx(client, run_cli, tmp_path):
    import numpy as np
    import onnxruntime

    path = tmp_path / "tiny.json"
    path.write_text(TINY.to_json())
    told = {"--name": "tiny-one"}
    client.get("/v1/architectures/deit-t")
    from api.catalogue_sources import told as entry

    client.app.state.catalogue.open().add([entry(told["--name"], TINY, "test")])
    answer = client.get("/v1/architectures/tiny-one/onnx")
    assert answer.status_code == 200, answer.text
    session = onnxruntime.InferenceSession(answer.content)
    size = TINY.image_size
    images = np.zeros((2, TINY.in_chans, *size), np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    assert logits.shape == (2, TINY.num_classes)


def test_the_library_of_a_service_that_starts_again_has_what_was_uploaded(tmp_path, table_bytes):
    root = fill(tmp_path / "library")
    settings = Settings(data_dir=root, shipped_tables=False)
    with TestClient(create_app(settings)) as client:
        made = upload(client, "/v1/tables", table_bytes.replace(b"PAR1", b"PAR1"), PARQUET)
        name = root / "tables" / made.json()["file"]
        assert name.exists()
    name.unlink()  # as if the machine had died between row and file
    with TestClient(create_app(settings)) as client:
        client.app.state.store.open().sync()
        assert name.exists()
        assert client.get(made.headers["location"]).status_code == 200
